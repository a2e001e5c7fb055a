"""Several models in one order: Bradley–Terry strengths with ties from all comparisons of a study.

numpy alone, so that the small install can use it.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray

from sayso.base.bootstrap import Clusters, Interval, draws, finite, percentiles
from sayso.base.types import Comparison, outcome
from sayso.votes.bradley_terry import PRIOR_SD, connected, davidson, separated
from sayso.votes.item_votes import rank, without_skips

RESAMPLES = 999


class _Games(NamedTuple):
    """Comparisons as arrays [v]: the two models by position, what came of it, and the clusters.

    `outcome` is 0 if the first was chosen, 1 if the second, 2 for a tie.
    """

    models: list[str]
    first: ndarray
    second: ndarray
    outcome: ndarray
    rater: ndarray
    prompt: ndarray
    clusters: Clusters

    def counts(self, weight: ndarray) -> tuple[ndarray, ndarray]:
        """Wins [k, k] and ties [k, k] with a weight for each vote."""
        k = len(self.models)
        cell = (self.outcome * k + self.first) * k + self.second
        found = np.bincount(cell, weights=weight, minlength=3 * k * k).reshape(3, k, k)
        return found[0] + found[1].T, found[2] + found[2].T

    def part(self, models: Sequence[int]) -> "_Games":
        """The comparisons among some of the models."""
        kept = np.isin(self.first, models)
        place = np.zeros(len(self.models), dtype=np.intp)
        place[list(models)] = np.arange(len(models))
        _, rater = np.unique(self.rater[kept], return_inverse=True)
        _, prompt = np.unique(self.prompt[kept], return_inverse=True)
        return _Games(
            [self.models[i] for i in models],
            place[self.first[kept]],
            place[self.second[kept]],
            self.outcome[kept],
            rater,
            prompt,
            Clusters(int(rater.max()) + 1, int(prompt.max()) + 1),
        )


def standings(comparisons: Iterable[Comparison], seed: int = 0) -> list[dict[str, Any]]:
    """Strengths of the models, one table for each kind of rater, question and connected group.

    Models that were never compared, directly or through others, share no table: nothing can be
    said between them. People and simulated raters are never counted together.

    Args:
        comparisons: live votes, without checks of attention.
        seed: of the bootstrap over raters × prompts.
    """
    tables: dict[tuple[bool, str], list[Comparison]] = {}
    for vote in without_skips(comparisons):
        tables.setdefault((vote.simulated, vote.question), []).append(vote)
    found = []
    for (simulated, question), votes in sorted(tables.items()):
        games = _games(votes)
        wins, ties = games.counts(np.ones(len(votes)))
        for group in connected(wins + ties):
            table = _table(games.part(group), seed)
            found.append({"question": question, "simulated": simulated, **table})
    return found


def _games(votes: Sequence[Comparison]) -> _Games:
    models = sorted({m for v in votes for m in (v.left_model, v.right_model)}, key=rank)
    place = {model: i for i, model in enumerate(models)}
    came_of_it = {"left": 0, "right": 1, "tie": 2}
    raters, rater = np.unique([v.rater for v in votes], return_inverse=True)
    prompts, prompt = np.unique([v.prompt_id for v in votes], return_inverse=True)
    return _Games(
        models,
        np.array([place[v.left_model] for v in votes]),
        np.array([place[v.right_model] for v in votes]),
        np.array([came_of_it[outcome(v.value)] for v in votes]),
        rater,
        prompt,
        Clusters(len(raters), len(prompts)),
    )


def _table(games: _Games, seed: int) -> dict[str, Any]:
    """The strengths relative to the reference (the base if it is there), best first."""
    k = len(games.models)
    reference = games.models.index("base") if "base" in games.models else k - 1
    wins, ties = games.counts(np.ones(len(games.first)))
    found = _intervals(games, (wins, ties), reference, seed)
    rows = [
        {
            "model": model,
            "strength": found[i].plain(),
            "preference": found[k + i].plain(),
            "won": int(wins[i].sum()),
            "tied": int(ties[i].sum()),
            "lost": int(wins[:, i].sum()),
        }
        for i, model in enumerate(games.models)
    ]
    return {
        "reference": games.models[reference],
        "votes": len(games.first),
        "raters": games.clusters.raters,
        "prompts": games.clusters.prompts,
        "over": games.clusters.drawn,
        "prior_sd": PRIOR_SD,
        "separated": separated(wins, ties),
        "tie": finite(float(davidson(wins, ties).tie)),
        "models": sorted(rows, key=lambda row: -row["strength"]["value"]),
    }


def _intervals(
    games: _Games, counts: tuple[ndarray, ndarray], reference: int, seed: int
) -> list[Interval]:
    """Of each model's strength above the reference, then of its preference over the reference."""
    weights = draws(games.clusters, RESAMPLES, seed)
    drawn = [games.counts(r[games.rater] * p[games.prompt]) for r, p in weights]
    wins, ties = (np.stack([counts[i], *(pair[i] for pair in drawn)]) for i in (0, 1))
    fitted = davidson(wins, ties)
    ahead = fitted.strengths - fitted.strengths[:, [reference]]
    rows = np.concatenate([ahead, fitted.preference()[:, :, reference]], axis=1)
    return percentiles(rows[0], rows[1:])
