"""Reward-weighted fine-tuning: the paper's method."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sayso.aligners import Aligner, Batch, Work, prompt_means, stratified
from sayso.aligners._limits import refuse_idle, refuse_not_below_one
from sayso.base.errors import UserError
from sayso.base.records import check_choices
from sayso.data.rows import TrainingRows


def reward_weighted_loss(
    error: Float[Tensor, " b"], weight: Float[Tensor, " b"]
) -> Float[Tensor, " b"]:
    """The denoising error of each image times its weight.

    L = E_samples[r · error] + β · E_pretraining[error], where the error stands in for −log p. This
    is the first term; the loop adds the second, for every aligner (`pretraining_weight`).

    Args:
        error: mean squared prediction error per image, ≥ 0.
        weight: weight per image, ≥ 0; negative ones would drive the error up without bound.
    Returns: loss per image, not reduced; smaller is better.
    Source: Lee et al. 2023, arXiv 2302.12192, Sec. 3.3.
    """
    return weight * error


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
    return weight / prompt_means(weight, prompt).clamp(min=LEAST_MEAN) * weight.mean()


@dataclass(frozen=True)
class RewardWeighted(Aligner):
    """Fine-tune on the model's own samples, each weighted by its reward.

    Source: Lee et al. 2023, arXiv 2302.12192, Sec. 3.3.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"data", "reward"})
    defaults: ClassVar[Mapping[str, float]] = {"pretraining_weight": 0.15}

    weight: Literal["reward", "label", "product"] = "reward"
    """Weight of a sample: reward, the learned reward (the paper's r); label, the share of good
    among people's ratings; or product, both multiplied, which leaves out what people called bad."""
    unrated: bool = True
    """Also use images that nobody rated, weighted by the reward (the paper's 16K)."""
    reward_threshold: float = 0.0
    """Weights below this count as 0; 0 = the paper's soft weights, which keep bad images with a
    small weight."""
    draw: Literal["uniform", "reward"] = "uniform"
    """How samples are drawn: uniform, and weighted in the loss, as in the paper; or reward, in
    proportion to their weight: the same expected gradient, without steps on images that hardly
    count."""
    even: bool = False
    """Give every prompt the same total weight; without it, as in the paper, prompts with better
    images have more weight."""
    prompt_dropout: float = 0.1
    """Share of rows trained with the empty prompt, for classifier-free guidance; not given in the
    paper."""

    def __post_init__(self) -> None:
        check_choices(self)
        if self.weight == "label":
            refuse_idle(self, "with --weight label, which unrated images lack", "unrated")
        refuse_not_below_one(self, prompt_dropout=0.1)
        if not 0 <= self.reward_threshold < float("inf"):
            raise UserError(f"reward_threshold {self.reward_threshold} must be at least 0")

    def required(self) -> frozenset[str]:
        unused = set[str]()
        if self.weight == "label":
            unused.add("reward")
        elif self.weight == "reward" and self.unrated:
            unused.add("data")
        return self.needs - unused

    def batches(self, work: Work) -> Iterator[Batch]:
        rows, weights = self.weighted_rows(work.data)
        for step in work.steps:
            generator = work.generator(step)
            chosen, weight = self._draw(weights, work.batch_size, generator)
            yield work.denoising_batch(
                rows[chosen], generator, prompt_dropout=self.prompt_dropout, weight=weight
            )

    def loss(self, work: Work, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        error = work.error(batch)
        return reward_weighted_loss(error, batch["weight"]).mean(), {"error": error.mean()}

    def weighted_rows(self, rows: TrainingRows) -> tuple[Tensor, Tensor]:
        """Indices of the samples that take part, and their weights.

        Raises: UserError: if a reward is negative or not finite, or no image takes part.
        """
        label, reward = rows.label[: rows.n_own], rows.reward[: rows.n_own]
        rated = label.isfinite()
        weight = _weight(self.weight, label, reward)
        use = rated if not self.unrated or self.weight == "label" else torch.ones_like(rated)
        _check_weights(weight[use])
        cut = torch.where(weight < self.reward_threshold, 0.0, weight)
        if self.even:
            cut[use] = even_over_prompts(cut[use], rows.text[: rows.n_own][use])
        return rows.own[use], cut[use]

    def _draw(
        self, weights: Tensor, count: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Which rows, and the weights they take into the batch."""
        if self.draw == "uniform" or weights.sum() == 0:
            chosen = stratified(torch.ones_like(weights), count, generator)
            return chosen, weights[chosen]
        return stratified(weights, count, generator), weights.mean().expand(count)


def _weight(kind: str, label: Tensor, reward: Tensor) -> Tensor:
    match kind:
        case "label":
            return label
        case "product":
            return reward * torch.where(label.isfinite(), label, 1.0)
        case _:
            return reward


def _check_weights(weight: Tensor) -> None:
    if not len(weight):
        raise UserError("there are no images to train on: rate some, or omit --no-unrated")
    if not weight.isfinite().all():
        raise UserError("a reward is not finite; look at the reward's weights and fit it again")
    if (weight < 0).any():
        raise UserError(
            f"the smallest reward is {weight.min():.3g}, and a negative weight would push images "
            "away without bound; choose a reward in [0, 1] such as a run of fit"
        )
