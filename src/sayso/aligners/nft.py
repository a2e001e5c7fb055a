"""Negative-aware fine-tuning: learn towards good images and, within bounds, away from bad ones."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sayso.aligners import Batch, Work, means_of, prompt_means, stratified
from sayso.aligners._limits import (
    refuse_idle,
    refuse_not_below_one,
    refuse_not_positive,
)
from sayso.aligners._online import OLD, Online, denoising_rollouts
from sayso.aligners._scores import needs_of, scores
from sayso.base.errors import UserError
from sayso.base.records import check_choices

Source = Literal["label", "reward", "rollouts"]
FLOOR = 1e-5
"""Least mean error that a row is divided by."""


def contrastive_loss(
    prediction: Float[Tensor, "b c h w"],
    old: Float[Tensor, "b c h w"],
    target: Float[Tensor, "b c h w"],
    optimality: Float[Tensor, " b"],
    beta: float,
) -> Float[Tensor, " b"]:
    """The error of a model moved as the policy was, and of one moved the opposite way.

    L = [r · |p⁺ − target|² / w⁺ + (1 − r) · |p⁻ − target|² / w⁻] / β, with p± = old ± β · (p − old)
    and w± the mean absolute difference of p± and target, which has no gradient. At p = old the
    gradient is that of (2r − 1) times the error. Where r is below 1/2 the policy moves away from
    the image, but not without bound: if the w± were 1, the best p − old would be
    (2r − 1)/β · (target − old).

    Args:
        prediction: the policy's.
        old: of the model that drew the images, for the same rows.
        target: what the network should predict.
        optimality: r, how good each image is, in [0, 1]; 1/2 is neither.
        beta: β, above 0; larger values stay nearer to old.
    Returns: loss per row, not reduced.
    Raises: ValueError: if beta ≤ 0.
    Source: DiffusionNFT 2025, arXiv 2509.16117, Sec. 3 and its code. There the errors are of the
        image that velocities point to, t times those here; here they are of what the network
        predicts, which serves eps and v too.
    """
    if beta <= 0:
        raise ValueError(f"beta {beta} must be above 0")
    step = beta * (prediction.float() - old.float())
    towards, away = (_scaled_error(old.float() + sign * step - target.float()) for sign in (1, -1))
    return (optimality * towards + (1 - optimality) * away) / beta


def _scaled_error(off: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
    rows = off.flatten(1)
    size = rows.detach().abs().double().mean(1).clamp(min=FLOOR)
    return rows.square().mean(1) / size.float()


def within_prompts(score: Float[Tensor, " n"], prompt: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Scores as distances from the mean of their prompt, around 1/2 and in [0, 1].

    Prompts whose images are all alike then say nothing.

    Args:
        score: in [0, 1].
        prompt: which prompt each image was drawn for.
    """
    return 0.5 + (score - prompt_means(score, prompt)) / 2


def optimality_of(advantage: Float[Tensor, " n"], longest: float) -> Float[Tensor, " n"]:
    """Advantages in ± longest as r in [0, 1]: 1/2 + A / (2 · longest).

    Source: DiffusionNFT 2025, arXiv 2509.16117, Sec. 3; its longest, A_max, is 5.
    """
    return (0.5 + advantage / (2 * longest)).clamp(0, 1)


