"""How far raters agree beyond chance: Krippendorff's alpha, Fleiss' kappa, rates of the values.

Pure functions on arrays; numpy alone, so that the small install can use them. An item is what one
vote is about: an image, or a pair of sets of images.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy import ndarray

from sayso.base.bootstrap import Clusters, Interval, bootstrap
from sayso.votes.item_votes import ItemVote


@dataclass(frozen=True, slots=True)
class Votes:
    """Votes on one question as arrays, sorted by item and rater; at most one per item and rater.

    `item`, `rater` and `value` [v] are positions in `items`, `raters` and `classes`; `prompt` [n]
    is the position in `prompts` of each item's prompt.
    """

    items: tuple[str, ...]
    raters: tuple[str, ...]
    prompts: tuple[str, ...]
    classes: tuple[str, ...]
    item: ndarray
    rater: ndarray
    value: ndarray
    prompt: ndarray

    def __len__(self) -> int:
        return len(self.item)

    @property
    def clusters(self) -> Clusters:
        """The raters and prompts that a bootstrap draws."""
        return Clusters(len(self.raters), len(self.prompts))

    def counts(self) -> ndarray:
        """How often each item got each value [n, c]."""
        cell = self.item * len(self.classes) + self.value
        counts = np.bincount(cell, minlength=len(self.items) * len(self.classes))
        return counts.reshape(len(self.items), len(self.classes)).astype(float)

    def without(self, value: str) -> "Votes":
        """The votes with another value; items, raters and prompts keep their positions."""
        if value not in self.classes:
            return self
        gone = self.classes.index(value)
        kept = self.value != gone
        places = self.value[kept]
        return replace(
            self,
            classes=tuple(c for c in self.classes if c != value),
            item=self.item[kept],
            rater=self.rater[kept],
            value=places - (places > gone),
        )


def collect(item_votes: Iterable[ItemVote], classes: Sequence[str]) -> Votes:
    """Turn votes into arrays; a vote whose value is not among `classes` is left out.

    Raises: ValueError: if a rater voted twice on an item, or an item has two prompts.
    """
    rows = sorted((b for b in item_votes if b.value in classes), key=lambda b: (b.item, b.rater))
    if len({(b.item, b.rater) for b in rows}) < len(rows):
        raise ValueError("a rater has two votes on one item; give live votes only")
    prompt_of = {b.item: b.prompt for b in rows}
    if any(prompt_of[b.item] != b.prompt for b in rows):
        raise ValueError("an item has two prompts")
    items, item = _positions([b.item for b in rows])
    raters, rater = _positions([b.rater for b in rows])
    prompts, prompt = _positions([prompt_of[i] for i in items])
    value = np.array([classes.index(b.value) for b in rows], dtype=np.intp)
    return Votes(items, raters, prompts, tuple(classes), item, rater, value, prompt)


def _positions(names: Sequence[str]) -> tuple[tuple[str, ...], ndarray]:
    """The different names in order, and the position of each given one among them."""
    known = tuple(sorted(set(names)))
    place = {name: i for i, name in enumerate(known)}
    return known, np.array([place[name] for name in names], dtype=np.intp)


# the statistics


class Statistics(NamedTuple):
    """For each of g groups of items: alpha, kappa, agreement [g], and rates of values [c, g].

    alpha: Krippendorff's, for values without order: 1 − observed / expected disagreement. 1 is
    perfect agreement, 0 what chance gives, below 0 systematic disagreement. kappa: Fleiss',
    (P − P_e) / (1 − P_e), P the share of pairs of votes on an item that agree; every item with two
    votes or more counts the same, in P and in the shares that give P_e. Items with one vote do not
    count. NaN if no item has two votes, or all votes are the same: then nothing can be said.

    Source: Krippendorff 2011, Computing Krippendorff's alpha-reliability; Fleiss 1971,
        Psychological Bulletin 76.
    """

    alpha: ndarray
    kappa: ndarray
    agreement: ndarray
    rates: ndarray


def statistics(
    sums: ndarray, squares: ndarray, weight: ndarray, groups: ndarray, n_unskipped: int
) -> Statistics:
    """The statistics of weighted votes; weights of 1 give the textbook's.

    Every one is a ratio of sums over items, so one product with `groups` serves all groups.

    Args:
        sums: the weights of the raters who gave each value, [c, n].
        squares: the same of their squares, so that a rater drawn twice by a bootstrap is not
            counted as agreeing with itself, [c, n].
        weight: of each item, [n].
        groups: 1 where an item belongs to a group, else 0, [n, g].
        n_unskipped: how many values, from the first, are not skips.
    """
    unskipped, doubles = sums[:n_unskipped], squares[:n_unskipped]
    total = unskipped.sum(0)
    pairs = total**2 - doubles.sum(0)
    kept = weight * (pairs > 0)
    agree = kept * (unskipped**2 - doubles).sum(0) / np.where(pairs > 0, pairs, 1)
    by_item = [kept, agree, kept * total, agree * total]
    parts = [
        kept * unskipped,
        kept * weight * doubles,
        kept * unskipped / np.where(total > 0, total, 1),
    ]
    found = np.concatenate([np.stack(by_item), *parts, weight * sums]) @ groups
    n, agreed, votes, agreed_votes = found[:4]
    pooled, pooled_doubles, shares = found[4 : 4 + 3 * n_unskipped].reshape(3, n_unskipped, -1)
    rates = found[4 + 3 * n_unskipped :]
    with np.errstate(invalid="ignore", divide="ignore"):
        agreement = agreed / n
        same = (pooled**2 - pooled_doubles).sum(0) / (votes**2 - pooled_doubles.sum(0))
        alpha = _beyond(agreed_votes / votes, same)
        kappa = _beyond(agreement, ((shares / n) ** 2).sum(0))
        return Statistics(alpha, kappa, agreement, rates / rates.sum(0))


def _beyond(observed: ndarray, chance: ndarray) -> ndarray:
    """Agreement beyond chance; NaN where chance alone gives full agreement."""
    return np.where(chance < 1 - 1e-12, (observed - chance) / (1 - chance), math.nan)


# with intervals, by group


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far the raters agree on a group of items.

    `shared_items` have two votes or more, skips apart; alpha, kappa and `agreement` (the share of
    pairs of votes on an item that are equal) rest on them. `rates` are the shares of each value.
    """

    items: int
    shared_items: int
    votes: int
    alpha: Interval
    kappa: Interval
    agreement: Interval
    rates: Mapping[str, Interval]


