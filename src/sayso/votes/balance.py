"""Whether a side was favoured: which model stood left, and which side raters chose.

numpy alone, so that the small install can use it.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy import ndarray

from sayso.base.bootstrap import bootstrap
from sayso.base.types import Comparison, outcome
from sayso.votes.agreement import collect
from sayso.votes.item_votes import ItemVote, item_of, pair_of, without_skips

SUSPECT_BELOW = 0.01
"""p-value under which a side counts as favoured."""
RESAMPLES = 999


def balance(comparisons: Iterable[Comparison], seed: int = 0) -> list[dict[str, Any]]:
    """Test left against right, one row for each kind of rater and question.

    `shown_left`: how often the first model of a pair (the tuned one) stood left; the server or the
    simulation draws the sides, so p under 0.01 means a fault there. `chosen_left`: among the votes
    that were no ties, how often the left side was chosen; p under 0.01, with 1/2 outside the
    interval over raters × prompts, means that raters favour a side. `suspect` names what failed.

    Args:
        comparisons: live votes, without checks of attention.
        seed: of the bootstrap.
    """
    tables: dict[tuple[bool, str], list[Comparison]] = {}
    for vote in without_skips(comparisons):
        tables.setdefault((vote.simulated, vote.question), []).append(vote)
    found = []
    for (simulated, question), votes in sorted(tables.items()):
        shown = _row(votes, [v.left_model == pair_of(v).first for v in votes], seed)
        decided = [v for v in votes if outcome(v.value) != "tie"]
        chosen = _row(decided, [v.value == "left" for v in decided], seed)
        found.append({
            "question": question,
            "simulated": simulated,
            "votes": len(votes),
            "shown_left": shown,
            "chosen_left": chosen,
            "suspect": [
                name
                for name, failed in (
                    ("shown_left", shown["p_value"] < SUSPECT_BELOW),
                    ("chosen_left", chosen["p_value"] < SUSPECT_BELOW and not _covers(chosen)),
                )
                if failed
            ],
        })  # fmt: skip
    return found


def _row(votes: Sequence[Comparison], left: Sequence[bool], seed: int) -> dict[str, Any]:
    n, k = len(votes), sum(left)
    share = _share(votes, left, seed) if n else {"value": None, "low": None, "high": None}
    return {"n": n, "left": k, **share, "p_value": binomial_test(k, n)}


def _share(votes: Sequence[Comparison], left: Sequence[bool], seed: int) -> dict[str, Any]:
    """The share with its interval over raters × prompts."""
    item_votes = [
        ItemVote(item_of(vote), vote.prompt_id, vote.rater, "left" if yes else "right")
        for vote, yes in zip(votes, left, strict=True)
    ]
    found = collect(item_votes, ("left", "right"))

    def statistic(raters: ndarray, prompts: ndarray) -> ndarray:
        weight = raters[found.rater] * prompts[found.prompt[found.item]]
        total = weight.sum()
        return np.array([weight[found.value == 0].sum() / total if total else math.nan])

    return bootstrap(statistic, found.clusters, seed=seed, resamples=RESAMPLES)[0].plain()


def _covers(row: dict[str, Any]) -> bool:
    """1/2 lies in the interval; without one the p-value has to do."""
    return row["low"] is not None and row["low"] <= 0.5 <= row["high"]


def binomial_test(k: int, n: int) -> float:
    """Exact two-sided p-value of k of n under chance 1/2; 1 for n = 0.

    Twice the smaller tail, which is exact because the distribution is symmetric.

    Raises: ValueError: if k is not in [0, n].
    """
    if not 0 <= k <= n:
        raise ValueError(f"{k} of {n}; need 0 ≤ k ≤ n")
    i = np.arange(min(k, n - k))
    # log of C(n, 0), C(n, 1) … by their ratios
    logs = np.concatenate([[0.0], np.cumsum(np.log(n - i) - np.log(i + 1))]) - n * math.log(2)
    return min(1.0, 2 * float(np.exp(logs).sum()))
