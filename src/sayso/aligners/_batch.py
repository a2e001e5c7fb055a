"""Batch: the rows of one update, as named tensors that can be cut anywhere between units."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sayso.families import Cond


@dataclass(frozen=True)
class Batch:
    """Named tensors whose first dimension is the row, b rows each.

    A row is what the aligner makes of it: an image, half a pair, a step of a trajectory. Some names
    mean the same everywhere. The network is shown `latents` with `noise` at `t`, or `noisy` at `t`,
    under the condition `cond.*`; with `guidance`, a scale per row, and `uncond.*` it is guided.

    `pretraining` has the rows of pre-training images that were drawn with these. `predicted` keeps
    what each model predicted for these rows, so that nothing is computed twice.
    """

    tensors: Mapping[str, Tensor]
    pretraining: "Batch | None" = None
    predicted: dict[str, Tensor] = field(
        default_factory=dict[str, Tensor], init=False, repr=False, compare=False
    )

    @classmethod
    def of(cls, cond: Cond, uncond: Cond | None = None, **tensors: Tensor) -> "Batch":
        """A batch with conditions; `uncond` has a row for each of the b rows."""
        parts = {"cond": cond, "uncond": uncond or {}}
        named = {f"{part}.{key}": v for part, conds in parts.items() for key, v in conds.items()}
        return cls(tensors | named)

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    @property
    def cond(self) -> Cond:
        """What the rows are conditioned on."""
        return self._part("cond")

    @property
    def uncond(self) -> Cond:
        """The negative prompt's condition for each row; empty without guidance."""
        return self._part("uncond")

    def _part(self, part: str) -> Cond:
        start = f"{part}."
        return {k.removeprefix(start): v for k, v in self.tensors.items() if k.startswith(start)}

    def plus(self, **tensors: Tensor) -> "Batch":
        """The same rows with more tensors."""
        return Batch({**self.tensors, **tensors}, self.pretraining)

    def rows(self, part: slice | Tensor) -> "Batch":
        """Some of the rows."""
        return Batch({name: tensor[part] for name, tensor in self.tensors.items()})

    def to(self, device: torch.device) -> "Batch":
        tensors = {n: t.to(device, non_blocking=True) for n, t in self.tensors.items()}
        return Batch(tensors, self.pretraining and self.pretraining.to(device))
