"""WebDataset shards: tar files in which the members of one picture stand together under one key."""

import json
import tarfile
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from sayso.base.errors import UserError
from sayso.base.hashes import file_digest
from sayso.data.pretraining_images._columns import CAPTIONS, Columns
from sayso.data.pretraining_images._decoding import Span
from sayso.data.pretraining_images.packs import Entry, Pack, texts_of

PICTURES = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff")
LARGEST_TEXT_BYTES = 1 << 20


class Tar(Pack):
    """A shard. Its columns are the members' endings, and the fields of the member `json`."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.stem

    def _identity(self) -> str:
        try:
            return file_digest(self.path)
        except OSError as error:
            raise UserError(f"{self.path} cannot be read ({error.strerror}); restore it") from None

    def entries(self, columns: Columns) -> list[Entry]:
        found, seen, compared = [], dict[str, None](), columns.names_compared
        for key, fields, places in self._groups():
            seen |= dict.fromkeys([*fields, *places])
            endings = (columns.image,) if columns.image else PICTURES
            place = next((places[ending] for ending in endings if ending in places), None)
            known = (columns.caption,) if columns.caption else CAPTIONS
            text = next((fields[name] for name in known if fields.get(name) is not None), None)
            texts = texts_of(text, f"{self.path}, {key}") if place else []
            found.append(Entry(key, place, texts, {name: fields.get(name) for name in compared}))
        if found:
            columns.compared(seen, str(self.path))
        if not any(entry.texts for entry in found):
            columns.of_caption(seen, str(self.path))
            if not any(entry.place for entry in found):
                columns.of_image(seen, str(self.path))
        return found

    def content(self, place: Any) -> Span:
        return Span(self.path, *place)

    def _groups(self) -> Iterator[tuple[str, dict[str, Any], dict[str, tuple[int, int]]]]:
        """Of every picture its key, the texts and fields, and where its other members are."""
        from webdataset.tariterators import base_plus_ext

        def key_of(member: tarfile.TarInfo) -> str | None:
            return base_plus_ext(member.name)[0]

        try:
            with tarfile.open(self.path, "r:") as tar:
                members = (member for member in tar if member.isfile())
                for key, group in groupby(members, key_of):
                    if key is not None:
                        yield (key, *self._read(tar, key, group))
        except (tarfile.TarError, OSError) as error:
            raise UserError(
                f"{self.path} is damaged or not a tar file ({error}); restore it, or decompress it"
            ) from None

    def _read(
        self, tar: tarfile.TarFile, key: str, members: Iterator[tarfile.TarInfo]
    ) -> tuple[dict[str, Any], dict[str, tuple[int, int]]]:
        fields, places = dict[str, Any](), dict[str, tuple[int, int]]()
        for member in members:
            ending = member.name.removeprefix(f"{key}.").lower()
            if ending in PICTURES or member.size > LARGEST_TEXT_BYTES:
                places[ending] = (member.offset_data, member.size)
                continue
            file = tar.extractfile(member)
            content = file.read() if file else b""
            if ending == "json":
                fields |= self._json(key, content)
            else:
                places[ending] = (member.offset_data, member.size)
                fields[ending] = content.decode("utf-8", "replace").strip()
        return fields, places

    def _json(self, key: str, content: bytes) -> Mapping[str, Any]:
        try:
            found = json.loads(content)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise UserError(f"{self.path}, {key}.json is not a JSON object; fix it")
        return found
