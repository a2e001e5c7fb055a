"""Bradley–Terry with ties: equal to other implementations, and clear about what data cannot say."""

import choix
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy import ndarray
from scipy import optimize
from statsmodels.discrete.conditional_models import ConditionalLogit

from sayso.votes import bradley_terry
from sayso.votes.bradley_terry import connected, davidson, separated


def games(seed: int, models: int, ties: bool = True) -> tuple[ndarray, ndarray]:
    """Random counts; every pair met, and everybody won some."""
    rng = np.random.default_rng(seed)
    wins = rng.integers(1, 12, (models, models)).astype(float)
    np.fill_diagonal(wins, 0)
    tied = np.triu(rng.integers(1, 8, (models, models)), 1).astype(float) * ties
    return wins, tied + tied.T


def negative_log_likelihood(place: ndarray, wins: ndarray, ties: ndarray, sd: float) -> float:
    """Davidson's model written out pair by pair."""
    strengths, nu = np.exp(place[:-1]), np.exp(place[-1])
    total = 0.0
    for i in range(len(wins)):
        for j in range(i):
            level = nu * np.sqrt(strengths[i] * strengths[j])
            whole = strengths[i] + strengths[j] + level
            total += wins[i, j] * np.log(strengths[i] / whole)
            total += wins[j, i] * np.log(strengths[j] / whole)
            total += ties[i, j] * np.log(level / whole)
    return -total + (place**2).sum() / (2 * sd**2)


# against other implementations


@pytest.mark.parametrize("seed", range(8))
def test_without_ties_it_equals_choix(seed: int) -> None:
    models = 2 + seed % 5
    wins, ties = games(seed, models, ties=False)
    data = [(i, j) for i in range(models) for j in range(models) for _ in range(int(wins[i, j]))]
    expected = choix.mm_pairwise(models, data, tol=1e-13, max_iter=100_000)
    found = davidson(wins, ties, prior_sd=np.inf)
    assert found.strengths == pytest.approx(expected - expected.mean(), abs=1e-6)
    assert found.tie == 0


@pytest.mark.parametrize("seed", range(4))
def test_its_prior_is_the_penalty_of_choix(seed: int) -> None:
    wins, ties = games(seed, 4, ties=False)
    data = [(i, j) for i in range(4) for j in range(4) for _ in range(int(wins[i, j]))]
    expected = choix.opt_pairwise(4, data, alpha=1 / (2 * 1.5**2), tol=1e-12)
    found = davidson(wins, ties, prior_sd=1.5)
    assert found.strengths == pytest.approx(expected - expected.mean(), abs=1e-6)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("sd", [np.inf, 3.0])
def test_with_ties_it_is_the_top_of_the_likelihood(seed: int, sd: float) -> None:
    models = 2 + seed % 4
    wins, ties = games(seed, models)
    found = davidson(wins, ties, prior_sd=sd)
    top = optimize.minimize(
        negative_log_likelihood, np.zeros(models + 1), (wins, ties, sd), method="BFGS",
        options={"gtol": 1e-9},
    )  # fmt: skip
    strengths = top.x[:-1] - top.x[:-1].mean()
    assert found.strengths == pytest.approx(strengths, abs=1e-6)
    assert np.log(found.tie) == pytest.approx(top.x[-1], abs=1e-6)


