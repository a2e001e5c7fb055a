"""Listwise regression: all rated images of a prompt at once, each to a gain of its own."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sayso.aligners import Aligner, Batch, Work, stratified
from sayso.aligners._limits import refuse_not_below_one
from sayso.aligners._scores import Score, needs_of, scores
from sayso.base.errors import UserError
from sayso.base.records import check_choices


def list_advantages(scores: Float[Tensor, "n k"], temperature: float) -> Float[Tensor, "n k"]:
    """What share of a list's attention each image should have, above or below an equal one.

    a = softmax(scores / temperature) − 1/k; each list sums to 0, and is 0 if all scores are equal.

    Args:
        scores: of k images of each of n prompts.
        temperature: above 0; small values give all to the best image.
    """
    return (scores / temperature).softmax(1) - 1 / scores.shape[1]


def listwise_loss(
    gain: Float[Tensor, "n k"], advantage: Float[Tensor, "n k"], beta: float
) -> Float[Tensor, " n"]:
    """How far the gains of a list are from where their advantages want them.

    L = Σ (β/2 · g² − a · g), whose least is at g = a/β: better images gain and worse ones lose, and
    none without end.

    Args:
        gain: g = reference error − error of the policy, mean over c, h and w, at the same t and
            noise for a list.
        advantage: a, see `list_advantages`.
        beta: the paper's λ, above 0; larger values stay nearer to the start. It belongs to the
            mean: with the sum over c, h and w it is c·h·w times smaller.
    Returns: loss per list, not reduced; 0 at the start.
    Raises: ValueError: if beta ≤ 0.
    Source: LAIR 2026, arXiv 2605.26491. Its constants and weight of t are not published as code;
        here all t count alike.
    """
    if beta <= 0:
        raise ValueError(f"beta {beta} must be above 0")
    return (beta / 2 * gain.square() - advantage * gain).sum(1)


@dataclass(frozen=True)
class Listwise(Aligner):
    """Fine-tune on lists of rated samples of a prompt, in which better images should gain.

    Source: LAIR 2026, arXiv 2605.26491.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"data", "bad", "reward", "reference"})
    defaults: ClassVar[Mapping[str, float]] = {"learning_rate": 2e-5}

    beta: float = 500.0
    """Strength of the pull to the frozen start, the paper's lambda; smaller values move further. It
    applies to the mean squared error over the latents, so it does not change with the image
    size."""
    temperature: float = 0.5
    """How much better images count more than others of their prompt, above 0: small values give all
    to the best."""
    list_size: int = 4
    """Images of a prompt that are compared with each other, 2 or more."""
    score: Score = "label"
    """What says how good an image is: label, the share of good among people's ratings; or reward,
    the learned reward, for images that nobody rated too."""
    prompt_dropout: float = 0.1
    """Share of lists trained with the empty prompt, for classifier-free guidance."""

    def __post_init__(self) -> None:
        check_choices(self)
        for name, advice in {"beta": 500, "temperature": 0.5}.items():
            if not 0 < getattr(self, name) < float("inf"):
                raise UserError(f"{name} {getattr(self, name)} must be above 0; try {advice}")
        if self.list_size < 2:
            raise UserError(f"list_size {self.list_size} is too small; give 2 or more")
        refuse_not_below_one(self, prompt_dropout=0.1)

    @property
    def unit(self) -> int:
        return self.list_size

    def required(self) -> frozenset[str]:
        return needs_of(self.score) | {"reference"}

    def batches(self, work: Work) -> Iterator[Batch]:
        data, score = work.data, scores(work.data, self.score)
        lists = self._lists(data.text[: data.n_own], score)
        alike = torch.ones(len(lists))
        for step in work.steps:
            generator = work.generator(step)
            chosen = stratified(alike, work.batch_size // self.unit, generator)
            rows = torch.cat([self._some(lists[i], generator) for i in chosen])
            advantage = list_advantages(score[rows].reshape(-1, self.unit), self.temperature)
            yield work.denoising_batch(
                rows, generator, prompt_dropout=self.prompt_dropout, unit=self.unit,
                advantage=advantage.flatten(),
            )  # fmt: skip

    def loss(self, work: Work, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        gain = (work.error(batch, "reference") - work.error(batch)).reshape(-1, self.unit)
        advantage = batch["advantage"].reshape(-1, self.unit)
        loss = listwise_loss(gain, advantage, self.beta)
        best, worst = (
            gain.gather(1, place[:, None]).mean()
            for place in (advantage.argmax(1), advantage.argmin(1))
        )
        return loss.mean(), {
            "error": work.error(batch).mean(),
            "gain_best": best,
            "gain_worst": worst,
        }

    def _lists(self, prompt: Int[Tensor, " n"], score: Float[Tensor, " n"]) -> list[Tensor]:
        """The scored images of each prompt whose images differ and are enough for a list.

        Raises: UserError: if there are none.
        """
        scored = score.isfinite().nonzero().flatten()
        lists = [scored[prompt[scored] == p] for p in prompt[scored].unique()]
        found = [
            rows for rows in lists
            if len(rows) >= self.list_size and score[rows].min() < score[rows].max()
        ]  # fmt: skip
        if not found:
            raise UserError(
                f"no prompt has {self.list_size} images of different quality; rate more images, or "
                "give a smaller --list-size"
            )
        return found

    def _some(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        return rows[torch.randperm(len(rows), generator=generator)[: self.list_size]]
