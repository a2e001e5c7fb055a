"""WebDataset: tar shards with an image, its text and what is known of it under one number."""

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from sayso.formats.export_data import ExportData
from sayso.formats.exports import ExportFormat

SHARD_BYTES = 256 * 2**20


class WebDataset(ExportFormat):
    """train-000000.tar, … and test-000000.tar, …"""

    summary: ClassVar[str] = "Rated images in tar shards (WebDataset)."
    columns: ClassVar[Mapping[str, str]] = {
        "png (or jpg)": "the image",
        "txt": "the prompt",
        "json": "prompt, ratings (p_good, n_good, n_bad, n_skip) and the origin of the image",
    }
    configs: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "default": {"train": "train-*.tar", "test": "test-*.tar"}
    }

    def write(self, data: ExportData, folder: Path) -> Mapping[str, int]:
        shards = {split: _Shards(folder, split) for split in ("train", "test")}
        for rated in data.kept():
            about = {"prompt": rated.prompt.text, **data.facts(rated)}
            shards[data.split(rated.prompt)].add({
                data.extension: data.picture(rated.sample),
                "txt": rated.prompt.text.encode(),
                "json": json.dumps(about, ensure_ascii=False).encode(),
            })  # fmt: skip
        for split in shards.values():
            split.close()
        return {split: shard.rows for split, shard in shards.items() if shard.rows}


class _Shards:
    """The tar files of one split; a new one begins when the last is large."""

    def __init__(self, folder: Path, split: str) -> None:
        self._folder, self._split = folder, split
        self._tar: tarfile.TarFile | None = None
        self._shard, self._size, self.rows = 0, 0, 0

    def add(self, parts: Mapping[str, bytes]) -> None:
        if self._tar is None or self._size >= SHARD_BYTES:
            self.close()
            path = self._folder / f"{self._split}-{self._shard:06}.tar"
            self._tar = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
            self._shard, self._size = self._shard + 1, 0
        for extension, content in parts.items():
            # owner and time stay 0, so that equal votes make equal files
            member = tarfile.TarInfo(f"{self.rows:06}.{extension}")
            member.size = len(content)
            self._tar.addfile(member, io.BytesIO(content))
            self._size += len(content)
        self.rows += 1

    def close(self) -> None:
        if self._tar is not None:
            self._tar.close()
