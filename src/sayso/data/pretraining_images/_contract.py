"""What pre-training images are to the rest of the package, whatever keeps them."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from sayso.base.errors import UserError
from sayso.base.types import digest

if TYPE_CHECKING:
    from PIL import Image

Part = Literal["train", "heldout"]
Ranges = Sequence[tuple[int, int]]

HELDOUT_SHARE = 0.1
"""Share of the images, on average, that is kept for measuring and never trained on."""


def is_held_out(name: str) -> bool:
    """Whether a picture is kept for measuring: a hash of its own name says so, nothing else."""
    return int(digest(name), 16) < HELDOUT_SHARE * 16**16


class Damaged(NamedTuple):
    """Stands in the place of a picture that cannot be read."""

    name: str
    reason: str
    advice: str
    """What to do about it, for the end of a message."""

    def __str__(self) -> str:
        return f"pre-training image {self.name} {self.reason}; {self.advice}"


class PretrainingSet(ABC):
    """Captioned images in two disjoint parts, each in a fixed order: n + 1 begin with the same n.

    All images are RGB, of the size given when the set was opened, or of one of its buckets. They
    are read or made one by one, as they are asked for.
    """

    def train_captions(self, n: int) -> list[str]:
        """The first `n` captions for training, fewer if there are no more; reads no image."""
        return self._captions("train", n)

    @abstractmethod
    def train_count(self, n: int) -> int:
        """How many captions `train_captions(n)` has, without making them."""

    def train_pictures(self, ranges: Ranges, workers: int = 0) -> "Iterator[Image.Image | Damaged]":
        """The images of the training captions in ranges, each from a number up to another.

        Args:
            workers: processes that read and decode them; 0 = this one.
        """
        return self._images("train", ranges, workers)

    def train_images(self, start: int, stop: int) -> "Iterator[Image.Image]":
        """The same of one range. Raises: UserError: if an image cannot be read."""
        return map(whole, self.train_pictures([(start, stop)]))

    def heldout_captions(self, n: int) -> list[str]:
        """The first `n` captions that training never sees, fewer if there are no more."""
        return self._captions("heldout", n)

    def heldout_pictures(self, n: int) -> "Iterator[Image.Image | Damaged]":
        """The images of `heldout_captions(n)`, or what is wrong with one."""
        return self._images("heldout", [(0, n)], 0)

    def heldout_images(self, n: int) -> "Iterator[Image.Image]":
        """The same. Raises: UserError: if an image cannot be read."""
        return map(whole, self.heldout_pictures(n))

    def about(self) -> str:
        """What is said of the set in a forecast: what was left out of it, and why."""
        return ""

    @abstractmethod
    def train_identity(self, n: int) -> str:
        """A hash of all that decides the first `n` captions and images, without making any."""

    def earlier_identity(self, n: int) -> str:
        """The hash that versions of before computed in its place."""
        return self.train_identity(n)

    @abstractmethod
    def images_identity(self, start: int, stop: int) -> str:
        """A hash of the files behind `train_images(start, stop)`, without decoding an image."""

    @abstractmethod
    def _captions(self, part: Part, n: int) -> list[str]: ...

    @abstractmethod
    def _images(
        self, part: Part, ranges: Ranges, workers: int
    ) -> "Iterator[Image.Image | Damaged]": ...


def whole(picture: "Image.Image | Damaged") -> "Image.Image":
    """Raises: UserError: if the picture is damaged."""
    if isinstance(picture, Damaged):
        raise UserError(str(picture))
    return picture
