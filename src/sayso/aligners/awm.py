"""Advantage-weighted matching: the denoising error, weighted by how much better an image is."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sayso.aligners import Batch, Work, means_of
from sayso.aligners._limits import (
    refuse_idle,
    refuse_not_below_one,
    refuse_not_positive,
)
from sayso.aligners._online import OLD, Online, denoising_rollouts
from sayso.aligners._policy_loss import clipped_policy_loss, was_clipped
from sayso.base.errors import UserError
from sayso.base.records import check_choices
from sayso.families import mean_squared_error

Weighting = Literal["error", "t", "equal"]
FLOOR = 1e-5
"""Least root of an error that a row is divided by."""


def time_weights(
    weighting: Weighting, t: Float[Tensor, " b"], old_error: Float[Tensor, " b"]
) -> Float[Tensor, " b"]:
    """w, what each row counts.

    Args:
        weighting: error = 1/√e_old, so that all times count about alike; t; or equal = 1.
        old_error: e_old, of the model that drew the images; without gradient.
    """
    match weighting:
        case "error":
            return 1 / old_error.sqrt().clamp(min=FLOOR)
        case "t":
            return t
        case "equal":
            return torch.ones_like(t)


def matching_ratio(
    error: Float[Tensor, " b"], old_error: Float[Tensor, " b"], weight: Float[Tensor, " b"]
) -> Float[Tensor, " b"]:
    """ρ = exp(−w · (e − e_old)): how much likelier an image became, by its denoising errors.

    At e = e_old the gradient of A · ρ is that of −A · w · e, an ordinary denoising loss with the
    weight A · w.

    Source: AWM 2025, arXiv 2509.25050.
    """
    return (-weight * (error - old_error)).exp()


def group_weights(
    rise: Float[Tensor, "n g"], advantage: Float[Tensor, "n g"], beta: float
) -> Float[Tensor, " n"]:
    """W = σ(β · mean of A · (e − e_ref)) of each group: near 0 where it has learned enough.

    It is 1/2 at the start, and falls as the errors of better images fall and those of worse ones
    rise. It has no gradient.

    Args:
        rise: e − e_ref, above the frozen start's error at the same t and noise.
        advantage: A.
        beta: β, above 0, for the mean over c, h and w; with the sum it is c·h·w times smaller.
    Source: DGPO 2025, arXiv 2510.08425.
    """
    return (beta * (advantage * rise.detach()).mean(1)).sigmoid()


@dataclass(frozen=True)
class AdvantageWeighted(Online):
    """Draw images, reward them, and fit the better of a prompt more closely and the worse less.

    Source: AWM 2025, arXiv 2509.25050; weights of groups: DGPO 2025, arXiv 2510.08425.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"reward", "rollouts", "old", "reference"})

    weighting: Weighting = "error"
    """What each row counts: error, so that all times of drawing count about alike; t, more where
    there is more noise, as in the paper; or equal."""
    clip_range: float = 1.0
    """How much more or less likely an image may become until the next rollout. It applies to the
    mean squared error over the latents."""
    old_weight: float = 1.0
    """Weight of the mean squared difference between the predictions of the model and of the older
    self that drew the images; 0 = off."""
    groups: bool = False
    """Weigh each group by how much is left to learn of it, and give its images the same time and
    noise, as in DGPO."""
    beta: float = 100.0
    """With groups: how soon a group has been learned from enough. It applies to the mean squared
    error over the latents, so it does not change with the image size."""
    times_per_image: int = 4
    """Rows of each image, each at a time and with noise of its own."""
    old_decay: float = 0.3
    """How slowly the older self that draws the images follows the policy. At each rollout it keeps
    step / 1000 of itself, or this where that is more; 0 = the policy itself draws."""
    prompt_dropout: float = 0.1
    """Share of rows trained with the empty prompt, for classifier-free guidance."""

    def __post_init__(self) -> None:
        check_choices(self)
        super().__post_init__()
        refuse_not_positive(self, "clip_range", "beta")
        if not self.groups:
            refuse_idle(self, "without --groups", "beta")
        if not 0 <= self.old_weight < float("inf"):
            raise UserError(f"old_weight {self.old_weight} must be at least 0; try 1")
        refuse_not_below_one(self, old_decay=0.3, prompt_dropout=0.1)

    @property
    def rows_per_image(self) -> tuple[str, int]:
        return "times_per_image", self.times_per_image

    @property
    def unit(self) -> int:
        return self.group_size if self.groups else 1

    def required(self) -> frozenset[str]:
        return self.needs if self.groups else self.needs - {"reference"}

    def batches(self, work: Work) -> Iterator[Batch]:
        return denoising_rollouts(work, self, self.old_decay, self.prompt_dropout, self.unit)

    def loss(self, work: Work, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        error, old_error = work.error(batch), work.error(batch, OLD)
        weight = time_weights(self.weighting, batch["t"], old_error)
        ratio, advantage = matching_ratio(error, old_error, weight), batch["advantage"]
        loss = clipped_policy_loss(ratio, advantage / self.advantage_clip, self.clip_range)
        rise, told = (error - old_error).detach(), dict[str, Tensor]()
        if self.groups:
            grouped = (-1, self.group_size)
            above = (error - work.error(batch, "reference")).reshape(grouped)
            left = group_weights(above, advantage.reshape(grouped), self.beta)
            loss = left.repeat_interleave(self.group_size) * loss
            told["group_weight"] = left.mean()
        if self.old_weight:
            apart = mean_squared_error(work.prediction(batch), work.prediction(batch, OLD))
            loss = loss + self.old_weight * apart
        return loss.mean(), {
            "reward": batch["reward"].mean(),
            "error": error.mean(),
            "norm": work.norm(batch),
            "ratio": ratio.detach().mean(),
            "clipped": was_clipped(ratio.detach(), advantage, self.clip_range).float().mean(),
            **means_of(rise, rise_good=advantage > 0, rise_bad=advantage < 0),
            **told,
        }