def test_with_ties_it_equals_statsmodels_conditional_logit() -> None:
    """Each comparison is a choice among three: i, j, or a tie with the mean strength and ν."""
    wins, ties = games(11, 4)
    chosen, columns, groups = [], [], []
    for i in range(4):
        for j in range(i):
            one, two = np.eye(4)[i], np.eye(4)[j]
            options = np.stack([[*one, 0], [*two, 0], [*((one + two) / 2), 1]])
            for outcome, n in enumerate((wins[i, j], wins[j, i], ties[i, j])):
                for _ in range(int(n)):
                    groups += [len(groups) // 3] * 3
                    chosen += np.eye(3)[outcome].tolist()
                    columns += options.tolist()
    # the first model is the reference, so that strengths have one meaning
    fitted = ConditionalLogit(np.array(chosen), np.array(columns)[:, 1:], groups=np.array(groups))
    expected = fitted.fit(disp=0, method="newton", maxiter=100).params
    found = davidson(wins, ties, prior_sd=np.inf)
    assert found.strengths - found.strengths[0] == pytest.approx([0, *expected[:3]], abs=1e-6)
    assert np.log(found.tie) == pytest.approx(expected[3], abs=1e-6)


# by hand and by properties


def test_two_models_by_hand() -> None:
    """6 wins, 3 ties, 1 loss: the chances equal the shares, so π_1 / π_2 = 6 and ν = 3 / √6."""
    found = davidson(np.array([[0, 6], [1, 0]]), np.array([[0, 3], [3, 0]]), prior_sd=np.inf)
    assert np.exp(found.strengths[0] - found.strengths[1]) == pytest.approx(6)
    assert found.tie == pytest.approx(3 / np.sqrt(6))
    win, tie = found.shares()
    assert (win[0, 1], tie[0, 1], win[1, 0]) == pytest.approx((0.6, 0.3, 0.1))
    assert found.preference()[0, 1] == pytest.approx(0.75)
    assert found.preference()[0, 0] == pytest.approx(0.5)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 7))
def test_models_may_be_renamed_and_sides_swapped(seed: int, models: int) -> None:
    wins, ties = games(seed, models)
    order = np.random.default_rng(seed).permutation(models)
    found = davidson(wins, ties)
    renamed = davidson(wins[np.ix_(order, order)], ties[np.ix_(order, order)])
    assert renamed.strengths == pytest.approx(found.strengths[order], abs=1e-8)
    turned = davidson(wins.T, ties)
    assert turned.strengths == pytest.approx(-found.strengths, abs=1e-8)
    assert turned.tie == pytest.approx(found.tie)
    assert found.strengths.sum() == pytest.approx(0, abs=1e-8)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000))
def test_any_counts_give_finite_strengths(seed: int) -> None:
    """Empty pairs, models that never lost, ties alone, large counts: the prior holds them."""
    rng = np.random.default_rng(seed)
    models = int(rng.integers(2, 8))
    scale = 10 ** rng.integers(0, 6)
    wins = rng.integers(0, 3, (models, models)) * scale * (rng.random((models, models)) < 0.5)
    np.fill_diagonal(wins, 0)
    tied = np.triu(rng.integers(0, 3, (models, models)) * (rng.random() < 0.5), 1)
    found = davidson(wins, tied + tied.T)
    assert np.isfinite(found.strengths).all()
    assert np.isfinite(found.tie)


def test_a_batch_is_the_same_as_one_after_the_other() -> None:
    pairs = [games(seed, 4, ties=seed % 2 == 0) for seed in range(6)]
    wins, ties = (np.stack(parts).reshape(2, 3, 4, 4) for parts in zip(*pairs, strict=True))
    found = davidson(wins, ties)
    assert found.strengths.shape == (2, 3, 4)
    for k, pair in enumerate(pairs):
        alone = davidson(*pair)
        assert found.strengths.reshape(6, 4)[k] == pytest.approx(alone.strengths, abs=1e-9)
        assert found.tie.ravel()[k] == pytest.approx(alone.tie, abs=1e-9)


def test_many_votes_drown_the_prior() -> None:
    wins, ties = games(4, 3)
    loose, tight = (davidson(1000 * wins, 1000 * ties, prior_sd=sd) for sd in (np.inf, 3.0))
    assert loose.strengths == pytest.approx(tight.strengths, abs=1e-4)


# what data cannot say


def test_models_never_compared_form_groups() -> None:
    met = np.zeros((5, 5))
    met[0, 1] = met[1, 4] = met[2, 3] = 1
    assert connected(met) == [[0, 1, 4], [2, 3]]
    assert connected(np.ones((3, 3))) == [[0, 1, 2]]


