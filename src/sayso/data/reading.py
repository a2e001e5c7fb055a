"""How much of a text a model reads: its tokenizer decides."""

from collections.abc import Sequence
from enum import IntEnum
from typing import Any


class Read(IntEnum):
    """How much of a text is read."""

    WHOLE = 0
    BEGINNING = 1
    """It is longer than the model reads."""
    NOT = 2
    """Such as one with a word that the tokenizer does not know, where this is refused."""


def how_read(tokenizer: Any, texts: Sequence[str], most: int, end: int | None = None) -> list[Read]:
    """How much of each text is read.

    Args:
        most: tokens that the model reads, start and end tokens included.
        end: the token that ends a text, if it also stands for unknown words; None = it does not.
    """
    if not texts:  # tokenizers take no empty list
        return []
    return [_read(ids, most, end) for ids in tokenizer(list(texts), verbose=False)["input_ids"]]


def _read(ids: Sequence[int], most: int, end: int | None) -> Read:
    if end is not None and end in ids[: min(len(ids), most) - 1]:
        return Read.NOT
    return Read.BEGINNING if len(ids) > most else Read.WHOLE
