"""Numbers of several seeds, each with prompts of its own: means with intervals, and best of n."""

from collections.abc import Sequence
from math import comb

import numpy as np
from jaxtyping import Float, Shaped
from numpy import ndarray

from sayso.base.bootstrap import Interval
from sayso.metrics.majority import TWO_THIRDS, is_majority

RESAMPLES = 2000


def mean_over_seeds(
    values: Sequence[Shaped[ndarray, " _"]],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
) -> Interval:
    """The mean over seeds of the means over prompts, with a percentile interval.

    Seeds are drawn with replacement, and within each its prompts: images of a prompt resemble each
    other, and so do prompts that one trained model was tested on. With one seed only prompts are
    drawn, and the interval speaks of that one training alone.

    Args:
        values: for each seed a number for each of its prompts.
        seed: of the drawing.
    Returns: limits are the value itself if all numbers are alike.
    Raises: ValueError: if there is no seed, or one without prompts.
    Source: Davison and Hinkley 1997, Bootstrap Methods and their Application, Sec. 3.8.
    """
    rows = [np.asarray(own, float) for own in values]
    if not rows or not all(map(len, rows)):
        raise ValueError("a mean over seeds needs at least one seed, and a prompt in each")
    value = float(np.mean([own.mean() for own in rows]))
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(rows), size=(resamples, len(rows)))
    means = np.empty(drawn.shape)
    for i, own in enumerate(rows):
        here = drawn == i
        picked = rng.integers(len(own), size=(int(here.sum()), len(own)))
        means[here] = own[picked].mean(1)
    low, high = np.quantile(means.mean(1), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value, min(value, float(low)), max(value, float(high)))


def best_of_n(
    reward: Float[ndarray, " m"], value: Shaped[ndarray, " m"], n: int
) -> float:  # fmt: skip
    """The expected value of the image with the highest reward among n of m.

    The mean over all ways to take n of the m images, without drawing any: the image of rank i from
    the top is the best of n in C(m − 1 − i, n − 1) of the C(m, n) ways. Of equal rewards the
    earlier image counts as higher.

    Args:
        reward: of each image of a prompt.
        value: of the same, such as 1 for a true image and 0 for another.
        n: from 1 to m.
    Raises: ValueError: if n is out of range.
    """
    m = len(reward)
    if not 1 <= n <= m:
        raise ValueError(f"best of {n} among {m} images; n must be from 1 to {m}")
    order = np.argsort(-np.asarray(reward, float), kind="stable")
    weights = np.array([comb(m - 1 - i, n - 1) for i in range(m)], float) / comb(m, n)
    return float(weights @ np.asarray(value, float)[order])


def win_or_lose(win: int, tie: int, lose: int, threshold: float = TWO_THIRDS) -> int:
    """What the raters of a prompt come to: 1 or −1 if that share agrees on a side, else 0."""
    votes = win + tie + lose
    return int(is_majority(win, votes, threshold)) - int(is_majority(lose, votes, threshold))
