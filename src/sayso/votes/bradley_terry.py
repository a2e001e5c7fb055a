"""Strengths of several models from comparisons in pairs with ties: Bradley–Terry after Davidson."""

from dataclasses import dataclass

import numpy as np
from numpy import ndarray

PRIOR_SD = 3.0
"""Standard deviation of the normal prior on log strengths and on the log of the tie parameter.

Wide: a model one deviation above another wins 20 decided votes of 21. Against a hundred votes the
prior is not seen; it keeps the strength of a model that never lost finite.
"""

_MAX_STEPS = 500


@dataclass(frozen=True, slots=True)
class Davidson:
    """The fitted model; leading axes are those of the data.

    Attributes:
        strengths: natural log of each model's strength, mean 0, [..., k].
        tie: ν ≥ 0, [...]: at equal strength a tie has the chance ν / (2 + ν).
    """

    strengths: ndarray
    tie: ndarray

    def shares(self) -> tuple[ndarray, ndarray]:
        """The chance that i is chosen over j, and that they tie, both [..., k, k]."""
        return _chances(self.strengths, self.tie)

    def preference(self) -> ndarray:
        """The chance that i is chosen over j, a tie counted half, [..., k, k]; 1/2 with itself."""
        win, tie = self.shares()
        return win + tie / 2


def davidson(wins: ndarray, ties: ndarray, *, prior_sd: float = PRIOR_SD) -> Davidson:
    """Fit log strengths λ and the tie parameter ν by their largest posterior, by Newton's method.

    With π = exp λ: P(i over j) = π_i / (π_i + π_j + ν √(π_i π_j)), P(tie) ∝ ν √(π_i π_j). Without
    any tie ν is 0, which is plain Bradley–Terry.

    Args:
        wins: how often i was chosen over j, [..., k, k], ≥ 0, may be fractions; the diagonal 0.
        ties: how often i and j tied, [..., k, k], symmetric.
        prior_sd: see `PRIOR_SD`; infinite gives the largest likelihood.
    Raises: ValueError: for wrong shapes; without a prior also if that likelihood has no largest
        value (see `separated`).
    Source: Davidson 1970, JASA 65, Eq. 2.4 and 2.5.
    """
    wins, ties = np.asarray(wins, float), np.asarray(ties, float)
    if wins.shape != ties.shape or wins.ndim < 2 or wins.shape[-1] != wins.shape[-2]:
        raise ValueError(f"wins {wins.shape} and ties {ties.shape} must be alike and square")
    if not np.array_equal(ties, np.swapaxes(ties, -1, -2)):
        raise ValueError("ties must be symmetric")
    flat = wins.reshape(-1, *wins.shape[-2:]), ties.reshape(-1, *ties.shape[-2:])
    if not np.isfinite(prior_sd):
        _refuse_infinite(*flat)
    found = _newton(*flat, 1 / prior_sd**2)
    k, leading = wins.shape[-1], wins.shape[:-2]
    return Davidson(found[:, :k].reshape(*leading, k), np.exp(found[:, k]).reshape(leading))


def _newton(wins: ndarray, ties: ndarray, prior: float) -> ndarray:
    """λ and log ν, [b, k + 1]; log ν is −∞ where nothing tied."""
    batch, k = wins.shape[:2]
    some = ties.sum((1, 2)) > 0
    place = np.zeros((batch, k + 1))
    place[~some, k] = -np.inf
    for _ in range(_MAX_STEPS):
        slope, curve = _derivatives(place, wins, ties, some, prior)
        step = np.linalg.solve(curve, slope[..., None])[..., 0]
        largest = np.abs(step).max(1, keepdims=True)
        # far from the top a full step can overshoot
        place += step / np.maximum(1, largest)
        if largest.max() < 1e-10:
            return place
    raise ValueError(f"no convergence in {_MAX_STEPS} Newton steps; wins and ties must be counts")


def _derivatives(
    place: ndarray, wins: ndarray, ties: ndarray, some: ndarray, prior: float
) -> tuple[ndarray, ndarray]:
    """Slope [b, k + 1] and negative curvature [b, k + 1, k + 1] of the log posterior."""
    k = wins.shape[1]
    strengths, log_tie = place[:, :k], np.where(some, place[:, k], 0.0)
    games = wins + np.swapaxes(wins, 1, 2) + ties
    win, tie = _chances(strengths, np.exp(place[:, k]))
    score = win + tie / 2
    slope, curve = np.zeros(place.shape), np.zeros((*place.shape, k + 1))
    slope[:, :k] = (wins + ties / 2 - games * score).sum(2) - prior * strengths
    slope[:, k] = some * ((ties - games * tie).sum((1, 2)) / 2 - prior * log_tie)
    spread = games * (win + tie / 4 - score**2)
    curve[:, :k, :k] = -spread
    curve[:, range(k), range(k)] = spread.sum(2) - spread[:, range(k), range(k)] + prior
    # strengths have mean 0; without this term a common shift would be free
    curve[:, :k, :k] += 1
    curve[:, :k, k] = curve[:, k, :k] = (games * tie * (0.5 - score)).sum(2)
    curve[:, k, k] = (games * tie * (1 - tie)).sum((1, 2)) / 2 + prior * some + ~some
    return slope, curve


def _chances(strengths: ndarray, tie: ndarray) -> tuple[ndarray, ndarray]:
    half = (strengths[..., :, None] - strengths[..., None, :]) / 2
    up, down, level = np.exp(half), np.exp(-half), tie[..., None, None]
    total = up + down + level
    return up / total, level / total


# what the data can tell


def connected(games: ndarray) -> list[list[int]]:
    """Groups of models that were compared with each other, directly or through others.

    Nothing can be said between two groups.

    Args:
        games: how often i and j were compared, [k, k].
    """
    reach = _closure(np.asarray(games) + np.asarray(games).T > 0)
    return [list(row) for row in dict.fromkeys(tuple(np.flatnonzero(r).tolist()) for r in reach)]


def separated(wins: ndarray, ties: ndarray) -> bool:
    """Whether some models never lost and never tied against the rest, so that a prior decides.

    Source: Ford 1957, American Mathematical Monthly 64, for the case without ties.
    """
    return not _closure(np.asarray(wins) + np.asarray(ties) > 0).all()


def _closure(edges: ndarray) -> ndarray:
    """Which models can be reached from which, [k, k]."""
    reach = edges | np.eye(len(edges), dtype=bool)
    for _ in range(len(edges)):
        reach = reach @ reach
    return reach


def _refuse_infinite(wins: ndarray, ties: ndarray) -> None:
    for won, tied in zip(wins, ties, strict=True):
        if separated(won, tied) or (tied.any() and not won.any()):
            raise ValueError(
                "the likelihood has no maximum: some models never lost to the rest or were never "
                "compared with them, or all comparisons tied; use a finite prior_sd"
            )
