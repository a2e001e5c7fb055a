"""One row a rater: number, speed, answers, agreement with the others, checks, and who is careless.

numpy alone, so that the small install can use it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import NamedTuple

import numpy as np
from numpy import ndarray

from sayso.votes.agreement import Ballot, Votes
from sayso.votes.bootstrap import Interval
from sayso.votes.dawid_skene import DawidSkene

LEAST_SHARE_RIGHT = 2 / 3
"""Of checks; who passes fewer is careless."""
LEAST_GOLD, LEAST_ATTENTION = 5, 3
"""Checks of each kind before the rule speaks."""
LEAST_SECONDS = 0.4
"""No one sees a picture, decides and presses a key in less as a rule."""
LEAST_TIMED = 20
"""Timed votes before the rule on speed speaks."""

RULES: Mapping[str, str] = {
    "guesses": "skill, with the upper end of its 95 % interval, below half the median rater's",
    "attention": f"fewer than 2 of 3 attention checks right (of at least {LEAST_ATTENTION})",
    "gold": f"fewer than 2 of 3 items with a known answer right (of at least {LEAST_GOLD})",
    "hurries": f"median time below {LEAST_SECONDS} s (over at least {LEAST_TIMED} votes)",
}
"""Name of each rule by which a rater is called careless → what it says."""


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
        votes: all of them but attention checks; `shares` are those of each answer.
        seconds: median time of a vote; None if not recorded.
        shared: judgements on items that others judged too; the next two rest on them.
        agreement: share of the others' judgements on the same items that are the same.
        kappa: the same beyond chance: 0 is what answering without looking gives.
        confusion: true class → answer → chance, by Dawid and Skene, with the prior's few votes.
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
    ballots: Sequence[Ballot], votes: Votes, judged: Votes, model: DawidSkene | None
) -> list[RaterRow]:
    """A row for each rater of `votes`, in the order of their names.

    Args:
        ballots: all votes on the question, with times and checks.
        votes: the same as arrays, without attention checks.
        judged: the same without skips.
        model: fitted to `judged`; None leaves skill and confusion out.
    """
    by_rater: dict[str, list[Ballot]] = {}
    for ballot in ballots:
        by_rater.setdefault(ballot.rater, []).append(ballot)
    known = zip(votes.raters, _with_the_rest(judged), _estimates(model, judged), strict=True)
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
        "attention": _fails(row.attention, LEAST_ATTENTION),
        "gold": _fails(row.gold, LEAST_GOLD),
        "hurries": row.seconds is not None
        and row.seconds < LEAST_SECONDS
        and row.votes >= LEAST_TIMED,
    }
    return tuple(name for name, spoken in found.items() if spoken)


def _fails(checks: Checks, least: int) -> bool:
    return checks.n >= least and checks.right < LEAST_SHARE_RIGHT * checks.n - 1e-9


class _Beside(NamedTuple):
    """A rater beside the others: judgements on shared items, agreement, kappa."""

    shared: int
    agreement: float
    kappa: float


def _with_the_rest(judged: Votes) -> list[_Beside]:
    counts, raters = judged.counts(), len(judged.raters)
    others = counts[judged.item]
    own = np.eye(len(judged.classes))[judged.value]
    others = others - own
    kept = others.sum(1) > 0
    others, own, rater = others[kept], own[kept], judged.rater[kept]
    others /= others.sum(1, keepdims=True)
    n, same = _per_rater(np.ones((len(rater), 1)), rater, raters), (own * others).sum(1)
    agreed = _per_rater(same[:, None], rater, raters)
    answers = [_per_rater(columns, rater, raters) for columns in (own, others)]
    with np.errstate(invalid="ignore", divide="ignore"):
        agreement, (mine, theirs) = (agreed / n)[:, 0], (a / n for a in answers)
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


def _estimates(model: DawidSkene | None, judged: Votes) -> list[_Estimate]:
    """Skill and confusion table of each rater."""
    if model is None:
        return [(Interval(math.nan, math.nan, math.nan), {}) for _ in judged.raters]
    values, deviations = model.skill()
    margins = 1.96 * deviations
    ends = zip(
        values.tolist(), (values - margins).tolist(), (values + margins).tolist(), strict=True
    )
    tables = (_named(table, judged.classes) for table in model.confusion)
    return [(Interval(*end), table) for end, table in zip(ends, tables, strict=True)]


def _named(table: ndarray, classes: Sequence[str]) -> dict[str, dict[str, float]]:
    rows = [dict(zip(classes, row, strict=True)) for row in table.tolist()]
    return dict(zip(classes, rows, strict=True))


def _row(
    name: str,
    ballots: Sequence[Ballot],
    classes: Sequence[str],
    beside: _Beside,
    estimate: _Estimate,
) -> RaterRow:
    counted = [b for b in ballots if b.attention is None and b.value in classes]
    times = [b.seconds for b in counted if b.seconds is not None]
    n = len(counted)
    return RaterRow(
        rater=name,
        votes=n,
        seconds=median(times) if times else None,
        shares={c: sum(b.value == c for b in counted) / n if n else math.nan for c in classes},
        shared=beside.shared,
        agreement=beside.agreement,
        kappa=beside.kappa,
        gold=_checks([b.gold for b in ballots]),
        attention=_checks([b.attention for b in ballots]),
        confusion=estimate[1],
        skill=estimate[0],
    )


def _checks(results: Sequence[bool | None]) -> Checks:
    met = [r for r in results if r is not None]
    return Checks(len(met), sum(met))
