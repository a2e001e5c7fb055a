"""Ratings that follow from imported comparisons, for rewards that learn from ratings."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from sayso.base.types import Comparison, Question, Rating, Value, digest
from sayso.feedback.store import Recorded
from sayso.votes.counted import counts

ORIGIN = "comparisons"
Key = tuple[str, str, Question, bool]
"""Sample, rater, question, simulated."""


@dataclass(slots=True)
class _Record:
    """One image in one rater's comparisons: won less lost, and the rater's live rating of it."""

    balance: int = 0
    answered_at: float = 0.0
    compared: bool = False
    rating: Rating | None = field(default=None)


def ratings_from_comparisons(votes: Iterable[Recorded]) -> list[Rating]:
    """One rating per rater and image: good if it won more of the rater's comparisons than it lost.

    Bad if it won fewer, skip if as many. The share of good of an image, which `fit` learns, is
    then the share of the raters with whom it won. This makes an absolute statement
    of a relative one: of two fine images the one that lost is called bad.

    Only imported comparisons of single images count. A rater's own rating is left alone; one
    derived earlier is superseded if more comparisons have changed it.

    Args:
        votes: all ratings and comparisons.
    Returns: the ratings to add; none if they are all there.
    """
    records: dict[Key, _Record] = {}
    for found in votes:
        vote = found.vote
        if isinstance(vote, Rating):
            if not counts(found.standing, "opinion"):
                continue
            key = (vote.sample_id, vote.rater, vote.question, vote.simulated)
            records.setdefault(key, _Record()).rating = vote
        elif not counts(found.standing, "vote"):
            continue
        elif vote.shown.get("imported_from") and _tells(vote):
            _count(records, vote)
    found = (_rating(key, record) for key, record in records.items() if record.compared)
    return [rating for rating in found if rating]


def _tells(vote: Comparison) -> bool:
    """Whether something of single images was said."""
    return vote.value != "skip" and len(vote.left_ids) == len(vote.right_ids) == 1


def _count(records: dict[Key, _Record], vote: Comparison) -> None:
    lead = {"left": 1, "right": -1}.get(vote.value, 0)
    for sample_id, won in ((vote.left_ids[0], lead), (vote.right_ids[0], -lead)):
        key = (sample_id, vote.rater, vote.question, vote.simulated)
        record = records.setdefault(key, _Record())
        record.balance += won
        record.compared = True
        record.answered_at = max(record.answered_at, vote.answered_at)


def _rating(key: Key, record: _Record) -> Rating | None:
    sample_id, rater, question, simulated = key
    value: Value = "good" if record.balance > 0 else "bad" if record.balance < 0 else "skip"
    old = record.rating
    if old and (old.value == value or old.shown.get("derived_from") != ORIGIN):
        return None
    supersedes = old.id if old else None
    return Rating(
        id=digest([ORIGIN, *key, value, supersedes]),
        sample_id=sample_id,
        rater=rater,
        question=question,
        value=value,
        simulated=simulated,
        shown_at=record.answered_at,
        answered_at=record.answered_at,
        shown={"derived_from": ORIGIN},
        supersedes=supersedes,
    )
