"""Kahneman-Tversky optimisation: learn from single images that people called good or bad."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sayso.aligners import Aligner, Batch, Work, means_of, stratified
from sayso.aligners._limits import refuse_not_below_one
from sayso.base.errors import UserError
from sayso.base.records import check_choices

Utility = Literal["sigmoid", "loss_averse", "risk_seeking"]
"""Kahneman and Tversky's curve; one that is flat for gains; one that is flat for losses."""


def kto_loss(
    gain: Float[Tensor, " b"], point: Float[Tensor, " b"], sign: Float[Tensor, " b"],
    beta: float, utility: Utility = "sigmoid",
) -> Float[Tensor, " b"]:  # fmt: skip
    """How much less than all an image is worth, as people feel gains and losses.

    L = 1 − U(s · β · (g − z)), where U is the sigmoid; loss_averse: its logarithm + 1; and
    risk_seeking: minus the logarithm of 1 − sigmoid. These are concave, as one who fears losses
    feels, and convex.

    Args:
        gain: g = reference error − error, the mean over c, h and w; it stands in for the
            log-probability gained since the start.
        point: z ≥ 0, what counts as neither gain nor loss; without gradient.
        sign: s, 1 for a good image, −1 for a bad one.
        beta: β, above 0, for the mean; with the sum over c, h and w it is c·h·w times smaller.
    Returns: loss per row, not reduced.
    Raises: ValueError: if beta ≤ 0.
    Source: Li et al. 2024, arXiv 2404.04465, Sec. 4.
    """
    if beta <= 0:
        raise ValueError(f"beta {beta} must be above 0")
    felt = sign * beta * (gain - point)
    match utility:
        case "sigmoid":
            return 1 - felt.sigmoid()
        case "loss_averse":
            return -torch.nn.functional.logsigmoid(felt)
        case "risk_seeking":
            return 1 + torch.nn.functional.logsigmoid(-felt)


@dataclass(frozen=True)
class KahnemanTversky(Aligner):
    """Fine-tune on rated samples, good or bad, without pairs and without a reward.

    Source: Li et al. 2024, arXiv 2404.04465 (Diffusion-KTO).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"data", "bad", "reference", "weights"})
    defaults: ClassVar[Mapping[str, float]] = {"learning_rate": 2e-5}

    beta: float = 1000.0
    """Strength of the pull to the frozen start; smaller values move further. It applies to the mean
    squared error over the latents, so it does not change with the image size."""
    utility: Utility = "sigmoid"
    """How gains and losses are felt: sigmoid, as people do; loss_averse; or risk_seeking."""
    good_share: float = 0.8
    """Share of good images among the rows of a step, above 0 and below 1."""
    prompt_dropout: float = 0.1
    """Share of rows trained with the empty prompt, for classifier-free guidance."""

    def __post_init__(self) -> None:
        check_choices(self)
        if not 0 < self.beta < float("inf"):
            raise UserError(f"beta {self.beta} must be above 0; try 1000")
        if not 0 < self.good_share < 1:
            raise UserError(f"good_share {self.good_share} is not between 0 and 1; try 0.8")
        refuse_not_below_one(self, prompt_dropout=0.1)

    def check_shares(self, own: int, rows: int, processes: int) -> None:  # noqa: ARG002 (see Aligner)
        if own < 2:
            raise UserError(
                f"kto needs a good and a bad image in each step, and batch_size {rows} has {own} "
                "row for them; give a larger --batch-size, or a smaller --pretraining-fraction"
            )

    def batches(self, work: Work) -> Iterator[Batch]:
        label = work.data.label[: work.data.n_own]
        good, bad = work.data.own[label > 0.5], work.data.own[label < 0.5]
        if not len(good) or not len(bad):
            lacking = "bad" if len(good) else "good"
            raise UserError(f"no image is rated {lacking} by most of its raters; rate more images")
        n_good = min(max(1, round(self.good_share * work.batch_size)), work.batch_size - 1)
        sign = torch.ones(work.batch_size)
        sign[n_good:] = -1
        for step in work.steps:
            generator = work.generator(step)
            rows = torch.cat([
                some[stratified(torch.ones(len(some)), n, generator)]
                for some, n in ((good, n_good), (bad, work.batch_size - n_good))
            ])  # fmt: skip
            # good and bad ones in every share and micro-batch
            order = torch.randperm(work.batch_size, generator=generator)
            batch = work.denoising_batch(
                rows[order], generator, prompt_dropout=self.prompt_dropout, sign=sign[order]
            )
            point = self._point(work, batch)
            yield replace(batch, tensors={**batch.tensors, "point": point.expand(len(batch))})

    def loss(self, work: Work, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        gain = work.error(batch, "reference") - work.error(batch)
        loss = kto_loss(gain, batch["point"], batch["sign"], self.beta, self.utility)
        scalars = {"error": work.error(batch).mean(), "point": batch["point"].mean()}
        sign = batch["sign"]
        return loss.mean(), scalars | means_of(gain, gain_good=sign > 0, gain_bad=sign < 0)

    @torch.no_grad()
    def _point(self, work: Work, batch: Batch) -> Tensor:
        """The mean gain of the whole step's rows, of all processes, or 0 if it is a loss.

        Of a micro-batch's few rows it would be noise, and cutting a batch would change the loss.
        """
        gained = torch.zeros(1, device=work.policy.device)
        for at in range(0, len(batch), work.micro_batch):
            part = batch.rows(slice(at, at + work.micro_batch)).to(work.policy.device)
            gained += (work.error(part, "reference") - work.error(part)).sum()
        # sums, for processes may have different numbers of rows
        return (work.gather(gained).sum() / work.batch_size).clamp(min=0).cpu()
