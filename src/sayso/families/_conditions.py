"""Conditions: what a model is told beside noisy latents and time, as named tensors."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

Cond = dict[str, Tensor]
"""What the model is conditioned on, computed from a text; every tensor's first dimension is b.

Where texts differ in length, the second dimension is as long as the longest of the b, shorter ones
have zeros at their end, and `mask`, of booleans, says what is text."""


def take(cond: Cond, rows: Tensor | slice) -> Cond:
    """The chosen rows of a condition."""
    return {key: value[rows] for key, value in cond.items()}


def for_rows(cond: Cond, b: int) -> Cond:
    """A condition of one row for each of b rows."""
    return {key: value.expand(b, *value.shape[1:]) for key, value in cond.items()}


def join(conds: Sequence[Cond]) -> Cond:
    """The rows of several conditions, one after the other.

    Texts of different length are filled up to the longest with zeros, which `mask` leaves out.
    """
    return {key: _joined([cond[key] for cond in conds]) for key in conds[0]}


def _joined(parts: Sequence[Tensor]) -> Tensor:
    if parts[0].ndim < 2:
        return torch.cat([*parts])
    longest = max(part.shape[1] for part in parts)
    rest = (0, 0) * (parts[0].ndim - 2)
    return torch.cat([pad(part, (*rest, 0, longest - part.shape[1])) for part in parts])


def move(cond: Cond, device: torch.device) -> Cond:
    return {key: value.to(device, non_blocking=True) for key, value in cond.items()}
