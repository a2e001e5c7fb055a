"""Which pictures are taken: conditions on their columns, such as `aesthetic >= 6`."""

import operator
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from sayso.base.errors import UserError

COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge, "<=": operator.le, "==": operator.eq, "!=": operator.ne,
    ">": operator.gt, "<": operator.lt,
}  # fmt: skip
_CONDITION = re.compile(r"\s*(\S.*?)\s*(>=|<=|==|!=|>|<)\s*(\S.*?)\s*")


class Condition(NamedTuple):
    """A column compared with a number or a text."""

    column: str
    comparison: str
    value: float | str

    def holds(self, found: object) -> bool:
        """Whether a row's value fulfils it; what is missing, or cannot be compared, does not."""
        if isinstance(self.value, float):
            number = _number(found)
            return number is not None and COMPARISONS[self.comparison](number, self.value)
        text = str(found).lower() if isinstance(found, bool) else str(found)
        return found is not None and COMPARISONS[self.comparison](text, self.value)


def parse_filter(text: str) -> tuple[Condition, ...]:
    """The conditions of a filter, joined by "and"; all must hold.

    A value that is a number is compared with numbers, any other, in quotes or not, with texts.

    Raises: UserError: if it cannot be read.
    """
    if not text.strip():
        return ()
    return tuple(map(_condition, re.split(r"\s+and\s+", text.strip())))


def _condition(text: str) -> Condition:
    found = _CONDITION.fullmatch(text)
    if not found:
        raise UserError(
            f"pretraining_filter {text!r} is not a condition; give a column, one of "
            f'{" ".join(COMPARISONS)}, and a value, such as "aesthetic >= 6"; join several '
            "with and"
        )
    column, comparison, value = found.groups()
    number = _number(value)
    return Condition(column, comparison, value.strip("'\"") if number is None else number)


def _number(value: object) -> float | None:
    """A number, also as a table of texts has it; None for anything else, NaN too."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError):
        return None
    return number if number == number else None


def columns_of(conditions: tuple[Condition, ...]) -> list[str]:
    """The columns that are compared, each once."""
    return list(dict.fromkeys(condition.column for condition in conditions))


def all_hold(conditions: tuple[Condition, ...], row: Mapping[str, object]) -> bool:
    return all(condition.holds(row.get(condition.column)) for condition in conditions)
