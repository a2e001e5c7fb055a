"""Metrics: pure functions on arrays. Only reported, never maximised; no models, no files."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Shaped
from numpy import ndarray
from scipy import stats

from sayso.votes.bootstrap import Interval

# shares and paired comparisons


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """A share with Wilson's interval, which keeps its coverage for small n and shares near 0 or 1.

    Raises: ValueError: if n < 1 or successes is not in [0, n].
    Source: Wilson 1927, JASA 22.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}; need 0 ≤ successes ≤ n and n ≥ 1")
    z = float(stats.norm.ppf((1 + confidence) / 2))
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # rounding must not put the share outside its own interval
    return Interval(share, min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half)))


def mcnemar(before: Bool[ndarray, " n"], after: Bool[ndarray, " n"]) -> float:
    """Exact two-sided p-value that a yes/no check changed on the same items.

    Only the items that changed count: under no effect, each goes either way with chance 1/2.

    Source: McNemar 1947, Psychometrika 12; the exact binomial form.
    """
    gained = int((~before & after).sum())
    lost = int((before & ~after).sum())
    if gained + lost == 0:
        return 1.0
    return float(stats.binomtest(gained, gained + lost, 0.5).pvalue)


def paired_difference(
    before: Shaped[ndarray, " n"],
    after: Shaped[ndarray, " n"],
    prompt_ids: Sequence[str],
    *,
    seed: int,
    confidence: float = 0.95,
    resamples: int = 9999,
) -> Interval:
    """Mean of after − before over images, with a BCa bootstrap interval that resamples prompts.

    Images of one prompt are not independent, so whole prompts are drawn. If every prompt changed
    alike, the interval is that one value.

    Args:
        before, after: any value of the same images, e.g. 0 or 1.
        prompt_ids: the prompt of each image.
    Raises: ValueError: if there are fewer than two prompts.
    Source: Efron 1987, JASA 82.
    """
    _, row = np.unique(np.asarray(prompt_ids), return_inverse=True)
    counts = np.bincount(row).astype(float)
    if len(counts) < 2:
        raise ValueError(f"{len(counts)} prompts; an interval over prompts needs at least 2")
    sums = np.bincount(row, weights=np.asarray(after, float) - np.asarray(before, float))
    value = float(sums.sum() / counts.sum())
    if np.ptp(sums / counts) == 0:
        return Interval(value, value, value)
    found = stats.bootstrap(
        (sums, counts),
        lambda s, c, axis: s.sum(axis) / c.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        batch=1000,
        confidence_level=confidence,
        method="BCa",
        rng=np.random.default_rng(seed),
    )
    low, high = found.confidence_interval
    return Interval(value, float(low), float(high))


@dataclass(frozen=True, slots=True)
class WinTieLose:
    """Shares of prompts by what at least the threshold of raters said; the rest is undecided.

    `net` is win − lose. The four shares add up to 1.
    """

    n_prompts: int
    win: Interval
    tie: Interval
    lose: Interval
    undecided: Interval
    net: float


def win_tie_lose(votes: Sequence[Sequence[int]], threshold: float = 2 / 3) -> WinTieLose:
    """Count the prompts that one side wins by a clear majority of its raters.

    Args:
        votes: for each prompt the raters' votes: 1 our side, 0 tie, −1 the other side.
        threshold: share of the raters that must agree, in (1/2, 1]; the paper's two thirds.
    Raises: ValueError: for no prompts, a prompt without votes, another vote or threshold.
    Source: Lee et al. 2023, arXiv 2302.12192, the human evaluation.
    """
    if not 0.5 < threshold <= 1:
        raise ValueError(f"threshold {threshold}; a majority needs a share in (1/2, 1]")
    if not votes or not all(votes):
        raise ValueError("every prompt needs at least one vote")
    verdicts = [_verdict(v, threshold) for v in votes]
    n = len(verdicts)
    win, tie, lose, undecided = (wilson(verdicts.count(v), n) for v in (1, 0, -1, None))
    return WinTieLose(n, win, tie, lose, undecided, win.value - lose.value)


def _verdict(votes: Sequence[int], threshold: float) -> int | None:
    if set(votes) - {1, 0, -1}:
        raise ValueError(f"votes {sorted(set(votes))}; allowed are 1, 0 and -1")
    # the small slack lets 6 of 9 count as two thirds in floating point
    reached = [v for v in (1, 0, -1) if votes.count(v) >= threshold * len(votes) - 1e-9]
    return reached[0] if reached else None