def test_a_model_that_never_lost_is_separated() -> None:
    wins = np.array([[0, 5, 5], [0, 0, 3], [0, 2, 0]])
    assert separated(wins, np.zeros((3, 3)))
    one_tie = np.zeros((3, 3))
    one_tie[0, 1] = one_tie[1, 0] = 1
    assert not separated(wins, one_tie)
    with pytest.raises(ValueError, match="never lost"):
        davidson(wins, np.zeros((3, 3)), prior_sd=np.inf)
    with_prior = davidson(wins, np.zeros((3, 3))).strengths
    assert with_prior[0] > 2 > with_prior[1]


@pytest.mark.parametrize(
    ("wins", "ties", "message"),
    [
        (np.zeros((2, 3)), np.zeros((2, 3)), "square"),
        (np.zeros((2, 2)), np.zeros((3, 3)), "alike"),
        (np.zeros((2, 2)), np.array([[0, 1], [0, 0]]), "symmetric"),
    ],
)
def test_wrong_shapes(wins: ndarray, ties: ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        davidson(wins, ties)


def test_ties_alone_have_no_largest_likelihood() -> None:
    level = np.array([[0, 4], [4, 0]])
    with pytest.raises(ValueError, match="all comparisons tied"):
        davidson(np.zeros((2, 2)), level, prior_sd=np.inf)
    found = davidson(np.zeros((2, 2)), level)
    assert found.strengths == pytest.approx([0, 0])
    assert found.tie > 2


# how it climbs


@pytest.mark.parametrize("seed", range(3))
def test_slope_and_curvature_are_the_derivatives_of_the_likelihood(seed: int) -> None:
    """By differences of the model written out, at places away from the top; a second fit beside."""
    wins, ties = games(seed, 4)
    more, _ = games(seed + 50, 4)
    rng, sd, step = np.random.default_rng(seed), 1.7, 1e-5
    places = rng.normal(size=(2, 5))
    both, tied = np.stack([wins, more]), np.stack([ties, ties.T / 2])
    slopes, curves = bradley_terry._derivatives(
        places, both, tied, np.array([True, True]), 1 / sd**2
    )
    moves = np.eye(5) * step
    for place, w, t, slope, curve in zip(places, both, tied, slopes, curves, strict=True):

        def value(at: ndarray, w: ndarray = w, t: ndarray = t) -> float:
            return -negative_log_likelihood(at, w, t, sd)

        expected = [(value(place + m) - value(place - m)) / (2 * step) for m in moves]
        assert slope == pytest.approx(expected, rel=1e-6, abs=1e-5)
        # strengths have a further 1, without which a common shift would be free
        shift = np.pad(np.ones((4, 4)), (0, 1))
        gradient = [_slope(place + m, w, t, sd) - _slope(place - m, w, t, sd) for m in moves]
        assert curve - shift == pytest.approx(-np.array(gradient) / (2 * step), rel=1e-5, abs=1e-5)


def _slope(place: ndarray, wins: ndarray, ties: ndarray, sd: float) -> ndarray:
    found, _ = bradley_terry._derivatives(
        place[None], wins[None], ties[None], np.array([True]), 1 / sd**2
    )
    return found[0]


def test_a_step_leads_uphill_with_ties_and_without() -> None:
    (wins, ties), (more, none) = games(0, 3), games(1, 3, ties=False)
    _, curves = bradley_terry._derivatives(
        np.array([[0.5, 0, -0.5, 0.3], [0.5, 0, -0.5, -np.inf]]), np.stack([wins, more]),
        np.stack([ties, none]), np.array([True, False]), 0.1,
    )  # fmt: skip
    assert (np.linalg.eigvalsh(curves) > 0).all()


def test_without_a_prior_the_weight_of_all_votes_does_not_matter() -> None:
    wins, ties = games(5, 3)
    whole, part = (
        davidson(wins, ties, prior_sd=np.inf),
        davidson(wins / 1000, ties / 1000, prior_sd=np.inf),
    )
    assert (ties / 1000).sum() < 1
    assert part.strengths == pytest.approx(whole.strengths, abs=1e-6)
    assert part.tie == pytest.approx(whole.tie, abs=1e-6)
