"""Comparisons of two models by raters, counted by the paper's rule of two thirds."""

from collections.abc import Collection, Iterable
from dataclasses import asdict
from typing import Any

from sayso import metrics
from sayso.types import Comparison

THRESHOLD = 2 / 3
"""Share of the raters of a prompt that must agree, as in the paper."""


def side_by_side(
    comparisons: Iterable[Comparison], models: Collection[str], prompts: Collection[str]
) -> list[dict[str, Any]]:
    """Win, tie and lose for each pair of models, question and kind of rater.

    Each row speaks of `first` against `second`: the tuned model against a selection against the
    base. People and simulated raters are never counted together.

    Args:
        comparisons: all live votes.
        models: the models of this evaluation; votes on others are left out.
        prompts: ids of its prompts, likewise.
    """
    tables: dict[tuple[str, str, str, bool], list[Comparison]] = {}
    for vote in comparisons:
        if {vote.left_model, vote.right_model} <= set(models) and vote.prompt_id in prompts:
            first, second = sorted((vote.left_model, vote.right_model), key=_rank)
            tables.setdefault((first, second, vote.question, vote.simulated), []).append(vote)
    return [_row(key, tables[key]) for key in sorted(tables, key=_order)]


def _rank(model: str) -> tuple[int, str]:
    """Tuned models come first, then selections, then the base."""
    return (2 if model == "base" else 1 if "@" in model else 0, model)


def _order(key: tuple[str, str, str, bool]) -> Any:
    first, second, question, simulated = key
    return simulated, question, _rank(first), -_rank(second)[0], second


def _row(key: tuple[str, str, str, bool], votes: list[Comparison]) -> dict[str, Any]:
    first, second, question, simulated = key
    by_prompt: dict[str, list[int]] = {}
    for vote in votes:
        by_prompt.setdefault(vote.prompt_id, []).append(_vote(vote, first))
    counted = metrics.win_tie_lose(list(by_prompt.values()), THRESHOLD)
    return {
        "first": first,
        "second": second,
        "question": question,
        "simulated": simulated,
        "raters": len({vote.rater for vote in votes}),
        "votes": len(votes),
        "set_size": max(len(vote.left_ids) for vote in votes),
        "threshold": THRESHOLD,
        **asdict(counted),
    }


def _vote(vote: Comparison, first: str) -> int:
    if vote.value == "tie":
        return 0
    chosen = vote.left_model if vote.value == "left" else vote.right_model
    return 1 if chosen == first else -1
