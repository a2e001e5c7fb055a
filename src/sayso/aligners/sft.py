"""Supervised fine-tuning: train on the images that people rated good, and on nothing else."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sayso.aligners import Aligner, Batch, Work, stratified
from sayso.aligners._limits import refuse_not_below_one
from sayso.base.errors import UserError


@dataclass(frozen=True)
class GoodImages(Aligner):
    """Fine-tune on samples that most raters call good, all with weight 1.

    The baseline that every other aligner should beat: no reward, no pre-training images.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"data"})

    prompt_dropout: float = 0.1
    """Share of rows trained with the empty prompt, for classifier-free guidance."""

    def __post_init__(self) -> None:
        refuse_not_below_one(self, prompt_dropout=0.1)

    def batches(self, work: Work) -> Iterator[Batch]:
        good = work.data.own[work.data.label[: work.data.n_own] > 0.5]
        if not len(good):
            raise UserError("no image is rated good by most of its raters; rate more images")
        alike = torch.ones(len(good))
        for step in work.steps:
            generator = work.generator(step)
            indices = good[stratified(alike, work.batch_size, generator)]
            yield work.denoising_batch(indices, generator, prompt_dropout=self.prompt_dropout)

    def loss(self, work: Work, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        error = work.error(batch)
        return error.mean(), {"error": error.mean()}
