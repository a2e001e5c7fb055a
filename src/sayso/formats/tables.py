"""Writers that hold one chunk in memory: Parquet tables, JSON arrays, image folders."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sayso.base.types import Sample

ROW_GROUP_BYTES = 32 * 2**20
ROW_GROUP_ROWS = 10_000

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
"""How `datasets` stores an image in a table."""


def image_value(content: bytes, name: str) -> dict[str, object]:
    """A value of a column of type `IMAGE`."""
    return {"bytes": content, "path": name}


def with_features(schema: pa.Schema) -> pa.Schema:
    """The schema with the note by which `datasets` shows columns of type `IMAGE` as images."""
    features = {
        field.name: {"_type": "Image"}
        if field.type == IMAGE
        else {"dtype": _dtype(field.type), "_type": "Value"}
        for field in schema
    }
    note = json.dumps({"info": {"features": features}})
    return schema.with_metadata({"huggingface": note})


def _dtype(kind: pa.DataType) -> str:
    return {"double": "float64"}.get(str(kind), str(kind))


class ParquetTables:
    """Parquet files of one schema, `data/<split>-00000-of-00001.parquet`, made by their first row.

    These names are those by which `datasets` finds the splits of a folder.
    """

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        self._folder, self._schema = folder, schema
        self._tables: dict[str, ParquetTable] = {}

    def add(self, split: str, row: Mapping[str, Any], size: int) -> None:
        """Add a row to the table of a split; see `ParquetTable.add`."""
        if split not in self._tables:
            path = self._folder / "data" / f"{split}-00000-of-00001.parquet"
            self._tables[split] = ParquetTable(path, self._schema)
        self._tables[split].add(row, size)

    def close(self) -> dict[str, int]:
        """Finish the files. Returns: rows per split."""
        for table in self._tables.values():
            table.close()
        return {split: table.rows for split, table in sorted(self._tables.items())}


class ParquetTable:
    """One Parquet file, written in row groups of bounded size."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        words: Any = [f.name for f in schema if pa.types.is_string(f.type)]
        self._writer = pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=words)
        self._schema = schema
        self._part: list[Mapping[str, Any]] = []
        self._size = 0
        self.rows = 0

    def add(self, row: Mapping[str, Any], size: int = 0) -> None:
        """Add a row.

        Args:
            size: bytes of its images, for the size of the row group.
        """
        self._part.append(row)
        self._size += size
        self.rows += 1
        if self._size >= ROW_GROUP_BYTES or len(self._part) >= ROW_GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._part, self._schema))
        self._part, self._size = [], 0

    def close(self) -> None:
        """Write what is left, and the footer."""
        if self._part or not self.rows:
            self._flush()
        self._writer.close()


class JsonArray:
    """A JSON file that holds an array, written item by item."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")
        self.rows = 0

    def add(self, item: Mapping[str, object]) -> None:
        self._file.write(",\n" if self.rows else "[\n")
        json.dump(item, self._file, ensure_ascii=False)
        self.rows += 1

    def close(self) -> None:
        self._file.write("\n]\n" if self.rows else "[]\n")
        self._file.close()


@contextmanager
def json_arrays(folder: Path) -> Iterator["JsonArrays"]:
    """The arrays `<split>.json` of a folder, finished when the block ends."""
    arrays = JsonArrays(folder)
    try:
        yield arrays
    finally:
        arrays.close()


class JsonArrays:
    """One JSON array per split, made by its first item."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._arrays: dict[str, JsonArray] = {}

    def add(self, split: str, item: Mapping[str, object]) -> None:
        if split not in self._arrays:
            self._arrays[split] = JsonArray(self._folder / f"{split}.json")
        self._arrays[split].add(item)

    def close(self) -> None:
        for array in self._arrays.values():
            array.close()

    @property
    def rows(self) -> dict[str, int]:
        return {split: array.rows for split, array in sorted(self._arrays.items())}


class ImageFolder:
    """Images written once each under their sample's id."""

    def __init__(self, folder: Path, extension: str) -> None:
        self._folder, self._extension = folder, extension
        self._there: set[str] = set()

    def keep(self, sample: Sample, picture: Callable[[Sample], bytes]) -> str:
        """Write the image if it is not there yet. Returns: its name in the folder."""
        name = f"{sample.id}.{self._extension}"
        if sample.id not in self._there:
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / name).write_bytes(picture(sample))
            self._there.add(sample.id)
        return name
