"""Comparisons of two models by raters, counted by the paper's rule of two thirds."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy import ndarray

from sayso.base.bootstrap import centred, draws
from sayso.base.types import Comparison
from sayso.metrics import quality as metrics
from sayso.metrics.majority import TWO_THIRDS, is_majority
from sayso.votes.agreement import Votes, collect
from sayso.votes.item_votes import SIDES, ItemVote, Pair, of_comparisons, pair_of, rank

RESAMPLES = 999
_VOTE = {"first": 1, "tie": 0, "second": -1}


def side_by_side(
    comparisons: Iterable[Comparison],
    models: Collection[str],
    prompts: Collection[str],
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Win, tie and lose for each pair of models, question and kind of rater.

    Each row speaks of `first` against `second`: the tuned model against a selection against the
    base. People and simulated raters are never counted together. The intervals beside the shares
    are Wilson's over prompts, for these raters; those under `intervals` also cover the choice of
    raters (see `two_way`).

    Args:
        comparisons: all live votes, without checks of attention.
        models: the models of this evaluation; votes on others are left out.
        prompts: ids of its prompts, likewise.
        seed: of the bootstrap.
    """
    wanted = [
        vote
        for vote in comparisons
        if {vote.left_model, vote.right_model} <= set(models) and vote.prompt_id in prompts
    ]
    found = []
    for simulated in (False, True):
        votes = [v for v in wanted if v.simulated == simulated]
        rows = [
            _row(pair, item_votes, [v for v in votes if pair_of(v) == pair], seed)
            for pair, item_votes in of_comparisons(votes).items()
        ]
        found += sorted(rows, key=_order)
    return found


def _order(row: dict[str, Any]) -> Any:
    first, second = row["first"], row["second"]
    return row["question"], rank(first), -rank(second)[0], second


def _row(
    pair: Pair, item_votes: Sequence[ItemVote], comparisons: Sequence[Comparison], seed: int
) -> dict[str, Any]:
    by_prompt: dict[str, list[int]] = {}
    for vote in item_votes:
        by_prompt.setdefault(vote.prompt, []).append(_VOTE[vote.value])
    counted = metrics.win_tie_lose(list(by_prompt.values()), TWO_THIRDS)
    return {
        **pair._asdict(),
        "simulated": comparisons[0].simulated,
        "raters": len({vote.rater for vote in item_votes}),
        "votes": len(item_votes),
        "set_size": max(len(vote.left_ids) for vote in comparisons),
        "threshold": TWO_THIRDS,
        **asdict(counted),
        "intervals": two_way(collect(item_votes, SIDES), seed=seed),
    }


def two_way(votes: Votes, *, seed: int, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Intervals over raters × prompts of the shares of prompts and of votes.

    `win`, `tie`, `lose`, `undecided`, `net`: of prompts, as in `metrics.win_tie_lose`.
    `preference`: share of votes for the first model, a tie counted half. `over` says what was
    drawn anew.

    Args:
        votes: with the classes first, second and tie, in this order.
    """
    shape = len(SIDES), len(votes.prompts)
    cell = votes.value * shape[1] + votes.prompt[votes.item]

    def shares(raters: ndarray, prompts: ndarray) -> ndarray:
        counts = np.bincount(cell, weights=raters[votes.rater], minlength=shape[0] * shape[1])
        return _shares(counts.reshape(shape), prompts)

    clusters = votes.clusters
    values = shares(np.ones(clusters.raters), np.ones(clusters.prompts))
    drawn = [shares(*weights) for weights in draws(clusters, resamples, seed)]
    rows = np.array(drawn).reshape(-1, len(values))
    names = ("win", "lose", "tie", "undecided", "net", "preference")
    least = np.array([-1.0 if name == "net" else 0.0 for name in names])
    found = centred(values, rows, least, np.ones(len(names)))
    intervals = {name: row.plain() for name, row in zip(names, found, strict=True)}
    return {"over": clusters.drawn, "resamples": resamples, **intervals}


def _shares(counts: ndarray, prompts: ndarray) -> ndarray:
    """The six numbers of `two_way`, from weighted votes [3, p] and weights of prompts [p]."""
    total = counts.sum(0)
    reached = is_majority(counts, total) & (total > 0)
    weight = prompts * (total > 0)
    with np.errstate(invalid="ignore"):
        win, lose, tie = reached @ weight / weight.sum()
        votes = counts @ prompts
        preference = (votes[0] + votes[2] / 2) / votes.sum()
    return np.array([win, lose, tie, 1 - win - lose - tie, win - lose, preference])
