"""A folder of pictures with metadata.jsonl or metadata.csv, as datasets' ImageFolder reads it."""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from sayso.base import files
from sayso.base.errors import UserError
from sayso.base.files import JsonObject
from sayso.base.types import Size, digest
from sayso.base.user_files import read_json_lines, read_text
from sayso.data.pretraining_images._captioned import Captioned, Row
from sayso.data.pretraining_images._columns import Columns
from sayso.data.pretraining_images._contract import HELDOUT_SHARE, Part, is_held_out
from sayso.study.info import HeldOut

METADATA = ("metadata.jsonl", "metadata.csv")


@dataclass(frozen=True)
class Folder(Captioned):
    """`captions` has pairs of file name and caption, the first captions of all pictures before the
    second ones. A held-out picture counts once, with its first caption.
    """

    path: Path
    metadata: str
    captions: tuple[tuple[str, str], ...]
    heldout_names: frozenset[str]
    sizes: Sequence[Size]
    left_out: str = ""

    @property
    def where(self) -> str:
        return str(self.path / self.metadata)

    @property
    def advice(self) -> str:
        return f"restore it or delete its line in {self.metadata}"

    def rows(self, part: Part, stop: int) -> Sequence[Row]:  # noqa: ARG002
        return self._parts[part]

    def content(self, row: Row) -> Path:
        return self.path / row.name

    def shown(self, row: Row) -> str:
        return str(self.path / row.name)

    def row_identity(self, row: Row) -> str:
        return _file_hash(self.path / row.name, self.advice)

    def about(self) -> str:
        return self.left_out

    @cached_property
    def _parts(self) -> dict[Part, list[Row]]:
        first = dict(reversed(self.captions))
        rows = (Row(name, text, None) for name, text in self.captions)
        return {
            "train": [row for row in rows if row.name not in self.heldout_names],
            "heldout": [Row(n, first[n], None) for n in sorted(self.heldout_names, key=digest)],
        }


def open_folders(
    path: Path, sizes: Sequence[Size], columns: Columns, rule: HeldOut
) -> list[Folder]:
    """The folder's pictures, by the study's own rule of what is held out, then by the other.

    Raises: UserError: if the metadata are missing, empty or wrong.
    """
    metadata = next((path / name for name in METADATA if (path / name).is_file()), None)
    if metadata is None:
        raise UserError(
            f"{path / METADATA[0]} is missing; write a line {{file_name, text}} for each image"
        )
    captions, left_out = _read_captions(metadata, columns)
    by_name = sorted({name for name, _ in captions}, key=digest)
    cut = max(1, round(len(by_name) * HELDOUT_SHARE))
    found, earlier = (
        Folder(path, metadata.name, captions, frozenset(names), sizes, left_out)
        for names in (filter(is_held_out, by_name), by_name[:cut])
    )
    return [found] if rule == "by name" else [earlier, found]


def _read_captions(metadata: Path, columns: Columns) -> tuple[tuple[tuple[str, str], ...], str]:
    """File names and captions, by the number of the caption, then by a hash of the name."""
    captions: dict[str, list[str]] = {}
    image, caption = columns.image or "file_name", columns.caption or "text"
    tally = columns.tally()
    for where, row in _lines(metadata):
        name, text = row.get(image), row.get(caption)
        if not isinstance(name, str) or not isinstance(text, str) or not name:
            there = ", ".join(row)
            raise UserError(
                f"{where} needs {image} and {caption}, both strings; its columns are {there}"
            )
        if tally.takes(row):
            captions.setdefault(name, []).append(text)
    tally.refuse_unknown(str(metadata))
    if len(captions) < 2:
        raise UserError(f"{metadata} names {len(captions)} images{tally.so_far}; give at least 2")
    # hashes, so that nothing hangs on how the file is sorted
    ordered = [
        (k, digest(name), name, text)
        for name, texts in captions.items()
        for k, text in enumerate(sorted(dict.fromkeys(texts), key=digest))
    ]
    return tuple((name, text) for _, _, name, text in sorted(ordered)), tally.said


def _lines(metadata: Path) -> Iterator[tuple[str, JsonObject]]:
    if metadata.suffix == ".jsonl":
        yield from read_json_lines(metadata)
        return
    for number, row in enumerate(csv.DictReader(io.StringIO(read_text(metadata))), 2):
        yield f"{metadata} line {number}", {k: v for k, v in row.items() if k is not None}


def _file_hash(path: Path, advice: str) -> str:
    try:
        stat = path.stat()
        return _hash_of(path, stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns)
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        raise UserError(
            f"pre-training image {path} cannot be read ({error.strerror}); {advice}"
        ) from None


@cache
def _hash_of(path: Path, *_state: int) -> str:
    """The SHA-256 of a file in this state: a process asks for it several times."""
    return files.sha256(path)
