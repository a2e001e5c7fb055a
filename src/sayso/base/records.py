"""Rows of the study's files to dataclasses, whatever version wrote them."""

from dataclasses import MISSING, fields
from functools import cache
from typing import Any, TypeVar

from sayso.base.errors import UserError
from sayso.base.types import Sampler, Size

T = TypeVar("T")


def from_row(kind: type[T], row: Any, where: object) -> T:
    """The dataclass `kind` made of a JSON object; what the row lacks means the field's default.

    Args:
        where: the file, or its line, for what is said.
    Raises: UserError: if the row is no object, or has unknown fields or lacks one without default.
    """
    if not isinstance(row, dict):
        raise UserError(f"{where} is not a {kind.__name__.lower()}; restore it")
    known, needed = _fields(kind)
    if unknown := sorted(row.keys() - known):
        raise UserError(
            f"{where} has unknown fields: {', '.join(unknown)}; a newer sayso may have written "
            "them: upgrade, or restore the file"
        )
    if missing := sorted(needed - row.keys()):
        raise UserError(f"{where} lacks fields: {', '.join(missing)}; restore it")
    return kind(**row)


def sampler_from_row(row: Any, where: object) -> Sampler:
    """The sampler made of a JSON object; earlier versions wrote the side of a square image.

    Raises: UserError: as `from_row`, or if the size is not two whole numbers.
    """
    if not isinstance(row, dict):
        return from_row(Sampler, row, where)
    row = dict(row)
    if "image_size_px" in row:
        row["image_size"] = [row.pop("image_size_px")] * 2
    if "image_size" in row:
        size = row["image_size"]
        if not isinstance(size, list) or len(size) != 2 or not all(type(n) is int for n in size):
            raise UserError(f"{where} has image_size {size!r}, not [width, height]; restore it")
        row["image_size"] = Size(*size)
    return from_row(Sampler, row, where)


@cache
def _fields(kind: Any) -> tuple[frozenset[str], frozenset[str]]:
    """Names of all fields, and of those without default."""
    every = fields(kind)
    needed = (f.name for f in every if f.default is MISSING and f.default_factory is MISSING)
    return frozenset(f.name for f in every), frozenset(needed)
