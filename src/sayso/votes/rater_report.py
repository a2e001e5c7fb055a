"""All that raters' votes on a question say of the raters: one section for ratings, one a pair.

No torch and no scipy: the rating app shows the same sections while people vote.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np

from sayso.base.bootstrap import Clusters, Interval, bootstrap, finite
from sayso.base.types import CATEGORIES, Comparison, Prompt, Question, Rating
from sayso.votes.agreement import Agreement, Votes, collect, measure
from sayso.votes.dawid_skene import DawidSkene, dawid_skene
from sayso.votes.item_votes import (
    RATING_VALUES,
    SIDES,
    VALUES_WITHOUT_SKIP,
    ItemVote,
    Pair,
    of_comparisons,
    of_ratings,
)
from sayso.votes.rater_table import Checks, RaterRow, rater_table


@dataclass(frozen=True, slots=True)
class Section:
    """The votes of one kind of raters on one question, as the raters' agreement.

    Attributes:
        task: "rate" or "compare"; `models` are the two compared, first and second.
        overlap: number of votes other than skips → how many items have so many.
        over: what the intervals drew anew.
        groups: "all", then each category of prompts.
        estimation: how Dawid and Skene's model went: items, iterations, whether it converged, and
            the shares of the true classes; None where no item has two such votes.
    """

    task: str
    question: str
    models: tuple[str, ...]
    votes: int
    items: int
    prompts: int
    overlap: Mapping[int, int]
    over: str
    groups: Mapping[str, Agreement]
    raters: Sequence[RaterRow]
    estimation: Mapping[str, Any] | None

    @property
    def careless(self) -> list[RaterRow]:
        """The raters that some rule speaks against."""
        return [row for row in self.raters if row.careless]


def rating_section(
    ratings: Iterable[Rating],
    prompt_of: Mapping[str, Prompt],
    question: Question = "alignment",
    *,
    resamples: int = 999,
    seed: int = 0,
) -> Section | None:
    """The section of the ratings on one question; None if there are none.

    Args:
        ratings: live ones of people or of simulated raters, not of both.
        prompt_of: sample id → its prompt; ratings of other samples are left out.
        resamples: of the bootstrap; 0 leaves the limits out and is fast.
    """
    ids = {sample: prompt.id for sample, prompt in prompt_of.items()}
    item_votes = of_ratings((r for r in ratings if r.question == question), ids)
    categories = {prompt.id: prompt.category for prompt in prompt_of.values()}
    name = ("rate", question, ())
    return _section(
        name, item_votes, (RATING_VALUES, VALUES_WITHOUT_SKIP), categories, resamples, seed
    )


def comparison_sections(
    comparisons: Iterable[Comparison],
    prompts: Iterable[Prompt],
    *,
    resamples: int = 999,
    seed: int = 0,
) -> list[Section]:
    """A section for each pair of models and question; see `rating_section`."""
    categories = {prompt.id: prompt.category for prompt in prompts}
    found = [
        _section(_name(pair), item_votes, (SIDES, len(SIDES)), categories, resamples, seed)
        for pair, item_votes in of_comparisons(comparisons).items()
    ]
    return [section for section in found if section]


def _name(pair: Pair) -> tuple[str, str, tuple[str, ...]]:
    return "compare", pair.question, (pair.first, pair.second)


def _section(
    name: tuple[str, str, tuple[str, ...]],
    item_votes: Sequence[ItemVote],
    values: tuple[Sequence[str], int],
    categories: Mapping[str, str],
    resamples: int,
    seed: int,
) -> Section | None:
    classes, n_unskipped = values
    votes = collect((b for b in item_votes if b.attention is None), classes)
    if not len(votes):
        return None
    unskipped = votes.without("skip")
    per_item = unskipped.counts().sum(1).astype(int)
    model = dawid_skene(unskipped) if (per_item > 1).any() else None
    groups = _groups(votes, categories)
    return Section(
        *name,
        votes=len(votes),
        items=len(votes.items),
        prompts=len(votes.prompts),
        overlap={n: int((per_item == n).sum()) for n in sorted(set(per_item.tolist()))},
        over=votes.clusters.drawn,
        groups=measure(votes, groups, n_unskipped=n_unskipped, resamples=resamples, seed=seed),
        raters=rater_table(item_votes, votes, unskipped, model),
        estimation=None if model is None else _estimation(model, unskipped),
    )


def _groups(votes: Votes, categories: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Which items belong to all, and to each category of prompts, in the paper's order."""
    found = np.array([categories.get(prompt, "") for prompt in votes.prompts])[votes.prompt]
    present = set(found.tolist()) - {""}
    order = [c for c in CATEGORIES if c in present] + sorted(present - set(CATEGORIES))
    parts = {c: found == c for c in order} if len(order) > 1 else {}
    return {"all": np.ones(len(votes.items), dtype=bool), **parts}


