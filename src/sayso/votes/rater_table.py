"""One row per rater: votes, speed, agreement with the others, checks, and who is careless.

numpy alone, so that the small install can use it.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import NamedTuple

import numpy as np
from numpy import ndarray

from sayso.base.bootstrap import Interval
from sayso.votes.agreement import Votes
from sayso.votes.dawid_skene import DawidSkene
from sayso.votes.item_votes import ItemVote

LEAST_SHARE_RIGHT = 2 / 3
"""Of checks; who passes fewer, and not by bad luck, is careless."""
USUAL_SHARE_RIGHT, BAD_LUCK = 0.9, 1 / 1000
"""It may be bad luck if one who passes the usual share would pass so few more often than this."""
LEAST_SECONDS = 0.4
"""No one sees a picture, decides and presses a key in less as a rule."""
LEAST_TIMED = 20
"""Timed votes before the rule on speed speaks."""

_TOO_FEW = (
    "fewer than 2 of 3 {} right, so few that it happens at most once in 1,000 times to a rater "
    "who gets 9 of 10 right"
)
RULES: Mapping[str, str] = {
    "guesses": "upper end of the skill's 95 % interval below half the median rater's skill",
    "attention": _TOO_FEW.format("attention checks"),
    "gold": _TOO_FEW.format("items whose right vote is known"),
    "hurries": f"median time below {LEAST_SECONDS} s (over at least {LEAST_TIMED} votes)",
}
"""Name of each rule by which a rater is called careless → what it says."""


def in_order(rater: str) -> list[tuple[int, str]]:
    """Sorts names with numbers as people count: rater-2 before rater-10."""
    parts = re.findall(r"[0-9]+|[^0-9]+", rater)
    return [(int(p), "") if p[0].isdecimal() else (-1, p) for p in parts]


class Checks(NamedTuple):
    """How many checks a rater met, and how many it passed."""

    n: int
    right: int

    @property
    def share(self) -> float | None:
        """The share passed; None if there were none."""
        return self.right / self.n if self.n else None


@dataclass(frozen=True, slots=True)
class RaterRow:
    """What is known of one rater on one question.

    Attributes:
        votes: all of them but attention checks; `shares` are those of each value.
        seconds: median time of a vote; None if not recorded.
        shared: votes, skips apart, on items that others voted on too; the next two rest on them.
        agreement: share of the others' votes on the same items that are the same.
        kappa: the same beyond chance: 0 is what voting without looking gives.
        confusion: true class → value → chance, by Dawid and Skene, with the prior's few votes.
        skill: how far above guessing (see `DawidSkene.skill`), with a 95 % interval.
        careless: the names of the `RULES` that speak against the rater.
    """

    rater: str
    votes: int
    seconds: float | None
    shares: Mapping[str, float]
    shared: int
    agreement: float
    kappa: float
    gold: Checks
    attention: Checks
    confusion: Mapping[str, Mapping[str, float]]
    skill: Interval
    careless: tuple[str, ...] = ()


def rater_table(
    item_votes: Sequence[ItemVote], votes: Votes, unskipped: Votes, model: DawidSkene | None
) -> list[RaterRow]:
    """A row for each rater of `votes`, in the order of their names.

    Args:
        item_votes: all votes on the question, with times and checks.
        votes: the same as arrays, without attention checks.
        unskipped: the same without skips.
        model: fitted to `unskipped`; None leaves skill and confusion out.
    """
    by_rater: dict[str, list[ItemVote]] = {}
    for vote in item_votes:
        by_rater.setdefault(vote.rater, []).append(vote)
    known = zip(votes.raters, _with_the_rest(unskipped), _estimates(model, unskipped), strict=True)
    rows = [
        _row(name, by_rater[name], votes.classes, beside, estimate)
        for name, beside, estimate in known
    ]
    usual = [row.skill.value for row in rows if math.isfinite(row.skill.value)]
    return [replace(row, careless=careless(row, usual)) for row in rows]


def careless(row: RaterRow, skills: Sequence[float]) -> tuple[str, ...]:
    """The `RULES` that speak against a rater.

    Args:
        skills: of all raters; with fewer than three there is no usual skill to compare with.
    """
    guesses = len(skills) >= 3 and row.skill.high < median(skills) / 2
    found = {
        "guesses": guesses and row.shared > 0,
        "attention": fails(row.attention),
        "gold": fails(row.gold),
        "hurries": row.seconds is not None
        and row.seconds < LEAST_SECONDS
        and row.votes >= LEAST_TIMED,
    }
    return tuple(name for name, spoken in found.items() if spoken)


def fails(checks: Checks) -> bool:
    """Whether too few checks were passed: in share, and for bad luck (binomial lower tail).

    With three checks or more it can be true; by the share alone, one in twelve raters who are right
    on nine of ten would fail the first five.
    """
    n, right = checks
    luck, chance = 0.0, (1 - USUAL_SHARE_RIGHT) ** n
    for k in range(right + 1):
        luck += chance
        chance *= (n - k) / (k + 1) * USUAL_SHARE_RIGHT / (1 - USUAL_SHARE_RIGHT)
    return right < LEAST_SHARE_RIGHT * n - 1e-9 and luck <= BAD_LUCK + 1e-9


class _Beside(NamedTuple):
    """A rater beside the others: votes on shared items, agreement, kappa."""

    shared: int
    agreement: float
    kappa: float


def _with_the_rest(unskipped: Votes) -> list[_Beside]:
    counts, raters = unskipped.counts(), len(unskipped.raters)
    others = counts[unskipped.item]
    own = np.eye(len(unskipped.classes))[unskipped.value]
    others = others - own
    kept = others.sum(1) > 0
    others, own, rater = others[kept], own[kept], unskipped.rater[kept]
    others /= others.sum(1, keepdims=True)
    n, same = _per_rater(np.ones((len(rater), 1)), rater, raters), (own * others).sum(1)
    agreed = _per_rater(same[:, None], rater, raters)
    totals = [_per_rater(columns, rater, raters) for columns in (own, others)]
    with np.errstate(invalid="ignore", divide="ignore"):
        agreement, (mine, theirs) = (agreed / n)[:, 0], (a / n for a in totals)
        chance = (mine * theirs).sum(1)
        kappa = np.where(chance < 1 - 1e-12, (agreement - chance) / (1 - chance), math.nan)
    columns = n[:, 0].astype(int).tolist(), agreement.tolist(), kappa.tolist()
    return [_Beside(*row) for row in zip(*columns, strict=True)]


def _per_rater(columns: ndarray, rater: ndarray, raters: int) -> ndarray:
    """Sums of the columns [v, k] over each rater's votes, [r, k]."""
    return np.stack(
        [np.bincount(rater, weights=column, minlength=raters) for column in columns.T], axis=1
    )


