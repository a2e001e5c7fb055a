"""Supervised fine-tuning: train on the images that people marked good, and on nothing else."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sayso.aligners import Aligner, Batch, Context, stratified
from sayso.base.errors import UserError
from sayso.families import Policy


@dataclass(frozen=True)
class GoodImages(Aligner):
    """Fine-tune on own images that most raters marked good, all with weight 1.

    The baseline that every other aligner should beat: no reward, no pre-training images.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"data"})

    prompt_dropout: float = 0.1
    """Share of rows trained with the empty prompt, for classifier-free guidance."""

    def __post_init__(self) -> None:
        if not 0 <= self.prompt_dropout < 1:
            raise UserError(f"prompt_dropout {self.prompt_dropout} is not in [0, 1); try 0.1")

    def batches(self, ctx: Context) -> Iterator[Batch]:
        good = ctx.rows.own[ctx.rows.label[: ctx.rows.n_own] > 0.5]
        if not len(good):
            raise UserError("no image is marked good by most of its raters; rate more images")
        alike, one = torch.ones(len(good)), torch.ones(ctx.batch_size)
        for step in ctx.steps:
            generator = ctx.generator(step)
            indices = good[stratified(alike, ctx.batch_size, generator)]
            yield ctx.denoising_batch(indices, one, generator, self.prompt_dropout)

    def loss(self, policy: Policy, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        error = policy.denoising_error(batch.latents, batch.cond, batch.t, batch.noise)
        return (batch.weight * error).mean(), {"error": error.mean()}
