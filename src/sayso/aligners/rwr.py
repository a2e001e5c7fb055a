"""Reward-weighted fine-tuning: the paper's method."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sayso.aligners import Aligner, Batch, Context, stratified
from sayso.base.errors import UserError
from sayso.data.rows import TrainingRows
from sayso.families import Policy


def reward_weighted_loss(
    error: Float[Tensor, " b"], weight: Float[Tensor, " b"]
) -> Float[Tensor, " b"]:
    """The denoising error of each image times its weight.

    L = E_own[r · error] + β · E_pretraining[error], where the error stands in for −log p. Own
    rows carry r, pre-training rows β, each times the batch's size over the number of its kind, so
    that the mean over the batch is L however the batch is cut.

    Args:
        error: mean squared prediction error per image, ≥ 0.
        weight: weight per image, ≥ 0; negative ones would drive the error up without bound.
    Returns: loss per image, not reduced; smaller is better.
    Source: Lee et al. 2023, arXiv 2302.12192, Sec. 3.3.
    """
    return weight * error


def row_weights(
    own: Float[Tensor, " n"], n_pretraining: int, pretraining_weight: float
) -> Float[Tensor, " b"]:
    """Weights of a batch of own rows followed by pre-training rows; see `reward_weighted_loss`."""
    b = len(own) + n_pretraining
    natural = torch.full((n_pretraining,), pretraining_weight * b / max(n_pretraining, 1))
    return torch.cat([own * (b / len(own)), natural])


LEAST_MEAN = 0.1
"""A prompt whose images have a smaller mean weight is not lifted further: it has no good image."""


def even_over_prompts(
    weight: Float[Tensor, " n"], prompt: Int[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """Weights after which every prompt counts alike, however many of its images are good.

    Each weight is divided by the mean weight of its prompt (by 0.1 at least) and multiplied by the
    mean of all, which stays nearly the same. Without it easy prompts, which have more good images,
    pull the model towards what they ask for.

    Args:
        weight: weight per image, ≥ 0.
        prompt: which prompt each image was drawn for.
    """
    _, place = prompt.unique(return_inverse=True)
    n = torch.bincount(place)
    mean = torch.zeros(len(n)).index_add(0, place, weight) / n
    return weight / mean.clamp(min=LEAST_MEAN)[place] * weight.mean()


@dataclass(frozen=True)
class RewardWeighted(Aligner):
    """Fine-tune on own images, each weighted by its reward, and on pre-training images.

    Source: Lee et al. 2023, arXiv 2302.12192, Sec. 3.3.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"data", "reward", "pretraining"})

    weight: Literal["reward", "mark", "product"] = "reward"
    """Weight of an own image: the learned reward (the paper's r); people's mark, share of good;
    or their product, which leaves out what people called bad."""
    unrated: bool = True
    """Use images that nobody rated too, weighted by the reward alone (the paper's 16K)."""
    reward_threshold: float = 0.0
    """Weights below it count as 0; 0 = the paper's soft weights, where bad images keep a little."""
    draw: Literal["uniform", "reward"] = "uniform"
    """How own images are drawn: all alike and then weighted, as the paper does; or in proportion
    to their weight and then all with the mean weight: the same expected gradient, and no step is
    spent on images that hardly count."""
    even: bool = False
    """Weight images so that every prompt counts alike; without it, as in the paper, a prompt counts
    as much as its images are good."""
    pretraining_weight: float = 0.15
    """Weight of the loss on pre-training images; the paper's beta, which it does not give."""
    pretraining_fraction: float = 0.125
    """Share of a batch that is pre-training images; the paper's is 0.5."""
    prompt_dropout: float = 0.1
    """Share of rows trained with the empty prompt, for classifier-free guidance; not given by the
    paper."""

    def __post_init__(self) -> None:
        for name in ("prompt_dropout", "pretraining_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} {getattr(self, name)} is not in [0, 1); try 0.1")
        for name in ("reward_threshold", "pretraining_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"{name} {getattr(self, name)} must be at least 0")

    def required(self) -> frozenset[str]:
        unused = {"pretraining"} if not self._has_pretraining else set[str]()
        if self.weight == "mark":
            unused.add("reward")
        elif self.weight == "reward" and self.unrated:
            unused.add("data")
        return self.needs - unused

    @property
    def _has_pretraining(self) -> bool:
        return self.pretraining_weight > 0 and self.pretraining_fraction > 0

    def batches(self, ctx: Context) -> Iterator[Batch]:
        own, weights = self.weighted_rows(ctx.rows)
        natural = ctx.rows.pretraining
        n_natural = self._n_pretraining(ctx.batch_size)
        for step in ctx.steps:
            generator = ctx.generator(step)
            chosen, weight = self._draw(weights, ctx.batch_size - n_natural, generator)
            indices = own[chosen]
            if n_natural:
                more = stratified(torch.ones(len(natural)), n_natural, generator)
                indices = torch.cat([indices, natural[more]])
            row_weight = row_weights(weight, n_natural, self.pretraining_weight)
            yield ctx.denoising_batch(indices, row_weight, generator, self.prompt_dropout)

    def loss(self, policy: Policy, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        error = policy.denoising_error(batch.latents, batch.cond, batch.t, batch.noise)
        return reward_weighted_loss(error, batch.weight).mean(), {"error": error.mean()}

    def weighted_rows(self, rows: TrainingRows) -> tuple[Tensor, Tensor]:
        """Indices of the own images that take part, and their weights.

        Raises: UserError: if a reward is negative or not finite, or no image takes part.
        """
        mark, reward = rows.label[: rows.n_own], rows.reward[: rows.n_own]
        rated = mark.isfinite()
        weight = _weight(self.weight, mark, reward)
        use = rated if not self.unrated or self.weight == "mark" else torch.ones_like(rated)
        _check_weights(weight[use])
        cut = torch.where(weight < self.reward_threshold, 0.0, weight)
        if self.even:
            cut[use] = even_over_prompts(cut[use], rows.text[: rows.n_own][use])
        return rows.own[use], cut[use]

    def _n_pretraining(self, batch_size: int) -> int:
        """Pre-training rows in a batch: at least one if any, and never all."""
        if not self._has_pretraining:
            return 0
        n = max(1, round(self.pretraining_fraction * batch_size))
        if n >= batch_size:
            raise UserError(
                f"pretraining_fraction {self.pretraining_fraction} leaves no own image in a batch "
                f"of {batch_size}; give a smaller fraction or a larger batch_size"
            )
        return n

    def _draw(
        self, weights: Tensor, count: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Own rows and the weights they take into the batch."""
        if self.draw == "uniform" or weights.sum() == 0:
            chosen = stratified(torch.ones_like(weights), count, generator)
            return chosen, weights[chosen]
        return stratified(weights, count, generator), weights.mean().expand(count)


def _weight(kind: str, mark: Tensor, reward: Tensor) -> Tensor:
    match kind:
        case "mark":
            return mark
        case "product":
            return reward * torch.where(mark.isfinite(), mark, 1.0)
        case _:
            return reward


def _check_weights(weight: Tensor) -> None:
    if not len(weight):
        raise UserError("no image takes part: rate some, or leave out --no-unrated")
    if not weight.isfinite().all():
        raise UserError("a reward is not finite; look at the reward's weights and fit it again")
    if (weight < 0).any():
        raise UserError(
            f"the smallest reward is {weight.min():.3g}, and a negative weight would push images "
            "away without bound; choose a reward in [0, 1] such as a run of fit"
        )
