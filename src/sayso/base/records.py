"""JSON objects of a file to dataclasses, whatever version or editor wrote them."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields
from functools import cache
from itertools import chain
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from sayso.base.errors import UserError
from sayso.base.types import Sampler, Size

T = TypeVar("T")


def from_row(kind: type[T], row: Any, where: object) -> T:
    """The dataclass `kind` made of a JSON object; what the row lacks means the field's default.

    Args:
        where: the file, or its line, for what is said.
    Raises: UserError: if the row is no object, has unknown fields or lacks one without default, or
        a value is not of its field's type.
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
    check_types(kind, row, where)
    return kind(**row)


def check_types(kind: type, row: Mapping[str, Any], where: object) -> None:
    """Compare values, as JSON has them, with the types of the dataclass's fields.

    A whole number may stand for a float. Types that JSON lacks are not compared.

    Raises: UserError: naming the first field whose value is of another type, or not among its
        choices.
    """
    allowed = _allowed(kind)
    for name, value in row.items():
        may = allowed[name]
        if may and not may.holds(value):
            raise UserError(f"{where} has {name} {json.dumps(value, default=str)}; give {may.said}")


def check_choices(options: Any) -> None:
    """Raises: UserError: for an option that is not among the choices of its field."""
    for name, may in _allowed(type(options)).items():
        value = getattr(options, name)
        if may and may.choices and not may.holds(value):
            raise UserError(f"{name} {value!r}; choose {may.said}")


class _Allowed(NamedTuple):
    """What a field may hold: values of these types, in words, or one of the choices."""

    types: tuple[type, ...]
    words: tuple[str, ...]
    choices: tuple[object, ...] = ()

    def holds(self, value: object) -> bool:
        return type(value) in self.types or value in self.choices

    @property
    def said(self) -> str:
        *first, last = [*map(str, self.choices), *self.words]
        return f"{', '.join(first)} or {last}" if first else last


_JSON: dict[Any, tuple[tuple[type, ...], str]] = {
    str: ((str,), "text in quotes"),
    bool: ((bool,), "true or false"),
    int: ((int,), "a whole number"),
    float: ((float, int), "a number"),
    NoneType: ((NoneType,), "null"),
    Mapping: ((dict,), "an object"),
    tuple: ((list, tuple), "a list"),
}


@cache
def _allowed(kind: type) -> dict[str, _Allowed | None]:
    hints = get_type_hints(kind)
    return {field.name: _allowed_by(hints[field.name]) for field in fields(kind)}


def _allowed_by(hint: Any) -> _Allowed | None:
    """What a type hint allows; None for anything."""
    origin = get_origin(hint) or hint
    if origin is Literal:
        return _Allowed((), (), get_args(hint))
    if origin in _JSON:
        types, said = _JSON[origin]
        return _Allowed(types, (said,))
    if origin not in (Union, UnionType):
        return None
    parts = [part for each in get_args(hint) if (part := _allowed_by(each))]
    if len(parts) < len(get_args(hint)):
        return None
    return _Allowed(*(tuple(chain.from_iterable(column)) for column in zip(*parts, strict=True)))


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