def _estimation(model: DawidSkene, unskipped: Votes) -> dict[str, Any]:
    return {
        "items": len(unskipped.items),
        "iterations": len(model.log_posterior),
        "converged": model.converged,
        "shares": dict(zip(unskipped.classes, model.shares.tolist(), strict=True)),
    }


# labels against the truth


def label_quality(labels: Mapping[str, float], truth: Mapping[str, bool]) -> dict[str, Any]:
    """How near labels come to a known truth, over the images that have both.

    Args:
        labels: sample id → label in [0, 1].
        truth: sample id → whether the image is good.
    Returns: `n`; `accuracy`, a label of 1/2 counted half right; `squared_error`, the mean of
        (label − truth)², what a reward fitted to the labels inherits; None where n is 0.
    """
    both = [(labels[i], float(truth[i])) for i in sorted(labels.keys() & truth.keys())]
    if not both:
        return {"n": 0, "accuracy": None, "squared_error": None}
    right = [0.5 if y == 0.5 else float((y > 0.5) == bool(t)) for y, t in both]
    error = [(y - t) ** 2 for y, t in both]
    return {
        "n": len(both),
        "accuracy": float(np.mean(right)),
        "squared_error": float(np.mean(error)),
    }


def label_gain(
    labels: Mapping[str, float],
    others: Mapping[str, float],
    truth: Mapping[str, bool],
    prompt_of: Mapping[str, str],
    *,
    resamples: int = 999,
    seed: int = 0,
) -> Interval:
    """How much the squared error of labels differs from that of others; below 0 is nearer.

    Both are of the same votes, so the difference is taken image by image and is surer than either
    error. Its interval draws prompts anew, for these raters: others would need other votes.

    Args:
        labels, others: sample id → label in [0, 1].
        truth: sample id → whether the image is good.
        prompt_of: sample id → prompt id.
        resamples, seed: of the bootstrap.
    Returns: NaN if no image has all three.
    """
    both = sorted(labels.keys() & others.keys() & truth.keys())
    if not both:
        return Interval(math.nan, math.nan, math.nan)
    prompts, prompt = np.unique([prompt_of[i] for i in both], return_inverse=True)
    errors = [[(kind[i] - truth[i]) ** 2 for i in both] for kind in (labels, others)]
    gain = np.array(errors[0]) - np.array(errors[1])

    def mean(_raters: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        weight = drawn[prompt]
        return np.array([weight @ gain / weight.sum()])

    clusters = Clusters(raters=1, prompts=len(prompts))
    return bootstrap(mean, clusters, resamples=resamples, seed=seed)[0]


# for JSON


def plain(value: Any) -> Any:
    """A section, or a part of one, as what JSON can hold; NaN becomes None."""
    if isinstance(value, Interval):
        return value.plain()
    if isinstance(value, Checks):
        return {**value._asdict(), "share": value.share}
    if is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, float):
        return finite(value)
    return value