def measure(
    votes: Votes, groups: Mapping[str, ndarray], *, n_unskipped: int, resamples: int, seed: int
) -> dict[str, Agreement]:
    """Alpha, kappa, agreement and rates of each group, with intervals over raters × prompts.

    Args:
        votes: on one question.
        groups: name → which items belong to it, bool [n].
        n_unskipped: how many classes, from the first, are not skips; a skip counts in the rates
            alone, because it says nothing to agree with.
        resamples, seed: of the bootstrap.
    """
    members = np.stack(list(groups.values()), axis=1).astype(float)
    cell = votes.value * len(votes.items) + votes.item
    shape = len(votes.classes), len(votes.items)

    def statistic(raters: ndarray, prompts: ndarray) -> ndarray:
        drawn = raters[votes.rater]
        sums, squares = (
            np.bincount(cell, weights=w, minlength=shape[0] * shape[1]).reshape(shape)
            for w in (drawn, drawn**2)
        )
        return np.vstack(
            statistics(sums, squares, prompts[votes.prompt], members, n_unskipped)
        ).ravel()

    intervals = bootstrap(statistic, votes.clusters, seed=seed, resamples=resamples)
    counts, n = votes.counts(), len(groups)
    return {
        name: _result(votes.classes, counts[mask], n_unskipped, intervals[i::n])
        for i, (name, mask) in enumerate(groups.items())
    }


def _result(
    classes: Sequence[str], counts: ndarray, n_unskipped: int, found: Sequence[Interval]
) -> Agreement:
    return Agreement(
        items=len(counts),
        shared_items=int((counts[:, :n_unskipped].sum(1) >= 2).sum()),
        votes=int(counts.sum()),
        alpha=found[0],
        kappa=found[1],
        agreement=found[2],
        rates=dict(zip(classes, found[3:], strict=True)),
    )