@dataclass(frozen=True)
class NegativeAware(Online):
    """Learn towards good images and, by a bounded step, away from bad ones: of the samples, or of
    images that are drawn while training.

    Source: DiffusionNFT 2025, arXiv 2509.16117, which draws images and rewards them; on samples,
        labels or rewards stand in place of these, and the frozen start in that of the older self.
    """

    needs: ClassVar[frozenset[str]] = frozenset(
        {"data", "bad", "reward", "reference", "rollouts", "old"}
    )

    beta: float = 1.0
    """How near the policy stays to the model that drew the images; smaller values move further. It
    is a factor of predictions, so it does not change with the image size."""
    score: Source = "label"
    """What says how good an image is: label, the share of good among people's ratings; reward, the
    learned reward, for images that nobody rated too; or rollouts, the reward of images drawn while
    training, in place of the samples."""
    centred: bool = False
    """Compare each sample with the others of its prompt, as is always done with rollouts: prompts
    whose images are all good or all bad then say nothing."""
    times_per_image: int = 4
    """With rollouts: rows of each image, each at a time and with noise of its own."""
    old_decay: float = 0.5
    """With rollouts: how slowly the older self that draws them follows the policy. At each it keeps
    step / 1000 of itself, or this where that is more; 0 = the policy itself draws."""
    prompt_dropout: float = 0.1
    """Share of rows trained with the empty prompt, for classifier-free guidance."""

    def __post_init__(self) -> None:
        check_choices(self)
        if self.score == "rollouts":
            refuse_idle(self, "with --score rollouts, which always compares", "centred")
        else:
            refuse_idle(
                self, "without --score rollouts",
                "images", "group_size", "advantage_clip", "times_per_image", "old_decay",
            )  # fmt: skip
        super().__post_init__()
        refuse_not_positive(self, "beta")
        refuse_not_below_one(self, old_decay=0.5, prompt_dropout=0.1)

    @property
    def rows_per_image(self) -> tuple[str, int]:
        return "times_per_image", self.times_per_image

    def required(self) -> frozenset[str]:
        if self.score == "rollouts":
            return frozenset({"reward", "rollouts", "old"})
        return needs_of(self.score) | {"reference"}

    def period(self, batch_size: int) -> int:
        return super().period(batch_size) if self.score == "rollouts" else 1

    def batches(self, work: Work) -> Iterator[Batch]:
        return self._of_rollouts(work) if self.score == "rollouts" else self._of_samples(work)

    def _of_rollouts(self, work: Work) -> Iterator[Batch]:
        for batch in denoising_rollouts(work, self, self.old_decay, self.prompt_dropout):
            yield batch.plus(optimality=optimality_of(batch["advantage"], self.advantage_clip))

    def _of_samples(self, work: Work) -> Iterator[Batch]:
        rows, optimality = self.scored_rows(work)
        alike = torch.ones(len(rows))
        for step in work.steps:
            generator = work.generator(step)
            chosen = stratified(alike, work.batch_size, generator)
            yield work.denoising_batch(
                rows[chosen], generator, prompt_dropout=self.prompt_dropout,
                optimality=optimality[chosen],
            )  # fmt: skip

    def loss(self, work: Work, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        drew, r = OLD if self.score == "rollouts" else "reference", batch["optimality"]
        loss = contrastive_loss(
            work.prediction(batch), work.prediction(batch, drew), work.target(batch), r, self.beta
        )
        rise = (work.error(batch) - work.error(batch, drew)).detach()
        scalars = {"error": work.error(batch).mean(), "norm": work.norm(batch)}
        if "reward" in batch:
            scalars["reward"] = batch["reward"].mean()
        return loss.mean(), scalars | means_of(rise, rise_good=r > 0.5, rise_bad=r < 0.5)

    def scored_rows(self, work: Work) -> tuple[Tensor, Tensor]:
        """Indices of the samples that take part, and how good they are, in [0, 1].

        Raises: UserError: if none is rated, or a reward is not in [0, 1].
        """
        assert self.score != "rollouts"
        data, score = work.data, scores(work.data, self.score)
        use = (
            score.isfinite() if self.score == "label" else torch.ones_like(score, dtype=torch.bool)
        )
        if not use.any():
            raise UserError("there are no images to train on: rate some")
        found = score[use]
        # NaN is not between them either
        if not ((found >= 0) & (found <= 1)).all():
            raise UserError(
                f"rewards from {found.min():.3g} to {found.max():.3g}, but nft needs them in "
                "[0, 1]; choose a run of fit"
            )
        if self.centred:
            found = within_prompts(found, data.text[: data.n_own][use])
        return data.own[use], found