# how good a reward is


def accuracy(
    good: Bool[ndarray, " n"], scores: Float[ndarray, " n"], threshold: float = 0.5
) -> float:
    """Share of the items whose score is on the right side of `threshold` (at it counts as good)."""
    return float(((scores >= threshold) == good).mean())


def roc_auc(good: Bool[ndarray, " n"], scores: Float[ndarray, " n"]) -> float:
    """Chance that a random good item scores above a random bad one; ties count half.

    Raises: ValueError: if all items are good or all are bad.
    """
    n_good = int(good.sum())
    n_bad = len(good) - n_good
    if not n_good or not n_bad:
        raise ValueError(f"{n_good} good and {n_bad} bad items; an AUC needs both")
    ranks = stats.rankdata(scores)
    return float((ranks[good].sum() - n_good * (n_good + 1) / 2) / (n_good * n_bad))


def pair_accuracy(
    good: Bool[ndarray, " n"], scores: Float[ndarray, " n"], prompt_ids: Sequence[str]
) -> tuple[float, int]:
    """Share of the pairs of one good and one bad item of the same prompt that scores order rightly.

    Returns: the share (ties count half; NaN without pairs) and the number of pairs.
    """
    ids = np.asarray(prompt_ids)
    right, n = 0.0, 0
    for prompt in np.unique(ids):
        mine = ids == prompt
        margin = scores[mine & good][:, None] - scores[mine & ~good][None, :]
        right += float((margin > 0).sum() + 0.5 * (margin == 0).sum())
        n += margin.size
    return (right / n if n else math.nan), n


def brier(targets: Shaped[ndarray, " n"], scores: Float[ndarray, " n"]) -> float:
    """Mean squared difference of targets and scores, both in [0, 1]; smaller is better."""
    return float(np.mean((np.asarray(targets, float) - scores) ** 2))


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    """The items with a score in [low, high): mean score and mean target (None if n is 0)."""

    low: float
    high: float
    n: int
    score: float | None
    target: float | None


def calibration(
    targets: Shaped[ndarray, " n"], scores: Float[ndarray, " n"], bins: int = 10
) -> list[CalibrationBin]:
    """What share was good among the items with a score near each value; bins of equal width.

    Args:
        targets, scores: in [0, 1]; a score of 1 belongs to the last bin.
    """
    place = np.minimum((scores * bins).astype(int), bins - 1)
    return [_bin(i, bins, targets[place == i], scores[place == i]) for i in range(bins)]


def _bin(i: int, bins: int, targets: ndarray, scores: ndarray) -> CalibrationBin:
    n = len(scores)
    means = (float(scores.mean()), float(targets.mean())) if n else (None, None)
    return CalibrationBin(i / bins, (i + 1) / bins, n, *means)


def calibration_error(table: Sequence[CalibrationBin]) -> float:
    """Expected calibration error: mean distance of score and target over the bins, weighted by n.

    Raises: ValueError: if the table is empty of items.
    """
    n = sum(row.n for row in table)
    if n == 0:
        raise ValueError("a calibration error needs at least one item")
    gaps = [
        r.n * abs(r.score - r.target) for r in table if r.score is not None and r.target is not None
    ]
    return sum(gaps) / n


# fidelity and diversity on feature arrays


def frechet_distance(a: Float[ndarray, "n d"], b: Float[ndarray, "m d"]) -> float:
    """Fréchet distance of two normal distributions fitted to the rows; 0 for equal ones.

    |μ_a − μ_b|² + tr(S_a + S_b − 2 (S_a S_b)^½), with covariances over n − 1.

    Raises: ValueError: if either side has fewer than 2 d rows, where the covariances mean little.
    Source: Heusel et al. 2017, arXiv 1706.08500, Eq. 6.
    """
    n, d = min(len(a), len(b)), a.shape[1]
    if n < 2 * d:
        raise ValueError(f"{n} rows of {d} features; a Fréchet distance needs at least {2 * d}")
    a, b = a.astype(np.float64), b.astype(np.float64)
    shift = a.mean(0) - b.mean(0)
    cov_a, cov_b = np.atleast_2d(np.cov(a.T)), np.atleast_2d(np.cov(b.T))
    # tr (S_a S_b)^½ = tr (R S_b R)^½ with R = S_a^½, which is symmetric
    root = _symmetric_root(cov_a)
    cross = np.linalg.eigvalsh(root @ cov_b @ root).clip(min=0)
    total = shift @ shift + np.trace(cov_a) + np.trace(cov_b) - 2 * np.sqrt(cross).sum()
    return max(0.0, float(total))


