"""Tables with a column of pictures: parquet files, here or on the hub; folders datasets saved."""

from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from sayso.base.errors import UserError
from sayso.base.hashes import file_digest
from sayso.base.types import digest
from sayso.data.pretraining_images._columns import Columns
from sayso.data.pretraining_images.packs import Entry, Pack, texts_of


class _Table(Pack):
    """Rows with a picture, as its file's bytes or datasets' {bytes, path}; a place is a number."""

    where: str

    def __init__(self, columns: Columns) -> None:
        self._columns = columns

    def entries(self, columns: Columns) -> list[Entry]:
        there = self._names()
        caption, compared = (
            columns.of_caption(there, self.where),
            columns.compared(there, self.where),
        )
        columns.of_image(there, self.where)
        texts, values = self._read(list(dict.fromkeys([caption, *compared]))), compared
        rows = range(len(texts[caption]))
        return [
            Entry(
                f"{i:07}",
                i,
                texts_of(texts[caption][i], f"{self.where}, column {caption},"),
                {name: texts[name][i] for name in values},
            )
            for i in rows
        ]

    def content(self, place: int) -> bytes:
        image = self._image
        value = self._picture(image, place)
        content = value.get("bytes") if isinstance(value, Mapping) else value
        if isinstance(content, bytes):
            return content
        if value is None or (isinstance(value, Mapping) and not value.get("path")):
            return b""
        raise UserError(
            f"{self.where}, column {image}, holds {value!r} instead of images; write it "
            "again with the images in it, as save_to_disk does"
        )

    @cached_property
    def _image(self) -> str:
        return self._columns.of_image(self._names(), self.where)

    @abstractmethod
    def _names(self) -> Sequence[str]:
        """The columns."""

    @abstractmethod
    def _read(self, names: list[str]) -> Mapping[str, Sequence[Any]]:
        """Whole columns."""

    @abstractmethod
    def _picture(self, name: str, row: int) -> Any:
        """One value; asked for in order."""


class Parquet(_Table):
    """A parquet file at a path or an address such as hf://datasets/owner/name@revision/file."""

    def __init__(self, address: str, columns: Columns) -> None:
        super().__init__(columns)
        self.where, self.name = address, address.rpartition("/")[2].removesuffix(".parquet")
        self._group: tuple[int, Any] = (-1, None)

    def _identity(self) -> str:
        if "://" in self.where:
            return self.where
        try:
            return file_digest(Path(self.where))
        except OSError as error:
            raise UserError(f"{self.where} cannot be read ({error.strerror}); restore it") from None

    @cached_property
    def _file(self) -> Any:
        from fsspec.core import url_to_fs
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import ParquetFile

        try:
            system, path = url_to_fs(self.where)
            return ParquetFile(system.open(path, "rb"))
        except (OSError, ArrowInvalid) as error:
            raise UserError(
                f"{self.where} is damaged or not a Parquet file ({error}); restore it"
            ) from None

    @cached_property
    def _starts(self) -> list[int]:
        """The first row of every group of rows."""
        meta = self._file.metadata
        sizes = (meta.row_group(i).num_rows for i in range(meta.num_row_groups))
        return list(accumulate(sizes, initial=0))

    def _names(self) -> Sequence[str]:
        return self._file.schema_arrow.names

    def _read(self, names: list[str]) -> Mapping[str, Sequence[Any]]:
        return self._file.read(columns=names).to_pydict()

    def _picture(self, name: str, row: int) -> Any:
        number = bisect_right(self._starts, row) - 1
        if self._group[0] != number:
            try:
                self._group = (number, self._file.read_row_group(number, [name]).column(0))
            # of a file on the hub its client may raise anything
            except Exception as error:
                reason = str(error).partition("\n")[0]
                raise UserError(
                    f"{self.where} cannot be read from row {row} on ({reason}); restore the file "
                    "or the network, and run the command again to resume"
                ) from None
        return self._group[1][row - self._starts[number]].as_py()


class Saved(_Table):
    """A folder that `datasets.Dataset.save_to_disk` wrote."""

    def __init__(self, folder: Path, columns: Columns) -> None:
        super().__init__(columns)
        self.path, self.where, self.name = folder, str(folder), folder.name
        self._column: Any = None

    def _identity(self) -> str:
        files = sorted(p for p in self.path.iterdir() if p.suffix in (".arrow", ".json"))
        return digest([[path.name, file_digest(path)] for path in files])

    @cached_property
    def _data(self) -> Any:
        import datasets

        try:
            found: Any = datasets.load_from_disk(self.where)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"{self.path} is damaged or not a dataset ({error}); restore it"
            ) from None
        coded = datasets.Image(decode=False)
        pictures = [n for n, kind in found.features.items() if isinstance(kind, datasets.Image)]
        for name in pictures:
            found = found.cast_column(name, coded)
        return found

    def _names(self) -> Sequence[str]:
        return self._data.column_names

    def _read(self, names: list[str]) -> Mapping[str, Sequence[Any]]:
        return self._data.select_columns(names)[:]

    def _picture(self, name: str, row: int) -> Any:
        if self._column is None:
            self._column = self._data.select_columns([name])
        return self._column[row][name]
