"""Devices by their name or their memory, to forecast for what is not at hand."""

import re
from typing import NamedTuple

from sayso.base.errors import UserError

GIB = 1 << 30
CARDS = {
    "rtx3090": (24 * GIB, 71e12),
    "rtx4090": (24 * GIB, 165e12),
    "a100": (80 * GIB, 312e12),
    "h100": (80 * GIB, 989e12),
    "h200": (141 * 10**9, 989e12),
}
"""Memory, and bf16 operations a second as their makers give them, without sparsity."""
UNITS = {"GB": 10**9, "GIB": GIB, "MB": 10**6, "MIB": 1 << 20}


class Card(NamedTuple):
    """What a run is forecast for.

    Attributes:
        name: for messages.
        memory: bytes of each.
        flops: operations a second of each, if they are known.
        number: how many.
    """

    name: str
    memory: int
    flops: float | None = None
    number: int = 1


def parse_card(text: str) -> Card:
    """A card by name, a size of memory, or several of either: h200, 24GB, 4xrtx4090.

    Raises: UserError: if it is none of these.
    """
    found = re.fullmatch(r"(?:(\d+)x)?([\w.]+)", text.strip().lower())
    number, name = (int(found[1] or 1), found[2]) if found else (0, "")
    if number and name in CARDS:
        return Card(text, *CARDS[name], number=number)
    size = re.fullmatch(r"(\d+(?:\.\d+)?)([gm]i?b)", name)
    if number and size and float(size[1]):
        return Card(text, round(float(size[1]) * UNITS[size[2].upper()]), number=number)
    raise UserError(
        f"forecast_for {text!r} is no device; give memory such as 24GB, a card ("
        f"{', '.join(CARDS)}), or several such as 4x24GB"
    )


def refuse_forecast(text: str) -> None:
    """Raises: UserError: for a device to forecast for where the work itself is to be done."""
    if text:
        raise UserError(f"forecast_for {text} is for forecasts; add --dry-run, or omit it")
