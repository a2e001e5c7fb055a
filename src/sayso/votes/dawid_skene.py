"""What is true and who errs how, learned together from the votes: Dawid and Skene's model by EM."""

from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from sayso.votes.agreement import Votes

RIGHT, WRONG = 4.0, 1.0
"""Votes that every rater is thought to have cast before, right and wrong, for each true class."""


@dataclass(frozen=True, slots=True)
class DawidSkene:
    """The fitted model.

    Attributes:
        probabilities: of each class being true of each item, [n, c]; rows add up to 1. An item
            without votes gets `shares`.
        shares: of the classes among the items, [c].
        confusion: [r, c, c]: how each rater votes (last axis) when a class is true.
        votes: the expected numbers of votes behind `confusion`, without the prior, [r, c, c].
        log_posterior: after each iteration; never falls.
        converged: no probability changed by more than the tolerance in the last iteration.
    """

    probabilities: ndarray
    shares: ndarray
    confusion: ndarray
    votes: ndarray
    log_posterior: tuple[float, ...]
    converged: bool

    def skill(self) -> tuple[ndarray, ndarray]:
        """How far above guessing each rater is, and the standard deviation of that, both [r].

        The mean over the true classes of the chance of a right vote, rescaled: 1 is never wrong,
        0 guesses, below 0 votes against the truth. For two classes it is Youden's J. The
        deviation takes the estimated truth as known.
        """
        classes = self.confusion.shape[1]
        right = np.diagonal(self.confusion, axis1=1, axis2=2)
        behind = self.votes.sum(2) + _prior(classes).sum(1)
        variance = (right * (1 - right) / (behind + 1)).sum(1)
        value = (right.sum(1) - 1) / (classes - 1)
        return value, np.sqrt(variance) / (classes - 1)


def dawid_skene(
    votes: Votes, *, tolerance: float = 1e-8, max_iterations: int = 10_000
) -> DawidSkene:
    """Estimate the truth of every item and the confusion table of every rater.

    Each item has one true class; a rater votes by the row of its own table, independently of the
    other raters. EM alternates: the truth given the tables, the tables given the truth. Dirichlet
    priors (`RIGHT` and `WRONG` votes a row, one item a class) keep a rater of few votes near a
    sensible one, probabilities off 0 and 1, and the classes from swapping their names. It starts
    from the share of each value and draws nothing at random.

    Args:
        votes: without skips; take them out with `without("skip")`.
        tolerance: the largest change of a probability at which EM stops.
    Raises: ValueError: if there are no votes or fewer than two classes.
    Source: Dawid and Skene 1979, Applied Statistics 28; the prior makes it a posterior mode.
    """
    if not len(votes) or len(votes.classes) < 2:
        raise ValueError(f"{len(votes)} votes in {len(votes.classes)} classes; need votes and 2")
    counts = votes.counts()
    seen = counts.sum(1, keepdims=True) > 0
    truth = (counts + 1 / counts.shape[1]) / (counts.sum(1, keepdims=True) + 1)
    history: list[float] = []
    converged = False
    while not converged and len(history) < max_iterations:
        shares, expected, confusion = _tables(votes, truth * seen)
        update, log_posterior = _truth(votes, shares, confusion, seen[:, 0])
        converged = bool(np.abs(update - truth).max() < tolerance)
        truth = update
        history.append(log_posterior)
    shares, expected, confusion = _tables(votes, truth * seen)
    return DawidSkene(truth, shares, confusion, expected, tuple(history), converged)


def _prior(classes: int) -> ndarray:
    wrong = np.full((classes, classes), WRONG / (classes - 1))
    np.fill_diagonal(wrong, RIGHT)
    return wrong


def _tables(votes: Votes, truth: ndarray) -> tuple[ndarray, ndarray, ndarray]:
    """M step: shares of the classes [c], expected votes and confusion tables [r, c, c]."""
    classes, raters = truth.shape[1], len(votes.raters)
    cell = votes.rater * classes + votes.value
    expected = np.stack([
        np.bincount(cell, weights=truth[votes.item, t], minlength=raters * classes)
        for t in range(classes)
    ]).reshape(classes, raters, classes).transpose(1, 0, 2)  # fmt: skip
    table = expected + _prior(classes)
    shares = truth.sum(0) + 1
    return shares / shares.sum(), expected, table / table.sum(2, keepdims=True)


def _truth(
    votes: Votes, shares: ndarray, confusion: ndarray, seen: ndarray
) -> tuple[ndarray, float]:
    """E step: probabilities [n, c], and the log posterior of the tables they came from."""
    told, n = np.log(confusion), len(votes.items)
    joint = np.log(shares) + np.stack(
        [
            np.bincount(votes.item, weights=told[votes.rater, t, votes.value], minlength=n)
            for t in range(len(shares))
        ],
        axis=1,
    )
    top = joint.max(1, keepdims=True)
    odds = np.exp(joint - top)
    total = odds.sum(1, keepdims=True)
    evidence = (np.log(total) + top)[seen, 0].sum()
    prior = (_prior(len(shares)) * told).sum() + np.log(shares).sum()
    return odds / total, float(evidence + prior)
