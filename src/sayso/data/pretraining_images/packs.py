"""Pre-training images in packs: files that each hold many captioned pictures."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sayso.base import files
from sayso.base.errors import UserError
from sayso.base.progress import progress
from sayso.base.types import Size, digest
from sayso.data.pretraining_images._captioned import Captioned, Row
from sayso.data.pretraining_images._columns import Columns
from sayso.data.pretraining_images._contract import Part, is_held_out

if TYPE_CHECKING:
    from sayso.data.pretraining_images._decoding import Content


class Entry(NamedTuple):
    """A picture of a pack: its name there, where it is, its captions, what a filter compares."""

    name: str
    place: Any
    texts: Sequence[str]
    values: Mapping[str, Any]


class Pack(ABC):
    """A file of captioned pictures. `name` is what messages call it."""

    name: str

    @cached_property
    def identity(self) -> str:
        """A hash of the file, or an address that stands for its content."""
        return self._identity()

    @abstractmethod
    def _identity(self) -> str: ...

    @abstractmethod
    def entries(self, columns: Columns) -> list[Entry]:
        """What is in the pack, without reading pictures.

        Raises: UserError: if it is damaged, or lacks a column; its columns are listed.
        """

    @abstractmethod
    def content(self, place: Any) -> "Content":
        """The picture at a place, or where it is; asked for in their order."""


def texts_of(value: object, where: str) -> list[str]:
    """The captions that a row has: one, a list, or none.

    Raises: UserError: if it is neither text nor a list of texts.
    """
    texts: list[Any] = value if isinstance(value, list) else [] if value is None else [value]
    for text in texts:
        if not isinstance(text, str):
            raise UserError(
                f"{where} holds {type(text).__name__} instead of text; make the study with "
                "another --pretraining-caption"
            )
    return list(dict.fromkeys(text for text in texts if text.strip()))


def _plain(entry: Entry) -> Entry:
    """The entry in what JSON holds; half characters, which no text encoder reads, become "?"."""
    name, *texts = (t.encode("utf-8", "replace").decode() for t in (entry.name, *entry.texts))
    values = {column: _plain_value(value) for column, value in entry.values.items()}
    return Entry(name, entry.place, texts, values)


def _plain_value(value: object) -> object:
    if value is None or value != value:  # NaN
        return None
    if isinstance(value, int | float) and abs(value) < float("inf"):
        return value
    return str(value).encode("utf-8", "replace").decode()


class Packs(Captioned):
    """Pictures of several packs, in the order of the packs and of the pictures in each.

    A pack is looked through when its pictures are asked for; what is in it is remembered in the
    study's cache under its identity.
    """

    def __init__(
        self,
        packs: Sequence[Pack],
        sizes: Sequence[Size],
        columns: Columns,
        index: Path,
        where: str,
    ) -> None:
        """Args:
        packs: in order.
        sizes: what pictures are brought to.
        columns: which to read and which rows to take.
        index: folder where it is kept what the packs hold.
        where: what messages call all of them.
        """
        self.packs, self.sizes, self.columns = packs, sizes, columns
        self._index, self._where = index, where
        self._tally, self._looked_through = columns.tally(), 0
        self._parts: dict[Part, list[Row]] = {"train": [], "heldout": []}

    @property
    def where(self) -> str:
        return self._where

    @property
    def advice(self) -> str:
        return "restore it, or leave damaged ones out with --leave-out-damaged"

    def rows(self, part: Part, stop: int) -> Sequence[Row]:
        rows, first = self._parts[part], self._looked_through
        if len(rows) < stop and first < len(self.packs):
            with progress(f"scanning {self.where}", len(self.packs), "files", first) as on:
                while len(rows) < stop and self._looked_through < len(self.packs):
                    self._look_through(self._looked_through)
                    self._looked_through += 1
                    on()
            if self._looked_through == len(self.packs):
                self._refuse_nothing()
        return rows

    def _look_through(self, number: int) -> None:
        pack = self.packs[number]
        taken = [e for e in self._entries(pack) if self._tally.takes(e.values, bare=not e.texts)]
        # a picture's further captions come after the first ones of its pack
        for k in range(max((len(entry.texts) for entry in taken), default=0)):
            for entry in taken:
                name = f"{pack.name}/{entry.name}"
                part: Part = "heldout" if is_held_out(name) else "train"
                if k < (len(entry.texts) if part == "train" else 1):
                    self._parts[part].append(Row(name, entry.texts[k], (number, entry.place)))

    def _entries(self, pack: Pack) -> list[Entry]:
        path = self._index / f"{digest([pack.identity, self._asked])}.json"
        if not path.is_file():
            found = [_plain(entry) for entry in pack.entries(self.columns)]
            content = json.dumps({"entries": found}, ensure_ascii=False, allow_nan=False)
            files.write_bytes(path, content.encode())
        # read back, so that places are the same whether it was there or not
        return [Entry(*row) for row in files.read_json(path)["entries"]]

    @property
    def _asked(self) -> list[Any]:
        return [self.columns.image, self.columns.caption, self.columns.names_compared]

    def _refuse_nothing(self) -> None:
        if self._tally.taken < 2:
            raise UserError(
                f"{self.where} holds {self._tally.taken} captioned images{self._tally.so_far}; "
                "give at least 2"
            )

    def content(self, row: Row) -> "Content":
        number, place = row.place
        return self.packs[number].content(place)

    def shown(self, row: Row) -> str:
        return row.name

    def row_identity(self, row: Row) -> str:
        number, place = row.place
        return f"{self.packs[number].identity} {place}"

    def about(self) -> str:
        return self._tally.said
