"""Labels, what the ratings of one image come to, and preferences between images of a prompt.

numpy alone, so that the small install can use it; loaded when labels are made, because the rating
app, which makes none, shall start fast.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sayso.base.errors import UserError, unknown_name
from sayso.base.types import Preference, Question, Rating, Sample, Value
from sayso.votes import counted
from sayso.votes.item_votes import RATING_VALUES, VALUES_WITHOUT_SKIP, of_ratings

if TYPE_CHECKING:
    from sayso.votes.agreement import Votes

LabelMethod = Literal["share", "majority", "dawid-skene"]
"""How the ratings of several raters become one label."""


def soft_labels(ratings: Iterable[Rating], method: LabelMethod) -> dict[str, float]:
    """Each image's label: how good its raters find it, in [0, 1].

    share: good among good and bad. majority: 1 or 0, and 1/2 for a tie. dawid-skene: the
    probability of good, with every rater's own rates of error learned beside it. Skips count for
    nothing, for who skips could not tell; nor do attention checks. Where a reviewer has decided
    good or bad, the label is 1 or 0 whatever the raters said.

    Args:
        ratings: live ones on one question, all of people or all of simulated raters.
    Returns: sample id → label; images with skips alone have none.
    Raises: UserError: for an unknown method, or dawid-skene where no image has two ratings.
    """
    check_method(method)
    ratings = list(ratings)
    votes = good_and_bad(ratings)
    values = METHODS[method](votes) if len(votes) else []
    labels = dict(zip(votes.items, values, strict=True))
    return labels | {name: float(said == "good") for name, said in decisions(ratings).items()}


def decisions(ratings: Iterable[Rating]) -> dict[str, Value]:
    """Sample id → what a reviewer has decided, good or bad; of several the newest stands.

    Args:
        ratings: live ones on one question, oldest first.
    """
    return {r.sample_id: r.value for r in ratings if counted.is_for(r, "decision")}


def check_method(method: str) -> None:
    """Refuse an unknown way to make labels. Raises: UserError."""
    if method not in METHODS:
        raise unknown_name("labels", method, METHODS)


def good_and_bad(ratings: Iterable[Rating]) -> "Votes":
    """The raters' good and bad ratings as arrays, good first."""
    from sayso.votes.agreement import collect

    kept = [r for r in ratings if counted.is_for(r, "label")]
    alone = {r.sample_id: r.sample_id for r in kept}
    return collect(of_ratings(kept, alone), RATING_VALUES[:VALUES_WITHOUT_SKIP])


def _share(votes: "Votes") -> list[float]:
    counts = votes.counts()
    return (counts[:, 0] / counts.sum(1)).tolist()


def _majority(votes: "Votes") -> list[float]:
    return [0.5 if share == 0.5 else float(share > 0.5) for share in _share(votes)]


def _probability(votes: "Votes") -> list[float]:
    if not (votes.counts().sum(1) > 1).any():
        raise UserError(
            "labels dawid-skene compares raters with each other, but no image has ratings by "
            "two; rate with an overlap of 2 or more (3 is usual), or choose labels share"
        )
    from sayso.votes.dawid_skene import dawid_skene

    return dawid_skene(votes).probabilities[:, 0].tolist()


METHODS: Mapping[str, Callable[["Votes"], list[float]]] = {
    "share": _share,
    "majority": _majority,
    "dawid-skene": _probability,
}


@dataclass(frozen=True, slots=True)
class RatingCounts:
    """What the votes on one image come to: how many raters rated it good or bad, or skipped it.

    `decided` is what a reviewer has decided on their disagreement, good or bad.
    """

    good: int = 0
    bad: int = 0
    skip: int = 0
    decided: Value | None = None

    @property
    def value(self) -> Value:
        """The decision, or else the majority of good and bad; "skip" if there is none."""
        return self.decided or majority(self.good, self.bad)

    @property
    def share(self) -> float | None:
        """1 or 0 if decided, else the share of good among good and bad; None without either."""
        if self.decided:
            return float(self.decided == "good")
        n = self.good + self.bad
        return self.good / n if n else None

    @property
    def agreement(self) -> float | None:
        """Share of the pairs of raters who say the same, skips apart; None with fewer than two."""
        return pairs_alike(self.good, self.bad)


def count_ratings(ratings: Sequence[Rating]) -> dict[str, RatingCounts]:
    """Sample id → what its ratings come to.

    Args:
        ratings: live ones on one question, oldest first.
    """
    votes = Counter((r.sample_id, r.value) for r in ratings if counted.is_for(r, "vote"))
    decided = decisions(ratings)
    return {
        name: RatingCounts(
            votes[name, "good"], votes[name, "bad"], votes[name, "skip"], decided.get(name)
        )
        for name in dict.fromkeys([*(name for name, _ in votes), *decided])
    }


def majority(good: int, bad: int) -> Value:
    """What more ratings say, good or bad; "skip" if neither."""
    if good == bad:
        return "skip"
    return "good" if good > bad else "bad"


def pairs_alike(good: int, bad: int) -> float | None:
    """Share of the pairs of ratings that are equal; None with fewer than two."""
    n = good + bad
    return (good * (good - 1) + bad * (bad - 1)) / (n * (n - 1)) if n > 1 else None


def preferences(
    labels: Mapping[str, float], samples: Sequence[Sample], simulated: bool, question: Question
) -> list[Preference]:
    """Every good image over every bad one of the same prompt.

    Args:
        labels: sample id → label in [0, 1]; above 1/2 is good, below bad, 1/2 neither.
        samples: the images; in their order the preferences come.
        simulated, question: of the ratings behind the labels.
    """
    by_prompt: dict[str, list[Sample]] = {}
    for sample in samples:
        if sample.id in labels:
            by_prompt.setdefault(sample.prompt_id, []).append(sample)
    return [
        Preference(
            prompt, good.id, bad.id, labels[good.id] * (1 - labels[bad.id]), simulated, question
        )
        for prompt, group in by_prompt.items()
        for good in group
        for bad in group
        if labels[good.id] > 0.5 > labels[bad.id]
    ]
