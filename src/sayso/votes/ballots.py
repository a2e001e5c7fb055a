"""Ratings and comparisons reduced to ballots, the form in which statistics take votes."""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from sayso.base.types import Comparison, Question, Rating, digest, outcome
from sayso.votes.counted import ATTENTION, GOLD, counts, is_right, standing

MARKS = ("good", "bad", "skip")
"""Answers to one image; the first two are judgements, a skip is none."""
JUDGING_MARKS = 2
SIDES = ("first", "second", "tie")
"""Answers to a comparison, whichever model stood left: all three are judgements."""

LATENCY_MS = "latency_ms"
"""Key of `shown`: the time the rater took, without the time the page was hidden."""


class Ballot(NamedTuple):
    """One vote, reduced to what statistics need.

    `seconds` it took, None if not recorded. `gold` and `attention`: whether the vote was right, on
    an item with a known answer and on a check of attention; None on other items.
    """

    item: str
    prompt: str
    rater: str
    value: str
    seconds: float | None = None
    gold: bool | None = None
    attention: bool | None = None


class Pair(NamedTuple):
    """Two models that were compared on a question; `first` is the tuned one."""

    first: str
    second: str
    question: Question


def rank(model: str) -> tuple[int, str]:
    """Order of the models: tuned ones come first, then selections, then the base."""
    # without the remark that an image is of an earlier model of that name
    name = model.partition(" (")[0]
    return (2 if name == "base" else 1 if "@" in name else 0, model)


def pair_of(vote: Comparison) -> Pair:
    """The models and the question of a comparison, whichever stood left."""
    first, second = sorted((vote.left_model, vote.right_model), key=rank)
    return Pair(first, second, vote.question)


def item_of(vote: Comparison) -> str:
    """The prompt and the two sets compared, whichever stood left."""
    return digest([vote.prompt_id, *sorted([list(vote.left_ids), list(vote.right_ids)])])


def verdict(vote: Comparison) -> str:
    """Which model of its pair the rater chose: "first", "second" or "tie"; of votes but skips."""
    if outcome(vote.value) == "tie":
        return "tie"
    chosen = vote.left_model if vote.value == "left" else vote.right_model
    return "first" if chosen == pair_of(vote).first else "second"


def judged(comparisons: Iterable[Comparison]) -> Iterator[Comparison]:
    """The comparisons that were not skipped: a skip counts in no statistic of wins."""
    return (vote for vote in comparisons if vote.value != "skip")


def fingerprint(votes: Iterable[Rating | Comparison]) -> str:
    """Changes with every vote; the order does not matter."""
    return digest(sorted(vote.id for vote in votes))


def of_ratings(ratings: Iterable[Rating], prompt_of: Mapping[str, str]) -> list[Ballot]:
    """The ballots of ratings on one question, and the checks of attention, marked as such.

    Args:
        ratings: live ones.
        prompt_of: sample id → prompt id; ratings of other samples are left out.
    """
    found = (
        _ballot(vote, vote.sample_id, prompt_of[vote.sample_id], vote.value)
        for vote in ratings
        if vote.sample_id in prompt_of
    )
    return [ballot for ballot in found if ballot]


def of_comparisons(comparisons: Iterable[Comparison]) -> dict[Pair, list[Ballot]]:
    """The ballots of live comparisons by pair of models and question; an item is a pair of sets.

    Checks of attention are among them, marked as such; skips are not.
    """
    found: dict[Pair, list[Ballot]] = {}
    for vote in judged(comparisons):
        ballot = _ballot(vote, item_of(vote), vote.prompt_id, verdict(vote))
        if ballot:
            found.setdefault(pair_of(vote), []).append(ballot)
    return dict(sorted(found.items(), key=lambda e: (e[0].question, rank(e[0].first), e[0])))


def _ballot(vote: Rating | Comparison, item: str, prompt: str, value: str) -> Ballot | None:
    """None for votes that are neither a ballot nor a check that says something of the rater."""
    known = standing(vote)
    is_check = counts(known, "check")
    if not is_check and not counts(known, "ballot"):
        return None
    asked = [vote.shown.get(check) if is_check else None for check in _CHECKS]
    right = [
        None if expected is None else is_right(vote.value, str(expected)) for expected in asked
    ]
    if known.attention and right[1] is None:
        return None
    return Ballot(item, prompt, vote.rater, value, _seconds(vote), *right)


_CHECKS = (GOLD, ATTENTION)


def _seconds(vote: Rating | Comparison) -> float | None:
    """The time a vote took; None if it was made in no time, as programs do."""
    latency_ms = vote.shown.get(LATENCY_MS)
    if isinstance(latency_ms, int | float):
        return latency_ms / 1000
    return vote.answered_at - vote.shown_at if vote.answered_at > vote.shown_at else None
