"""Pairs of images of one prompt, one preferred: from comparisons, and from ratings."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sayso.base.types import Comparison, Question, Sample, outcome
from sayso.study.study import Study
from sayso.votes import counted
from sayso.votes.labels import preferences


class Pair(NamedTuple):
    """Ids of two images of one prompt; `certainty` in (1/2, 1] or (0, 1], see `pairs_of`."""

    chosen: str
    rejected: str
    certainty: float


@dataclass(frozen=True)
class Pairs:
    """Preferences between rows of a table: `rows[i]` is (chosen, rejected), `certainty` in (0, 1].

    `prompt` numbers the prompts.
    """

    rows: Int[Tensor, "n 2"]
    certainty: Float[Tensor, " n"]
    prompt: Int[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def even(self) -> Float[Tensor, " n"]:
        """Weights in proportion to certainty, by which every prompt counts alike.

        A prompt with 5 good and 5 bad images has 25 pairs, one with 1 and 9 has 9.
        """
        total = torch.zeros(int(self.prompt.max()) + 1).index_add(0, self.prompt, self.certainty)
        return self.certainty / total[self.prompt]


def pairs_of(
    study: Study,
    samples: Sequence[Sample],
    labels: Mapping[str, float],
    simulated: bool,
    question: Question = "alignment",
) -> list[Pair]:
    """What raters prefer among the samples of each prompt.

    Two images that were compared count as compared: the certainty is the share of the comparisons
    that chose it, ties half; if that is 1/2 there is no preference. Of two that were not, one is
    preferred if its label is above 1/2 and the other's below; the certainty is the chance that the
    one is good and the other bad.

    Args:
        study: has the comparisons; those of sets of several images say nothing of single ones.
        samples: among which.
        labels: sample id → label in [0, 1].
        simulated, question: which votes count.
    """
    ids = {sample.id for sample in samples}
    votes = [c for c in study.feedback.comparisons(simulated) if c.question == question]
    compared = _compared([c for c in votes if {*c.left_ids, *c.right_ids} <= ids])
    found = [pair for pair in map(_preferred, compared, compared.values()) if pair]
    rated = preferences(labels, samples, simulated, question)
    return found + [
        Pair(p.chosen_id, p.rejected_id, p.certainty)
        for p in rated
        if frozenset((p.chosen_id, p.rejected_id)) not in compared
    ]


def _compared(votes: Iterable[Comparison]) -> dict[frozenset[str], dict[str, float]]:
    """Of each pair of images that was compared, how often each was chosen; ties count half."""
    found: dict[frozenset[str], dict[str, float]] = {}
    for vote in votes:
        if len(vote.left_ids) != 1 or len(vote.right_ids) != 1 or vote.value == "skip":
            continue
        if not counted.is_for(vote, "vote"):
            continue
        (left,), (right,) = vote.left_ids, vote.right_ids
        times = found.setdefault(frozenset((left, right)), {left: 0.0, right: 0.0})
        won = {"left": (1.0, 0.0), "right": (0.0, 1.0)}.get(outcome(vote.value), (0.5, 0.5))
        times[left] += won[0]
        times[right] += won[1]
    return found


def _preferred(images: frozenset[str], times: Mapping[str, float]) -> Pair | None:
    rejected, chosen = sorted(images, key=times.__getitem__)
    share = times[chosen] / sum(times.values())
    return Pair(chosen, rejected, share) if share > 1 / 2 else None


def pair_rows(pairs: Sequence[Pair], ids: Sequence[str], texts: Sequence[str]) -> Pairs:
    """The pairs as rows of a table whose n-th row has the n-th id and text."""
    place = {sample_id: i for i, sample_id in enumerate(ids)}
    rows = [(place[chosen], place[rejected]) for chosen, rejected, _ in pairs]
    number = {text: i for i, text in enumerate(dict.fromkeys(texts[a] for a, _ in rows))}
    return Pairs(
        torch.tensor(rows, dtype=torch.long).reshape(-1, 2),
        torch.tensor([certainty for _, _, certainty in pairs]),
        torch.tensor([number[texts[a]] for a, _ in rows], dtype=torch.long),
    )
