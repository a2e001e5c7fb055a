"""Captioned pictures that are kept in files."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from sayso.base.types import Size, digest
from sayso.data.pretraining_images._buckets import recorded
from sayso.data.pretraining_images._contract import Damaged, Part, PretrainingSet, Ranges

if TYPE_CHECKING:
    from PIL import Image

    from sayso.data.pretraining_images._decoding import Content


class Row(NamedTuple):
    """A caption and its picture: the picture's name, and where it is kept."""

    name: str
    text: str
    place: Any


class Captioned(PretrainingSet):
    """Rows in a fixed order; a set says which there are and where their pictures are."""

    sizes: Sequence[Size]

    @property
    @abstractmethod
    def where(self) -> str:
        """What messages call all of them."""

    @property
    @abstractmethod
    def advice(self) -> str:
        """What to do about a damaged picture."""

    @abstractmethod
    def rows(self, part: Part, stop: int) -> Sequence[Row]:
        """Those of a part, at least the first `stop` if there are as many."""

    @abstractmethod
    def content(self, row: Row) -> "Content":
        """The row's picture, or where it is."""

    @abstractmethod
    def shown(self, row: Row) -> str:
        """What a message calls the picture."""

    @abstractmethod
    def row_identity(self, row: Row) -> str:
        """A hash of the picture, or of the file that holds it and its place there."""

    def train_identity(self, n: int) -> str:
        rows = [[self.row_identity(row), row.text] for row in self.rows("train", n)[:n]]
        return digest([recorded(self.sizes), *rows])

    def train_count(self, n: int) -> int:
        return min(n, len(self.rows("train", n)))

    def images_identity(self, start: int, stop: int) -> str:
        rows = self.rows("train", stop)[start:stop]
        return digest([recorded(self.sizes), *map(self.row_identity, rows)])

    def _captions(self, part: Part, n: int) -> list[str]:
        return [row.text for row in self.rows(part, n)[:n]]

    def _images(
        self, part: Part, ranges: Ranges, workers: int
    ) -> "Iterator[Image.Image | Damaged]":
        from sayso.data.pretraining_images._decoding import decoded

        every = self.rows(part, max((stop for _, stop in ranges), default=0))
        rows = [row for start, stop in ranges for row in every[start:stop]]
        pictures = decoded(map(self.content, rows), self.sizes, workers)
        for row, picture in zip(rows, pictures, strict=True):
            damaged = isinstance(picture, str)
            yield Damaged(self.shown(row), picture, self.advice) if damaged else picture