_Estimate = tuple[Interval, Mapping[str, Mapping[str, float]]]


def _estimates(model: DawidSkene | None, unskipped: Votes) -> list[_Estimate]:
    """Skill and confusion table of each rater."""
    if model is None:
        return [(Interval(math.nan, math.nan, math.nan), {}) for _ in unskipped.raters]
    values, deviations = model.skill()
    margins = 1.96 * deviations
    ends = zip(
        values.tolist(), (values - margins).tolist(), (values + margins).tolist(), strict=True
    )
    tables = (_named(table, unskipped.classes) for table in model.confusion)
    return [(Interval(*end), table) for end, table in zip(ends, tables, strict=True)]


def _named(table: ndarray, classes: Sequence[str]) -> dict[str, dict[str, float]]:
    rows = [dict(zip(classes, row, strict=True)) for row in table.tolist()]
    return dict(zip(classes, rows, strict=True))


def _row(
    name: str,
    item_votes: Sequence[ItemVote],
    classes: Sequence[str],
    beside: _Beside,
    estimate: _Estimate,
) -> RaterRow:
    counted = [b for b in item_votes if b.attention is None and b.value in classes]
    times = [b.seconds for b in counted if b.seconds is not None]
    n = len(counted)
    return RaterRow(
        rater=name,
        votes=n,
        seconds=median(times) if times else None,
        shares={c: sum(b.value == c for b in counted) / n for c in classes},
        shared=beside.shared,
        agreement=beside.agreement,
        kappa=beside.kappa,
        gold=_checks([b.gold for b in item_votes]),
        attention=_checks([b.attention for b in item_votes]),
        confusion=estimate[1],
        skill=estimate[0],
    )


def _checks(results: Sequence[bool | None]) -> Checks:
    met = [r for r in results if r is not None]
    return Checks(len(met), sum(met))
