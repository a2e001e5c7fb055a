"""Which columns hold picture and caption, and which rows are taken."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sayso.base.errors import UserError
from sayso.data.pretraining_images.filters import Condition, all_hold, columns_of

IMAGES = ("image", "jpg", "jpeg", "png", "webp", "img")
CAPTIONS = ("text", "caption", "txt", "prompt")
"""Names that are taken for the columns of picture and caption if none is given."""


@dataclass(frozen=True)
class Columns:
    """What the study says of its pre-training images; "" = the first known name that is there."""

    image: str = ""
    caption: str = ""
    conditions: tuple[Condition, ...] = ()
    filter: str = ""
    """The conditions as they were given."""

    @property
    def names_compared(self) -> list[str]:
        """The columns of the filter, each once."""
        return columns_of(self.conditions)

    def tally(self) -> "Tally":
        return Tally(self)

    def of_image(self, there: Iterable[str], where: str) -> str:
        """The column of the pictures. Raises: UserError: if it is not there; lists the columns."""
        return _one_of(self.image, IMAGES, list(there), where, "images", "pretraining-image")

    def of_caption(self, there: Iterable[str], where: str) -> str:
        """The column of the captions. Raises: UserError: as `of_image`."""
        names = list(there)
        return _one_of(self.caption, CAPTIONS, names, where, "captions", "pretraining-caption")

    def compared(self, there: Iterable[str], where: str) -> list[str]:
        """The columns of the filter. Raises: UserError: as `of_image`."""
        names, found = list(there), self.names_compared
        for name in found:
            if name not in names:
                raise _no_column(where, name, names, "pretraining-filter")
        return found


def _one_of(
    given: str, known: Iterable[str], there: list[str], where: str, what: str, flag: str
) -> str:
    if given:
        if given not in there:
            raise _no_column(where, given, there, flag)
        return given
    for name in known:
        if name in there:
            return name
    raise UserError(
        f"{where} has no column of {what} with a known name; its columns are {', '.join(there)}: "
        f"make the study with --{flag} and one of them"
    )


def _no_column(where: str, name: str, there: Iterable[str], flag: str) -> UserError:
    return UserError(
        f"{where} has no column {name!r}; its columns are {', '.join(there)}: make the study with "
        f"another --{flag}"
    )


@dataclass
class Tally:
    """Counts the rows that are left out, and why."""

    columns: Columns
    taken: int = 0
    filtered: int = 0
    bare: int = 0
    """Rows without picture or caption."""
    _seen: dict[str, None] = field(default_factory=dict[str, None])

    def takes(self, row: Mapping[str, Any], *, bare: bool = False) -> bool:
        """Whether the row is taken, after the filter; counts it."""
        if self.columns.conditions:
            if not row.keys() <= self._seen.keys():
                self._seen |= dict.fromkeys(row)
            if not all_hold(self.columns.conditions, row):
                self.filtered += 1
                return False
        self.bare += bare
        self.taken += not bare
        return not bare

    def refuse_unknown(self, where: str) -> None:
        """Raises: UserError: if no row had a column that the filter compares."""
        if self._seen:
            self.columns.compared(self._seen, where)

    @property
    def said(self) -> str:
        """What was left out, for people; "" if nothing was."""
        parts = [
            (self.filtered, f"not {self.columns.filter}"),
            (self.bare, "without caption or image"),
        ]
        return ", ".join(f"{n:,} {why}" for n, why in parts if n)

    @property
    def so_far(self) -> str:
        return f" ({self.said})" if self.said else ""