def _symmetric_root(matrix: ndarray) -> ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T


def kid(a: Float[ndarray, "n d"], b: Float[ndarray, "m d"]) -> float:
    """Kernel inception distance: unbiased squared MMD with the kernel (x·y / d + 1)³.

    Unbiased, so it may fall below 0 for equal distributions. Over all rows, not averaged over
    subsets as in the original code.

    Raises: ValueError: if either side has fewer than 2 rows.
    Source: Bińkowski et al. 2018, arXiv 1801.01401.
    """
    d = a.shape[1]
    return _unbiased_mmd(a, b, lambda x, y: (x @ y.T / d + 1) ** 3)


def cmmd(a: Float[ndarray, "n d"], b: Float[ndarray, "m d"], sigma: float = 10.0) -> float:
    """CLIP maximum mean discrepancy: 1000 × unbiased squared MMD, kernel exp(−|x − y|² / 2 σ²).

    Rows are scaled to length 1 first. The authors' code uses the biased estimate, which is larger
    by about (1 − mean kernel) / n.

    Raises: ValueError: if either side has fewer than 2 rows.
    Source: Jayasumana et al. 2024, arXiv 2401.09603 (σ = 10, factor 1000).
    """

    def kernel(x: ndarray, y: ndarray) -> ndarray:
        return np.exp(-_squared_distances(x, y) / (2 * sigma**2))

    return 1000 * _unbiased_mmd(_unit_rows(a), _unit_rows(b), kernel)


def _unbiased_mmd(a: ndarray, b: ndarray, kernel) -> float:
    n, m = len(a), len(b)
    if min(n, m) < 2:
        raise ValueError(f"{n} and {m} rows; a kernel distance needs at least 2 on each side")
    a, b = a.astype(np.float64), b.astype(np.float64)
    own_a, own_b = kernel(a, a), kernel(b, b)
    within = (own_a.sum() - np.trace(own_a)) / (n * (n - 1))
    within += (own_b.sum() - np.trace(own_b)) / (m * (m - 1))
    return float(within - 2 * kernel(a, b).mean())


def precision_recall(
    real: Float[ndarray, "n d"], generated: Float[ndarray, "m d"], k: int = 3
) -> tuple[float, float]:
    """Share of generated rows inside the real manifold, and of real rows inside the generated one.

    A manifold is the union of balls around its rows that reach to the k-th nearest other row.

    Raises: ValueError: if either side has no more than k rows.
    Source: Kynkäänniemi et al. 2019, arXiv 1904.06991 (k = 3).
    """
    if min(len(real), len(generated)) <= k:
        raise ValueError(f"{len(real)} and {len(generated)} rows; need more than k = {k}")
    across = _squared_distances(real, generated)
    precision = (across <= _radii(real, k)[:, None]).any(axis=0).mean()
    recall = (across <= _radii(generated, k)[None, :]).any(axis=1).mean()
    return float(precision), float(recall)


def _radii(rows: ndarray, k: int) -> ndarray:
    distances = _squared_distances(rows, rows)
    np.fill_diagonal(distances, -1)
    return np.partition(distances, k, axis=1)[:, k]


def vendi_score(features: Float[ndarray, "n d"]) -> float:
    """Effective number of different items, in [1, n]: exp of the entropy of the similarities.

    Similarity is the cosine of the rows.

    Raises: ValueError: if there are no rows.
    Source: Friedman and Dieng 2023, arXiv 2210.02410, Def. 3.1.
    """
    n = len(features)
    if n == 0:
        raise ValueError("a Vendi score needs at least one row")
    rows = _unit_rows(features.astype(np.float64))
    # both Gram matrices have the same eigenvalues above 0
    gram = rows @ rows.T if n <= rows.shape[1] else rows.T @ rows
    shares = np.linalg.eigvalsh(gram / n)
    shares = shares[shares > 1e-12]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _unit_rows(rows: ndarray) -> ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(min=1e-12)


def _squared_distances(a: ndarray, b: ndarray) -> ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return ((a**2).sum(1)[:, None] + (b**2).sum(1)[None, :] - 2 * a @ b.T).clip(min=0)
