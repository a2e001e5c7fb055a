"""Which votes count for what. The one place that decides: every reader of votes names its purpose.

Plain data, no SQL and no numpy; `sayso.feedback.vote_queries` says the same in SQL.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from sayso.base.types import Comparison, Rating

GOLD, ATTENTION = "gold", "attention"
"""Keys of `shown`, written by whoever puts the vote, never seen by the rater before it.

The value under either is the vote expected: good or bad for a rating, left, right or tie for a
comparison. A gold item is an ordinary one whose right vote is known; votes on it count like others.
An attention item only checks that the rater looks; its votes count for nothing else.
"""
ADJUDICATION = "adjudication"
"""Key of `shown`: true for a reviewer's decision on what raters disagree about.

It is made where they disagree, so it is not one more vote.
"""
STRUCK = "struck"
"""Key of `shown` that the store adds when it reads: an admin has struck the check as wrong."""

Trait = Literal[
    "superseded", "excluded", "attention", "struck", "decision", "surplus", "everyone", "skip"
]

Purpose = Literal["label", "decision", "vote", "check", "opinion", "place", "work"]


@dataclass(frozen=True, slots=True)
class Standing:
    """What decides whether a vote counts.

    Attributes:
        superseded: replaced by another vote, or taken back.
        excluded: of a rater whose votes an admin has excluded.
        gold, attention: the vote is on a check of this kind.
        struck: an admin has struck the check.
        decision: a reviewer's, on a disagreement.
        surplus: the item had its raters already, or the task was closed.
        everyone: the item is asked of everyone and has no places to fill, as checks are.
        skip: says nothing of the item.
    """

    superseded: bool = False
    excluded: bool = False
    gold: bool = False
    attention: bool = False
    struck: bool = False
    decision: bool = False
    surplus: bool = False
    everyone: bool = False
    skip: bool = False


class Rule(NamedTuple):
    """A vote counts if it has none of the traits `without` and, where `of` names any, one of those.

    The order of `without` is the order in which reasons are given.
    """

    without: tuple[Trait, ...]
    of: tuple[Literal["gold", "attention", "decision"], ...] = ()


RULES: Mapping[Purpose, Rule] = {
    # good, bad, left, right and tie: what labels are made of (`fit`, `align`, `evaluate` by people)
    "label": Rule(("superseded", "excluded", "attention", "decision", "skip")),
    # an image's label whatever the raters said, and nothing else
    "decision": Rule(("superseded", "excluded", "attention", "skip"), ("decision",)),
    # in statistics: agreement, rates, standings, balance, numbers of ratings
    "vote": Rule(("superseded", "excluded", "attention", "decision")),
    # whether a rater looks: right or wrong
    "check": Rule(("superseded", "excluded", "struck", "decision"), (GOLD, ATTENTION)),
    # what a person thinks of an item, so that the item is shown to that person nowhere else
    "opinion": Rule(("superseded", "attention", "decision")),
    # one of the raters that an item wants: overlap and progress of the task that asked
    "place": Rule(("superseded", "excluded", "attention", "decision", "surplus", "everyone")),
    # what a rater has done, counted or not
    "work": Rule(("superseded", "decision")),
}


def counts(vote: Standing, purpose: Purpose) -> bool:
    """Whether a vote counts for a purpose."""
    return why_not(vote, purpose) is None


def why_not(vote: Standing, purpose: Purpose) -> str | None:
    """The first trait that leaves a vote out, "ordinary" if it lacks one; None if it counts."""
    rule = RULES[purpose]
    reason = next((trait for trait in rule.without if getattr(vote, trait)), None)
    if reason is None and rule.of and not any(getattr(vote, trait) for trait in rule.of):
        return "ordinary"
    return reason


def standing(
    vote: Rating | Comparison, *, superseded: bool = False, excluded: bool = False
) -> Standing:
    """What a vote itself tells; the arguments are what only the store knows."""
    struck = bool(vote.shown.get(STRUCK))
    return standing_of(
        vote.shown, vote.value, superseded=superseded, excluded=excluded, struck=struck
    )


def standing_of(
    shown: Mapping[str, object],
    value: str,
    *,
    superseded: bool = False,
    excluded: bool = False,
    struck: bool = False,
) -> Standing:
    """As `standing`, from what was shown and the value."""
    return Standing(
        superseded=superseded,
        excluded=excluded,
        gold=shown.get(GOLD) is not None,
        attention=shown.get(ATTENTION) is not None,
        struck=struck,
        decision=bool(shown.get(ADJUDICATION)),
        surplus=bool(shown.get("surplus")),
        everyone=shown.get("overlap_target") == 0,
        skip=value == "skip",
    )


def is_right(value: str, expected: str) -> bool | None:
    """Whether a vote on a check is the one expected; None if it speaks neither for nor against.

    In a check of comparisons one set shows something else than the prompt. That the other one does
    is likely, not sure, so a rater who finds both bad, or sees no difference, may well have looked.
    """
    if expected in ("left", "right") and value in ("tie", "both_bad", "skip"):
        return None
    return value == expected


def is_for(vote: Rating | Comparison, purpose: Purpose) -> bool:
    """Whether a live vote of a rater who is not excluded counts for a purpose."""
    return counts(standing(vote), purpose)


WHY_NOT: Mapping[str, str] = {
    "excluded": "of raters whom an admin has excluded",
    "attention": "on attention checks",
    "decision": "reviewers' decisions, which set labels",
}
"""Why a live vote does not count as one, in words."""


def in_words(left_out: Mapping[str, int]) -> str:
    """Votes left out, such as "12 of raters whom an admin has excluded"; "" for none."""
    return ", ".join(f"{n} {WHY_NOT[why]}" for why, n in left_out.items())


def left_out(votes: Iterable[Standing], purpose: Purpose) -> dict[str, int]:
    """How many votes do not count for a purpose, by the first trait that speaks against each."""
    reasons = Counter(why_not(vote, purpose) for vote in votes)
    return {str(reason): n for reason, n in sorted(reasons.items(), key=str) if reason is not None}
