"""Metrics equal numbers derived by hand, and scikit-learn's, statsmodels' or SciPy's."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import linalg, stats
from sklearn.metrics import brier_score_loss, roc_auc_score
from statsmodels.stats.contingency_tables import mcnemar as their_mcnemar
from statsmodels.stats.proportion import proportion_confint

from sayso.metrics import quality as metrics

RNG = np.random.default_rng(0)


# shares and paired comparisons


def test_wilson_by_hand() -> None:
    # z = 1.96: centre (0.5 + 0.019208) / (1 + 0.038416), half 1.96 √(0.0025 + 0.00009604) / 1.0384
    found = metrics.wilson(50, 100)
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.40383, 0.59617), abs=1e-5)
    none = metrics.wilson(0, 10)
    assert none.low == 0
    assert none.high == pytest.approx(3.841459 / 13.841459, abs=1e-6)


@given(st.integers(1, 300), st.floats(0, 1), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_equals_statsmodels(n: int, share: float, confidence: float) -> None:
    k = round(share * n)
    found = metrics.wilson(k, n, confidence)
    expected = proportion_confint(k, n, alpha=1 - confidence, method="wilson")
    assert (found.low, found.high) == pytest.approx(expected, abs=1e-9)
    assert 0 <= found.low <= found.value <= found.high <= 1


@pytest.mark.parametrize(("k", "n"), [(0, 0), (3, 2), (-1, 5)])
def test_wilson_refuses(k: int, n: int) -> None:
    with pytest.raises(ValueError, match="successes"):
        metrics.wilson(k, n)


def test_share_over_prompts_of_single_images_is_wilson_with_students_t() -> None:
    true = np.array([True] * 6 + [False] * 14)
    found = metrics.share_over_prompts(true, [str(i) for i in range(20)])
    # variance between prompts 20/19 · p q / n, so 19 effective images; t of 19 degrees of freedom
    t, n, p = stats.t.ppf(0.975, 19), 19, 0.3
    root = t * math.sqrt(p * (1 - p) / n + t * t / (4 * n * n))
    low, high = (((p + t * t / (2 * n)) + s * root) / (1 + t * t / n) for s in (-1, 1))
    assert (found.value, found.low, found.high) == pytest.approx((p, low, high))


def test_share_over_prompts_counts_copies_of_an_image_once() -> None:
    true, ids = RNG.random(30) < 0.4, [str(i) for i in range(30)]
    one = metrics.share_over_prompts(true, ids)
    ten = metrics.share_over_prompts(np.repeat(true, 10), np.repeat(ids, 10).tolist())
    assert (ten.low, ten.high) == pytest.approx((one.low, one.high))
    images = metrics.share_over_prompts(np.repeat(true, 10), [str(i) for i in range(300)])
    assert images.high - images.low < 0.5 * (ten.high - ten.low)


def test_share_over_prompts_is_never_surer_than_independent_images() -> None:
    """Prompts of exactly one true image in two: no spread between prompts is no proof."""
    found = metrics.share_over_prompts(
        np.tile([True, False], 20), np.repeat(range(20), 2).astype(str).tolist()
    )
    t = stats.t.ppf(0.975, 19)
    assert found.high - 0.5 == pytest.approx(
        t * math.sqrt(1 / 160 + t * t / 6400) / (1 + t * t / 40)
    )


def test_share_over_prompts_corners() -> None:
    ids = np.repeat(range(10), 8).astype(str).tolist()
    all_true = metrics.share_over_prompts(np.ones(80, bool), ids)
    assert (all_true.value, all_true.high) == (1, 1)
    # the prompts count, not the images: n = 10 and t of 9 degrees of freedom
    assert all_true.low == pytest.approx(10 / (10 + stats.t.ppf(0.975, 9) ** 2))
    one = metrics.share_over_prompts(np.array([True, False]), ["a", "a"])
    assert one.value == 0.5
    assert math.isnan(one.low)
    assert math.isnan(one.high)
    with pytest.raises(ValueError, match="at least one image"):
        metrics.share_over_prompts(np.zeros(0, bool), [])


def test_sign_flip_by_hand() -> None:
    # sums of ±1 ±1 ±2: 4, 2, 2, 0, 0, −2, −2, −4, each with chance 1/8
    assert metrics.sign_flip_test(np.array([1, 1, 2, 0])) == pytest.approx(2 / 8)
    assert metrics.sign_flip_test(np.array([1, -1, 2])) == pytest.approx(6 / 8)
    assert metrics.sign_flip_test(np.zeros(5, int)) == 1.0
    # one prompt proves nothing, however many of its images changed
    assert metrics.sign_flip_test(np.array([8])) == 1.0
    with pytest.raises(ValueError, match="whole"):
        metrics.sign_flip_test(np.array([0.5]))


@pytest.mark.parametrize("seed", range(4))
def test_sign_flip_with_one_image_a_prompt_is_mcnemars_test(seed: int) -> None:
    rng = np.random.default_rng(seed)
    before, after = rng.random(80) < 0.3, rng.random(80) < 0.5
    table = [[np.sum(a & b) for b in (after, ~after)] for a in (before, ~before)]
    expected = their_mcnemar(np.array(table), exact=True).pvalue
    changes = metrics.changes_by_prompt(before, after, [str(i) for i in range(80)])
    assert metrics.sign_flip_test(changes) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(4))
def test_sign_flip_equals_scipys_permutation_test(seed: int) -> None:
    changes = np.random.default_rng(seed).integers(-4, 6, 11)
    theirs = stats.permutation_test(
        (changes,), np.sum, permutation_type="samples", n_resamples=np.inf
    )
    assert metrics.sign_flip_test(changes) == pytest.approx(theirs.pvalue)


def test_changes_by_prompt() -> None:
    before = np.array([False, False, True, True, False])
    after = np.array([True, True, False, True, True])
    found = metrics.changes_by_prompt(before, after, ["a", "a", "b", "b", "b"])
    assert found.tolist() == [2, 0]


def test_paired_difference_with_one_image_a_prompt_is_students_interval() -> None:
    before, after = RNG.random(40) * 0.5, RNG.random(40)
    ids = [f"p{i:02}" for i in range(40)]
    found = metrics.paired_difference(before, after, ids)
    theirs = stats.ttest_rel(after, before).confidence_interval()
    assert found.value == pytest.approx(np.mean(after - before))
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high))


def test_paired_difference_counts_prompts_not_images() -> None:
    """Ten copies of every image of a prompt add no information, so the interval keeps its width."""
    change = RNG.integers(0, 2, 30).astype(float)
    ids = [str(i) for i in range(30)]
    one = metrics.paired_difference(np.zeros(30), change, ids)
    ten = metrics.paired_difference(
        np.zeros(300), np.repeat(change, 10), np.repeat(ids, 10).tolist()
    )
    assert (ten.low, ten.high) == pytest.approx((one.low, one.high), abs=1e-9)
    images = metrics.paired_difference(
        np.zeros(300), np.repeat(change, 10), [str(i) for i in range(300)]
    )
    assert images.high - images.low < 0.5 * (ten.high - ten.low)


def test_paired_difference_weighs_images_alike() -> None:
    ids = ["a", "b", "b", "b"]
    found = metrics.paired_difference(np.zeros(4), np.array([1.0, 0, 0, 0]), ids)
    assert found.value == 0.25


def test_paired_difference_corners() -> None:
    same = metrics.paired_difference(np.zeros(4, bool), np.ones(4, bool), list("aabb"))
    assert same.value == 1
    assert math.isnan(same.low)
    assert math.isnan(same.high)
    with pytest.raises(ValueError, match="at least 2"):
        metrics.paired_difference(np.zeros(2), np.ones(2), ["a", "a"])


def test_win_tie_lose_at_two_thirds_of_nine() -> None:
    votes = [
        [1] * 6 + [-1] * 3,  # exactly two thirds: a win
        [1] * 5 + [0] * 4,  # five of nine: nobody
        [-1] * 7 + [0] * 2,
        [0] * 6 + [1] * 3,
        [1] * 9,
    ]
    found = metrics.win_tie_lose(votes)
    shares = [getattr(found, k).value for k in ("win", "tie", "lose", "undecided")]
    assert shares == [0.4, 0.2, 0.2, 0.2]
    assert found.net == pytest.approx(0.2)
    assert found.n_prompts == 5
    assert found.win == metrics.wilson(2, 5)


@pytest.mark.parametrize("votes", [[], [[1], []], [[1, 2]]])
def test_win_tie_lose_refuses(votes: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="vote"):
        metrics.win_tie_lose(votes)


def test_win_tie_lose_refuses_thresholds_two_sides_could_reach() -> None:
    with pytest.raises(ValueError, match="threshold"):
        metrics.win_tie_lose([[1, -1]], threshold=0.5)


# how good a reward is


def test_auc_by_hand_with_a_tie() -> None:
    # pairs (good, bad): 0.9>0.5, 0.9>0.1, 0.5=0.5, 0.5>0.1 → 3.5 of 4
    good = np.array([True, True, False, False])
    assert metrics.roc_auc(good, np.array([0.9, 0.5, 0.5, 0.1])) == 3.5 / 4
    with pytest.raises(ValueError, match="needs both"):
        metrics.roc_auc(np.array([True]), np.array([0.3]))


@pytest.mark.parametrize("digits", [1, 8])
def test_reward_metrics_equal_scikit_learn(digits: int) -> None:
    good = RNG.random(200) < 0.4
    scores = np.clip(0.3 * good + RNG.random(200) * 0.7, 0, 1).round(digits)
    assert metrics.roc_auc(good, scores) == pytest.approx(roc_auc_score(good, scores))
    assert metrics.brier(good, scores) == pytest.approx(brier_score_loss(good, scores))


def test_accuracy_counts_the_threshold_as_good() -> None:
    good = np.array([True, True, False, False])
    assert metrics.accuracy(good, np.array([0.5, 0.4, 0.49, 0.9])) == 0.5
    assert metrics.accuracy(good, np.array([0.5, 0.4, 0.49, 0.9]), threshold=0.4) == 0.5
    assert metrics.accuracy(good, np.array([0.95, 0.91, 0.49, 0.9]), threshold=0.91) == 1.0


def test_pair_accuracy_compares_within_a_prompt() -> None:
    good = np.array([True, False, False, True, False, True])
    scores = np.array([0.6, 0.5, 0.6, 0.1, 0.3, 0.9])
    # a: 0.6>0.5 right, 0.6=0.6 half; b: 0.1<0.3 wrong; c has no bad image
    share, n = metrics.pair_accuracy(good, scores, ["a", "a", "a", "b", "b", "c"])
    assert (share, n) == (1.5 / 3, 3)
    share, n = metrics.pair_accuracy(good, scores, list("abcdef"))
    assert math.isnan(share)
    assert n == 0


def test_calibration_by_hand() -> None:
    scores = np.array([0.05, 0.15, 0.18, 1.0, 0.95])
    labels = np.array([0.0, 1.0, 0.0, 1.0, 0.5])
    table = metrics.calibration(labels, scores)
    assert [row.n for row in table] == [1, 2, 0, 0, 0, 0, 0, 0, 0, 2]
    assert (table[1].score, table[1].label) == pytest.approx((0.165, 0.5))
    assert (table[2].score, table[2].label) == (None, None)
    assert (table[9].low, table[9].high) == (0.9, 1.0)
    # (1·0.05 + 2·0.335 + 2·0.225) / 5
    assert metrics.calibration_error(table) == pytest.approx((0.05 + 0.67 + 0.45) / 5)
    with pytest.raises(ValueError, match="at least one"):
        metrics.calibration_error(metrics.calibration(np.array([]), np.array([])))


# fidelity and diversity


def test_frechet_distance_of_shifted_and_scaled_rows() -> None:
    # one dimension: (μ_a − μ_b)² + (σ_a − σ_b)²
    a = np.array([-1.0, 1.0, -1.0, 1.0])[:, None]
    sigma = math.sqrt(4 / 3)
    assert metrics.frechet_distance(a, 3 * a + 5) == pytest.approx(25 + (2 * sigma) ** 2)
    assert metrics.frechet_distance(a, a) == pytest.approx(0, abs=1e-12)


def test_frechet_distance_equals_the_textbook_formula() -> None:
    a, b = RNG.normal(size=(60, 5)) @ RNG.normal(size=(5, 5)), RNG.normal(0.3, 2, size=(50, 5))
    s, t = np.cov(a.T), np.cov(b.T)
    shift = a.mean(0) - b.mean(0)
    expected = shift @ shift + np.trace(s + t - 2 * linalg.sqrtm(s @ t).real)
    assert metrics.frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert metrics.frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_flat_rows() -> None:
    """Features that do not vary, or depend on each other, make singular covariances."""
    a = RNG.normal(size=(40, 2)) @ np.array([[1.0, 2, 0], [1, -1, 0]])
    assert metrics.frechet_distance(a, a + np.array([0, 0, 2])) == pytest.approx(4, abs=1e-6)


def test_frechet_distance_refuses_few_rows() -> None:
    with pytest.raises(
        ValueError, match="9 rows of 5 features; a Fréchet distance needs at least 10"
    ):
        metrics.frechet_distance(RNG.normal(size=(20, 5)), RNG.normal(size=(9, 5)))


def slow_mmd(a, b, kernel) -> float:
    """The unbiased estimate as its definition says, with loops."""
    n, m = len(a), len(b)
    own = sum(kernel(a[i], a[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    own += sum(kernel(b[i], b[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return own - 2 * sum(kernel(x, y) for x in a for y in b) / (n * m)


def test_kid_by_hand() -> None:
    # d = 1, a = {0, 1}, b = {1, 2}: k(0,1) = 1, k(1,2) = 27, cross (1 + 1 + 8 + 27) / 4
    a, b = np.array([[0.0], [1.0]]), np.array([[1.0], [2.0]])
    assert metrics.kid(a, b) == pytest.approx(1 + 27 - 2 * 37 / 4)


def test_kid_and_cmmd_equal_their_definitions() -> None:
    a, b = RNG.normal(size=(9, 4)), RNG.normal(0.5, 1, size=(7, 4))
    expected = slow_mmd(a, b, lambda x, y: (x @ y / 4 + 1) ** 3)
    assert metrics.kid(a, b) == pytest.approx(expected)
    unit_a, unit_b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    expected = slow_mmd(unit_a, unit_b, lambda x, y: np.exp(-((x - y) ** 2).sum() / 200))
    assert metrics.cmmd(a, b) == pytest.approx(1000 * expected)
    assert metrics.cmmd(3 * a, b) == pytest.approx(metrics.cmmd(a, b))


def test_kernel_distances_are_unbiased_and_grow() -> None:
    same = [metrics.kid(*np.random.default_rng(s).normal(size=(2, 30, 3))) for s in range(200)]
    assert abs(np.mean(same)) < 3 * np.std(same) / math.sqrt(200)
    a = RNG.normal(size=(50, 3))
    assert metrics.kid(a, a[::-1] + 2) > metrics.kid(a, a[::-1] + 1) > 0
    with pytest.raises(ValueError, match="at least 2"):
        metrics.kid(a[:1], a)


def test_precision_and_recall_by_hand() -> None:
    # k = 1: real balls reach 1, 1 and 9; generated ones 0.5, 0.5 and 19
    real = np.array([[0.0], [1.0], [10.0]])
    generated = np.array([[0.5], [1.0], [20.0]])
    precision, recall = metrics.precision_recall(real, generated, k=1)
    assert precision == pytest.approx(2 / 3)
    assert recall == 1.0
    apart = metrics.precision_recall(real, generated + 1000, k=1)
    assert apart == (0.0, 0.0)
    with pytest.raises(ValueError, match="more than k = 3"):
        metrics.precision_recall(real, generated)


def test_dropped_modes_cost_recall_and_not_precision() -> None:
    real = np.concatenate([RNG.normal(c, 0.1, (50, 2)) for c in (0, 5)])
    precision, recall = metrics.precision_recall(real, RNG.normal(0, 0.1, (100, 2)))
    assert precision > 0.9
    assert recall < 0.55


def test_vendi_score_counts_what_is_different() -> None:
    basis = np.eye(6)
    assert metrics.vendi_score(basis) == pytest.approx(6)
    assert metrics.vendi_score(basis[[0] * 8]) == pytest.approx(1)
    assert metrics.vendi_score(basis[[0, 1, 0, 1]] * 7) == pytest.approx(2)
    # shares 3/4 and 1/4: exp of their entropy
    expected = math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert metrics.vendi_score(basis[[0, 0, 0, 1]]) == pytest.approx(expected)


def test_vendi_score_is_the_same_by_either_gram_matrix() -> None:
    rows = RNG.normal(size=(12, 5))
    padded = np.concatenate([rows, np.zeros((12, 20))], axis=1)
    assert metrics.vendi_score(rows) == pytest.approx(metrics.vendi_score(padded))
    with pytest.raises(ValueError, match="at least one"):
        metrics.vendi_score(np.zeros((0, 3)))


# the edges of what is allowed, and of what counts


def test_two_prompts_are_enough_for_an_interval() -> None:
    found = metrics.share_over_prompts(np.array([True, False, True, True]), list("aabb"))
    assert 0 <= found.low < 0.75 < found.high <= 1


def test_prompts_of_different_size_that_changed_alike_have_no_interval() -> None:
    found = metrics.paired_difference(np.zeros(3), np.full(3, 0.5), ["a", "b", "b"])
    assert found.value == 0.5
    assert math.isnan(found.low)


def test_a_difference_of_shares_stays_between_minus_one_and_one() -> None:
    ids = ["a", "b", "c"]
    up = metrics.paired_difference(np.zeros(3), np.array([1.0, 0.0, 1.0]), ids)
    assert up.high == 1
    down = metrics.paired_difference(np.array([1.0, 0.0, 1.0]), np.zeros(3), ids)
    assert down.low == -1


def test_a_majority_may_be_asked_of_all_raters_and_of_no_more() -> None:
    assert metrics.win_tie_lose([[1, 1], [1, 0]], threshold=1.0).win.value == 0.5
    with pytest.raises(ValueError, match="threshold"):
        metrics.win_tie_lose([[1]], threshold=1.01)


def test_accuracy_and_calibration_without_options() -> None:
    scores = np.array([0.4, 0.6, 1.0])
    assert metrics.accuracy(np.array([False, True, True]), scores) == 1
    assert metrics.bin_of(scores).tolist() == [4, 6, 9]
    assert [row.n for row in metrics.calibration(np.ones(3), scores, bins=2)] == [1, 2]


def test_frechet_distance_takes_two_rows_a_feature() -> None:
    rows = RNG.normal(size=(4, 2))
    assert metrics.frechet_distance(rows, rows + 1) == pytest.approx(2)


def test_a_row_on_the_rim_of_a_ball_is_inside() -> None:
    real = np.array([0.0, 0.01, 0.02])[:, None]
    # the balls of k = 2 reach 0.02, 0.01 and 0.02 far
    on, off = np.array([0.04, 0.0401, 5.0])[:, None], np.array([0.0401, 5.0, 6.0])[:, None]
    rim = metrics.precision_recall(real * 100, np.array([4.0, 4.01, 500.0])[:, None], k=2)
    assert rim[0] == pytest.approx(1 / 3)
    assert metrics.precision_recall(real, on - 1e-9, k=2)[0] == pytest.approx(1 / 3)
    assert metrics.precision_recall(real, off, k=2)[0] == 0


def test_a_row_of_zeros_is_unlike_everything() -> None:
    assert metrics.vendi_score(np.array([[0.0, 0.0], [1.0, 0.0]])) == pytest.approx(math.sqrt(2))


# what rounding must not do


def test_no_rounding_puts_a_share_or_a_chance_above_one() -> None:
    for n in range(1, 200):
        assert metrics.wilson(n, n).high == 1
    for n in range(40, 60):
        sizes = 1 + np.arange(n) % 7
        # the changes add up to nothing, so every way to sign them is as far from 0
        p = metrics.sign_flip_test(np.concatenate([sizes, -sizes]))
        assert p == pytest.approx(1)
        assert p <= 1


def test_changes_by_prompt_are_whole_numbers() -> None:
    found = metrics.changes_by_prompt(np.array([True]), np.array([False]), ["a"])
    assert (found.dtype.kind, found.tolist()) == ("i", [-1])


@pytest.mark.parametrize("seed", range(3))
def test_frechet_distance_of_rows_on_two_planes(seed: int) -> None:
    """Covariances of rank 2 in 6 dimensions, some of whose eigenvalues round to below 0.

    With S_a = A A' and S_b = B B', tr (S_a S_b)^½ is the sum of the singular values of A' B.
    """
    rng = np.random.default_rng(seed)
    a, b = (rng.normal(size=(40, 2)) @ rng.normal(size=(2, 6)) for _ in range(2))
    shift = a.mean(0) - b.mean(0)
    one, two = ((x - x.mean(0)) / math.sqrt(39) for x in (a, b))
    cross = np.linalg.svd(one @ two.T, compute_uv=False).sum()
    expected = shift @ shift + (one**2).sum() + (two**2).sum() - 2 * cross
    assert metrics.frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_no_distance_is_below_nought() -> None:
    rows = np.random.default_rng(0).normal(100, 0.01, size=(30, 8))
    distances = metrics._squared_distances(rows, rows)
    assert (distances >= 0).all()
    assert np.diagonal(distances) == pytest.approx(0, abs=1e-9)
