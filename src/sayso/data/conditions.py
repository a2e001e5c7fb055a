"""Conditions of texts: from a memory-mapped table in the study's cache, or encoded when asked for.

The table spares the text encoder in every step, and lets it go from the device. Encoding costs
little beside the network, and nothing before the first step. Both give the same numbers up to
rounding.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from sayso.base.finite import number_format, refuse_not_finite
from sayso.base.types import digest
from sayso.data.shards import make_shards
from sayso.families import Cond, Policy, join, take

TEXTS_AT_ONCE = 64
LARGEST_TABLE_BYTES = 1 << 30
"""Up to this size a table is made unless told otherwise; it holds 4,500 texts of CLIP ViT-L/14."""

Kept = Literal["auto", "table", "encode"]
"""Where conditions come from; auto = a table if it is not too large."""


@runtime_checkable
class Conditions(Protocol):
    """`conditions[rows]`: the conditions of some texts, by their numbers."""

    def __getitem__(self, rows: Int[Tensor, " n"], /) -> Cond: ...


class HeldConditions:
    """Conditions of few texts, in memory."""

    def __init__(self, cond: Cond) -> None:
        self._cond = cond

    def __getitem__(self, rows: Int[Tensor, " n"]) -> Cond:
        return take(self._cond, rows)


class EncodedConditions:
    """Conditions that the text encoder computes each time, on its own device."""

    def __init__(self, policy: Policy, texts: Sequence[str]) -> None:
        self._policy, self._texts = policy, texts

    def __getitem__(self, rows: Int[Tensor, " n"]) -> Cond:
        distinct, place = rows.unique(return_inverse=True)
        numbers: list[int] = distinct.tolist()
        return take(encode_texts(self._policy, [self._texts[i] for i in numbers]), place)


def open_conditions(
    policy: Policy, texts: Sequence[str], folder: Path, identity: str, kept: Kept = "auto"
) -> Conditions:
    """The conditions of the texts.

    Args:
        policy: its text encoder computes them.
        texts: distinct.
        folder: where a table is kept.
        identity: of the model that encodes; with the texts and the number format it names a table.
        kept: table or encoder; see `Kept`.
    Raises: UserError: if a condition is not finite.
    """
    one = policy.encode_prompts([max(texts, key=len)])
    size = row_bytes(one) * len(texts)
    if kept == "encode" or (kept == "auto" and size > LARGEST_TABLE_BYTES):
        return EncodedConditions(policy, texts)
    stored = {key: str(value.dtype) for key, value in one.items()}
    computed = [number_format(policy.device), stored, policy.device.type, identity]
    computed += rounded(policy)
    parts = [texts[i : i + TEXTS_AT_ONCE] for i in range(0, len(texts), TEXTS_AT_ONCE)]
    return make_shards(
        [folder / f"{digest([part, *computed])}.safetensors" for part in parts],
        TEXTS_AT_ONCE,
        len(texts),
        lambda ranges: (
            {key: value.cpu() for key, value in encode_texts(policy, texts[a:b]).items()}
            for a, b in ranges
        ),
        "encoding texts",
    )


def rounded(policy: Policy) -> list[str]:
    """What the name of a cache says of an encoder whose weights are kept in fewer bits."""
    return [] if policy.dtype == torch.float32 else [f"weights {policy.dtype}"]


def row_bytes(one: Cond) -> int:
    """Bytes of the conditions of one text."""
    return sum(value.nbytes for value in one.values())


def encode_texts(policy: Policy, texts: Sequence[str]) -> Cond:
    """Conditions of many texts, encoded in portions, on the policy's device; all finite."""
    parts = []
    for i in range(0, len(texts), TEXTS_AT_ONCE):
        part = texts[i : i + TEXTS_AT_ONCE]
        parts.append(policy.encode_prompts(part))
        for value in parts[-1].values():
            names = [f"prompt {text!r}" for text in part]
            refuse_not_finite(value, names, f"the text encoder of {policy.name}")
    return join(parts)
