"""Learning from images that are drawn and rewarded between the updates."""

import math
from abc import abstractmethod
from bisect import bisect
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from sayso.aligners import Aligner, Batch, Work
from sayso.aligners._limits import refuse_not_positive
from sayso.aligners._rollouts import draw_images, group_advantages, rows_of
from sayso.base.errors import UserError

OLD = "old"
"""The older self that draws the images."""


@dataclass(frozen=True)
class Online(Aligner):
    """An aligner that alternates between a rollout of images and updates on them."""

    images: int = 128
    """Images per rollout, over all processes; updates then use all of them before the next
    rollout."""
    group_size: int = 8
    """Images per prompt, which are compared with each other."""
    advantage_clip: float = 5.0
    """Limit on advantages, in standard deviations; larger ones are cut to it."""

    @property
    @abstractmethod
    def rows_per_image(self) -> tuple[str, int]:
        """How many rows there are of an image of a rollout, and the option that says so."""

    def __post_init__(self) -> None:
        rows, count = self.rows_per_image
        for name, value, least in (
            ("group_size", self.group_size, 2),
            (rows, count, 1),
            ("images", self.images, self.group_size),
        ):
            if value < least:
                raise UserError(f"{name} {value} is too small; give {least} or more")
        if self.images % self.group_size:
            near = self.images // self.group_size * self.group_size
            raise UserError(
                f"images {self.images} is not a multiple of group_size {self.group_size}; give "
                f"--images {near} or {near + self.group_size}"
            )
        refuse_not_positive(self, "advantage_clip")

    def period(self, batch_size: int) -> int:
        name, count = self.rows_per_image
        rows = self.images * count
        if rows % batch_size:
            fitting = [n for n in range(1, rows + 1) if rows % n == 0]
            near = fitting[bisect(fitting, batch_size) - 1 :][:2]
            raise UserError(
                f"a rollout has {rows} rows (images {self.images} × {name} {count}), which do not "
                f"make whole batches of {batch_size}; use batches of {' or '.join(map(str, near))}"
            )
        return rows // batch_size

    def check_shares(self, own: int, rows: int, processes: int) -> None:  # noqa: ARG002 (see Aligner)
        if "rollouts" in self.required() and self.images % processes:
            whole = math.lcm(self.group_size, processes)
            below = self.images // whole * whole
            near = " or ".join(str(n) for n in (below, below + whole) if n)
            raise UserError(
                f"{processes} processes cannot share {self.images} images of a rollout evenly; "
                f"give --images {near}, or start another number of processes"
            )


def denoising_rollouts(
    work: Work, online: Online, old_decay: float, prompt_dropout: float, unit: int = 1
) -> Iterator[Batch]:
    """Rows of `denoising_batch` of images that an older self draws, with `advantage` and `reward`.

    Before each rollout but the first the older self moves towards the policy: it keeps
    min(step / 1000, old_decay) of what it was. That is done when a rollout begins, not when one
    ends, so a run that is resumed between them does it too.

    Args:
        online: says how many images, and how many rows there are of each.
        old_decay: 0 = the policy itself draws.
        prompt_dropout: see `Work.denoising_batch`.
        unit: how many images of a group share t and noise and stay together.
    """
    period, (_, count) = online.period(work.batch_size), online.rows_per_image
    for start in work.steps[::period]:
        if start:
            work.policy.remember(OLD, min(start / 1000, old_decay))
        drawn = draw_images(work, start, online.images, online.group_size, OLD)
        advantage = group_advantages(drawn.reward, online.group_size, online.advantage_clip)
        here = replace(work, n_pretraining=0, data=rows_of(work, drawn.plan, drawn.latents))
        order = _in_turns(online.images // unit, count, work.generator(start, "rows"))
        batches = order.split(work.batch_size // unit)[: work.max_steps - start]
        for step, units in enumerate(batches, start):
            rows = (units[:, None] * unit + torch.arange(unit)).flatten()
            yield here.denoising_batch(
                rows, work.generator(step), prompt_dropout=prompt_dropout, unit=unit,
                advantage=advantage[rows], reward=drawn.reward[rows],
            )  # fmt: skip


def _in_turns(n: int, times: int, generator: torch.Generator) -> Int[Tensor, " m"]:
    """Each of n things so many times: all in random order, and all again."""
    return torch.cat([torch.randperm(n, generator=generator) for _ in range(times)])
