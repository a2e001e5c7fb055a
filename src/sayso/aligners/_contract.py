"""Aligner: an algorithm is one dataclass that says which rows come next and what their loss is.

A whole aligner, for a file of one's own:

    @dataclass(frozen=True)
    class GoodOnly(Aligner):
        needs: ClassVar = frozenset({"data"})

        def batches(self, ctx):
            good = ctx.rows.own[ctx.rows.label[: ctx.rows.n_own] > 0.5]
            for step in ctx.steps:
                rng = ctx.generator(step)
                rows = good[stratified(torch.ones(len(good)), ctx.batch_size, rng)]
                yield ctx.denoising_batch(rows, torch.ones(len(rows)), rng)

        def loss(self, policy, batch):
            error = policy.denoising_error(batch.latents, batch.cond, batch.t, batch.noise)
            return (batch.weight * error).mean(), {"error": error.mean()}
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, is_dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sayso.base.errors import UserError
from sayso.base.plugins import load_plugin
from sayso.base.types import digest
from sayso.data.rows import EMPTY, TrainingRows
from sayso.families import Cond, Policy, move, take

NEEDS = frozenset({"data", "reward", "pretraining"})


@dataclass(frozen=True)
class Batch:
    """Rows of one update; every tensor's first dimension is b, so that it can be cut anywhere."""

    latents: Tensor
    cond: Cond
    t: Tensor
    noise: Tensor
    weight: Tensor
    extra: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    def __len__(self) -> int:
        return len(self.t)

    def rows(self, part: slice) -> "Batch":
        """A micro-batch."""
        tensors = (self.latents[part], take(self.cond, part), self.t[part])
        return Batch(*tensors, self.noise[part], self.weight[part], take(self.extra, part))

    def to(self, device: torch.device) -> "Batch":
        latents, t, noise, weight = (
            tensor.to(device, non_blocking=True)
            for tensor in (self.latents, self.t, self.noise, self.weight)
        )
        return Batch(latents, move(self.cond, device), t, noise, weight, move(self.extra, device))


@dataclass(frozen=True)
class Context:
    """What an aligner draws its batches from.

    All chance of a step comes from `generator(step)`, so a resumed run needs only the step.
    """

    rows: TrainingRows
    batch_size: int
    max_steps: int
    seed: int
    start_step: int = 0

    @property
    def steps(self) -> range:
        """The steps still to make: yield one batch for each."""
        return range(self.start_step, self.max_steps)

    def generator(self, step: int) -> torch.Generator:
        """The CPU generator of a step."""
        return torch.Generator().manual_seed(int(digest([self.seed, step]), 16))

    def denoising_batch(
        self,
        indices: Int[Tensor, " b"],
        weights: Float[Tensor, " b"],
        generator: torch.Generator,
        prompt_dropout: float = 0.0,
    ) -> Batch:
        """The rows `indices`, with noise and t drawn for all of them at once.

        t is uniform in [0, 1) for each row and spread evenly over the batch, which makes the loss
        less noisy and changes no expectation.

        Args:
            indices: rows of `self.rows`.
            weights: weight of each row's loss.
            generator: gives t, noise and dropout.
            prompt_dropout: probability, in [0, 1], of the empty prompt in place of the row's own:
                it keeps classifier-free guidance working.
        """
        b = len(indices)
        t = (torch.randperm(b, generator=generator) + torch.rand(b, generator=generator)) / b
        latents = self.rows.latents[indices].float()
        noise = torch.randn(latents.shape, generator=generator)
        dropped = torch.rand(b, generator=generator) < prompt_dropout
        text = torch.where(dropped, EMPTY, self.rows.text[indices])
        return Batch(latents, self.rows.cond(text), t.clamp(max=1 - 1e-6), noise, weights)


def stratified(
    weights: Float[Tensor, " n"], count: int, generator: torch.Generator
) -> Int[Tensor, " count"]:
    """Draw `count` indices with probability in proportion to `weights`, one from each stratum.

    The k-th comes from the k-th of `count` equal parts of the cumulated weights, so every index is
    expected exactly count · weight / sum times, with less chance than independent draws.

    Raises: ValueError: if the weights are negative, not finite or all 0.
    """
    if not (weights.isfinite().all() and (weights >= 0).all() and weights.sum() > 0):
        raise ValueError("weights must be finite, not negative and not all 0")
    ends = weights.double().cumsum(0)
    places = (torch.arange(count) + torch.rand(count, generator=generator).double()) / count
    # the first whose end is beyond the place; one of weight 0 ends where the one before it does
    return torch.searchsorted(ends, places * ends[-1], right=True)


class Aligner(ABC):
    """An algorithm; a dataclass whose fields are its options.

    `needs` says what it cannot do without, checked before anything loads: "data" (marks of good
    and bad images), "reward" (a learned or fixed reward), "pretraining" (natural images).
    """

    needs: ClassVar[frozenset[str]] = frozenset()

    def required(self) -> frozenset[str]:
        """What is needed with these options; overridden where an option lifts a need."""
        return self.needs

    @abstractmethod
    def batches(self, ctx: Context) -> Iterator[Batch]:
        """Yield one batch of `ctx.batch_size` rows for each step of `ctx.steps`."""

    @abstractmethod
    def loss(self, policy: Policy, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean over the rows of this (micro-)batch, and named scalars for the log.

        The names may differ from call to call; what is logged is the mean of those given.
        """


def load_aligner(name: str) -> type[Aligner]:
    """The aligner class called `name`, or of the user's own file if it ends in ".py".

    Raises: UserError: if there is none, or it is no dataclass or needs something unknown.
    """
    kind = load_plugin("aligner", name, Aligner)
    if not is_dataclass(kind):
        raise UserError(f"aligner {kind.__name__} is no dataclass; write @dataclass(frozen=True)")
    if odd := kind.needs - NEEDS:
        raise UserError(f"aligner {kind.__name__} needs {sorted(odd)}; known: {sorted(NEEDS)}")
    return kind
