"""Ratings and comparisons in one form, the one that statistics take: a vote on an item."""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from sayso.base.types import Comparison, Question, Rating, digest, outcome
from sayso.votes.counted import ATTENTION, GOLD, counts, is_right, standing

RATING_VALUES = ("good", "bad", "skip")
"""Values of a rating; a skip says nothing of the image."""
VALUES_WITHOUT_SKIP = 2
"""How many of them, from the first, are not skips."""
SIDES = ("first", "second", "tie")
"""Values of a comparison that was not skipped, whichever model was on the left."""

LATENCY_MS = "latency_ms"
"""Key of `shown`: the time the rater took, without the time the page was hidden."""


class ItemVote(NamedTuple):
    """One vote on an item, an image or a pair of sets, with what statistics need.

    `seconds` it took, None if not recorded. `gold` and `attention`: whether the vote was right, on
    an item whose right vote is known and on an attention check; None on other items.
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
    # without the note that an image is of an earlier model of that name
    name = model.partition(" (")[0]
    return (2 if name == "base" else 1 if "@" in name else 0, model)


def pair_of(vote: Comparison) -> Pair:
    """The models and the question of a comparison, whichever was on the left."""
    first, second = sorted((vote.left_model, vote.right_model), key=rank)
    return Pair(first, second, vote.question)


def item_of(vote: Comparison) -> str:
    """The prompt and the two sets compared, whichever was on the left."""
    return digest([vote.prompt_id, *sorted([list(vote.left_ids), list(vote.right_ids)])])


def verdict(vote: Comparison) -> str:
    """Which model of its pair the rater chose: "first", "second" or "tie"; of votes but skips."""
    if outcome(vote.value) == "tie":
        return "tie"
    chosen = vote.left_model if vote.value == "left" else vote.right_model
    return "first" if chosen == pair_of(vote).first else "second"


def without_skips(comparisons: Iterable[Comparison]) -> Iterator[Comparison]:
    """The comparisons that were not skipped: a skip counts in no statistic of wins."""
    return (vote for vote in comparisons if vote.value != "skip")


def fingerprint(votes: Iterable[Rating | Comparison]) -> str:
    """Changes with every vote; the order does not matter."""
    return digest(sorted(vote.id for vote in votes))


def of_ratings(ratings: Iterable[Rating], prompt_of: Mapping[str, str]) -> list[ItemVote]:
    """The votes of ratings on one question, attention checks included and flagged.

    Args:
        ratings: live ones.
        prompt_of: sample id → prompt id; ratings of other samples are left out.
    """
    found = (
        _item_vote(vote, vote.sample_id, prompt_of[vote.sample_id], vote.value)
        for vote in ratings
        if vote.sample_id in prompt_of
    )
    return [vote for vote in found if vote]


def of_comparisons(comparisons: Iterable[Comparison]) -> dict[Pair, list[ItemVote]]:
    """The votes of live comparisons by pair of models and question; an item is a pair of sets.

    Attention checks are included and flagged; skips are left out.
    """
    found: dict[Pair, list[ItemVote]] = {}
    for comparison in without_skips(comparisons):
        item, value = item_of(comparison), verdict(comparison)
        if vote := _item_vote(comparison, item, comparison.prompt_id, value):
            found.setdefault(pair_of(comparison), []).append(vote)
    return dict(sorted(found.items(), key=lambda e: (e[0].question, rank(e[0].first), e[0])))


def _item_vote(vote: Rating | Comparison, item: str, prompt: str, value: str) -> ItemVote | None:
    """None for votes that count neither as a vote nor as a check of the rater."""
    known = standing(vote)
    is_check = counts(known, "check")
    if not is_check and not counts(known, "vote"):
        return None
    asked = [vote.shown.get(check) if is_check else None for check in _CHECKS]
    right = [
        None if expected is None else is_right(vote.value, str(expected)) for expected in asked
    ]
    if known.attention and right[1] is None:
        return None
    return ItemVote(item, prompt, vote.rater, value, _seconds(vote), *right)


_CHECKS = (GOLD, ATTENTION)


def _seconds(vote: Rating | Comparison) -> float | None:
    """The time a vote took; None if it was made in no time, as programs do."""
    latency_ms = vote.shown.get(LATENCY_MS)
    if isinstance(latency_ms, int | float):
        return latency_ms / 1000
    return vote.answered_at - vote.shown_at if vote.answered_at > vote.shown_at else None
