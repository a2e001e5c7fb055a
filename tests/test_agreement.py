"""Agreement: alpha, kappa and rates equal independent implementations; intervals by resampling."""

import itertools
import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.metrics.agreement import AnnotationTask
from numpy import ndarray
from statsmodels.stats import inter_rater

from sayso.base import bootstrap
from sayso.base.bootstrap import Clusters
from sayso.votes import agreement
from sayso.votes.agreement import Statistics, Votes, collect, measure, statistics
from sayso.votes.item_votes import ItemVote

CLASSES = ("good", "bad", "skip")


def unweighted(counts: np.ndarray) -> Statistics:
    sums = np.asarray(counts, dtype=float).T
    weight = np.ones(sums.shape[1])
    return statistics(sums, sums, weight, weight[:, None], n_unskipped=len(sums))


def krippendorff_alpha(counts: np.ndarray) -> float:
    return float(unweighted(counts).alpha[0])


def fleiss_kappa(counts: np.ndarray) -> float:
    return float(unweighted(counts).kappa[0])


def textbook_alpha(votes: list[list[int]]) -> float:
    """Krippendorff 2011, by the matrix of coincidences; each list is an item's values."""
    units = [unit for unit in votes if len(unit) > 1]
    values = sorted({value for unit in units for value in unit})
    coincidences = dict.fromkeys(itertools.product(values, values), 0.0)
    for unit in units:
        for i, j in itertools.permutations(range(len(unit)), 2):
            coincidences[unit[i], unit[j]] += 1 / (len(unit) - 1)
    margins = {c: sum(coincidences[c, k] for k in values) for c in values}
    n = sum(margins.values())
    observed = sum(o for (c, k), o in coincidences.items() if c != k)
    expected = sum(margins[c] * margins[k] for c in values for k in values if c != k) / (n - 1)
    return 1 - observed / expected


def counted(votes: list[list[int]], classes: int) -> ndarray:
    return np.array([[unit.count(c) for c in range(classes)] for unit in votes], dtype=float)


def random_table(seed: int, ragged: bool) -> tuple[list[list[int]], int]:
    """Votes with some agreement: each item has a favourite class."""
    rng = np.random.default_rng(seed)
    classes, raters = int(rng.integers(2, 5)), int(rng.integers(2, 8))
    votes = []
    for _ in range(int(rng.integers(5, 60))):
        favourite = rng.integers(classes)
        n = int(rng.integers(0, raters + 1)) if ragged else raters
        picks = np.where(rng.random(n) < 0.6, favourite, rng.integers(classes, size=n))
        votes.append(picks.tolist())
    return votes, classes


# against other implementations


@pytest.mark.parametrize("seed", range(12))
def test_kappa_equals_statsmodels(seed: int) -> None:
    votes, classes = random_table(seed, ragged=False)
    counts = counted(votes, classes)
    expected = inter_rater.fleiss_kappa(counts, method="fleiss")
    assert fleiss_kappa(counts) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("ragged", [False, True])
def test_alpha_equals_nltk_and_the_textbook(seed: int, ragged: bool) -> None:
    votes, classes = random_table(seed, ragged)
    found = krippendorff_alpha(counted(votes, classes))
    rows = [(f"r{r}", f"i{i}", v) for i, unit in enumerate(votes) for r, v in enumerate(unit)]
    assert found == pytest.approx(AnnotationTask(data=rows).alpha(), abs=1e-9)
    assert found == pytest.approx(textbook_alpha(votes), abs=1e-9)


def test_alpha_by_hand() -> None:
    """Two raters, ten items, good or bad: o = 4 of 20 disagree, 10 and 10 of each value."""
    votes = [[0, 0]] * 4 + [[1, 1]] * 4 + [[0, 1]] * 2
    # D_o = 4/20, D_e = 10 · 10 · 2 / (20 · 19)
    assert krippendorff_alpha(counted(votes, 2)) == pytest.approx(1 - 0.2 / (200 / 380))


@pytest.mark.parametrize("votes", [[[0], [1]], [[0, 0], [0, 0]], [[]]])
def test_nothing_can_be_said_of_single_or_equal_votes(votes: list[list[int]]) -> None:
    assert math.isnan(krippendorff_alpha(counted(votes, 2)))
    assert math.isnan(fleiss_kappa(counted(votes, 2)))


def test_alpha_looks_low_on_skewed_votes() -> None:
    """The same share of pairs alike, 90 %: half good and half bad, or nearly all good."""
    even = [[0, 0]] * 45 + [[1, 1]] * 45 + [[0, 1]] * 10
    skewed = [[0, 0]] * 90 + [[0, 1]] * 10
    assert krippendorff_alpha(counted(even, 2)) > 0.79
    assert krippendorff_alpha(counted(skewed, 2)) < 0


# properties

TABLES = st.integers(0, 10_000).map(lambda seed: random_table(seed, ragged=True))


@settings(max_examples=25, deadline=None)
@given(TABLES, st.randoms(use_true_random=False))
def test_names_of_classes_and_order_of_items_do_not_matter(table, random) -> None:
    votes, classes = table
    counts = counted(votes, classes)
    columns, rows = list(range(classes)), list(range(len(votes)))
    random.shuffle(columns)
    random.shuffle(rows)
    for statistic in (krippendorff_alpha, fleiss_kappa):
        expected, found = statistic(counts), statistic(counts[rows][:, columns])
        assert found == pytest.approx(expected, abs=1e-12, nan_ok=True)


@settings(max_examples=25, deadline=None)
@given(TABLES)
def test_full_agreement_is_one_and_nothing_is_above(table) -> None:
    votes, classes = table
    alike = counted([[unit[0]] * len(unit) if unit else [] for unit in votes], classes)
    for statistic in (krippendorff_alpha, fleiss_kappa):
        found = statistic(alike)
        assert math.isnan(found) or found == pytest.approx(1)
        other = statistic(counted(votes, classes))
        assert math.isnan(other) or other <= 1 + 1e-12


def test_votes_at_random_agree_no_more_than_by_chance() -> None:
    rng = np.random.default_rng(0)
    votes = rng.choice(3, size=(2000, 3), p=[0.6, 0.3, 0.1]).tolist()
    counts = counted(votes, 3)
    assert krippendorff_alpha(counts) == pytest.approx(0, abs=0.03)
    assert fleiss_kappa(counts) == pytest.approx(0, abs=0.03)


# votes as arrays


def item_votes(
    n_items: int = 24, raters: int = 6, overlap: int = 3, seed: int = 0
) -> list[ItemVote]:
    rng = np.random.default_rng(seed)
    found = []
    for i in range(n_items):
        true = rng.random() < 0.5
        for r in rng.choice(raters, overlap, replace=False):
            value = "good" if (rng.random() < 0.85) == true else "bad"
            value = "skip" if rng.random() < 0.1 else value
            found.append(ItemVote(f"i{i:03}", f"p{i // 4}", f"r{r}", value))
    return found


def everything(votes: Votes) -> dict[str, ndarray]:
    return {"all": np.ones(len(votes.items), dtype=bool)}


def test_the_order_of_votes_does_not_matter() -> None:
    rows = item_votes()
    first, second = collect(rows, CLASSES), collect(rows[::-1], CLASSES)
    assert first.items == second.items
    assert np.array_equal(first.rater, second.rater)
    a = measure(first, everything(first), n_unskipped=2, resamples=50, seed=1)
    assert a == measure(second, everything(second), n_unskipped=2, resamples=50, seed=1)


def test_two_votes_of_a_rater_on_an_item_are_refused() -> None:
    with pytest.raises(ValueError, match="two votes on one item"):
        collect([*item_votes(), item_votes()[0]], CLASSES)
    with pytest.raises(ValueError, match="two prompts"):
        collect([ItemVote("i", "p", "a", "good"), ItemVote("i", "q", "b", "good")], CLASSES)


def test_skips_count_in_the_rates_alone() -> None:
    rows = item_votes()
    votes = collect(rows, CLASSES)
    found = measure(votes, everything(votes), n_unskipped=2, resamples=0, seed=0)["all"]
    judged = votes.without("skip")
    assert judged.classes == ("good", "bad")
    assert judged.items == votes.items
    assert found.alpha.value == pytest.approx(krippendorff_alpha(judged.counts()))
    assert found.kappa.value == pytest.approx(fleiss_kappa(judged.counts()))
    assert found.shared_items == int((judged.counts().sum(1) > 1).sum())
    for value, rate in found.rates.items():
        assert rate.value == pytest.approx(sum(b.value == value for b in rows) / len(rows))
    assert math.isnan(found.alpha.low)


def test_groups_are_measured_on_their_own_items() -> None:
    votes = collect(item_votes(), CLASSES)
    mask = np.arange(len(votes.items)) % 3 == 0
    groups = {**everything(votes), "third": mask}
    found = measure(votes, groups, n_unskipped=2, resamples=20, seed=0)
    assert found["third"].items == 8
    counts = votes.without("skip").counts()[mask]
    assert found["third"].alpha.value == pytest.approx(krippendorff_alpha(counts))
    assert found["third"].alpha.low <= found["third"].alpha.value <= found["third"].alpha.high


def test_measured_agreement_and_rates_by_hand() -> None:
    """Pairs alike: 1 of 1 on a, 1 of 3 on b, none on c; d was judged once."""
    said = {"a": "gg", "b": "ggb", "c": "gb", "d": "bs", "e": "s"}
    names = {"g": "good", "b": "bad", "s": "skip"}
    rows = [
        ItemVote(i, f"p{i}", f"r{k}", names[v]) for i, vs in said.items() for k, v in enumerate(vs)
    ]
    votes = collect(rows, CLASSES)
    groups = {**everything(votes), "last": np.array([False, False, True, True, True])}
    found = measure(votes, groups, n_unskipped=2, resamples=0, seed=0)
    assert found["all"].agreement.value == pytest.approx((1 + 1 / 3 + 0) / 3)
    assert found["last"].agreement.value == 0
    rates = {name: [r.value for r in group.rates.values()] for name, group in found.items()}
    assert rates["all"] == pytest.approx([5 / 10, 3 / 10, 2 / 10])
    assert rates["last"] == pytest.approx([1 / 5, 2 / 5, 2 / 5])
    counts = [(g.items, g.shared_items, g.votes) for g in found.values()]
    assert counts == [(5, 3, 10), (3, 1, 5)]


def test_votes_without_a_value_that_is_not_the_last() -> None:
    votes = collect([ItemVote("i", "p", f"r{k}", v) for k, v in enumerate("bacb")], tuple("abc"))
    assert votes.value.tolist() == [1, 0, 2, 1]
    rest = votes.without("a")
    assert (rest.classes, rest.value.tolist()) == (("b", "c"), [0, 1, 0])
    assert (rest.rater.tolist(), rest.raters) == ([0, 2, 3], votes.raters)
    assert votes.without("z") is votes


def test_no_votes_are_arrays_too() -> None:
    votes = collect([], CLASSES)
    assert votes.counts().shape == (0, 3)
    assert {a.dtype.kind for a in (votes.item, votes.rater, votes.value, votes.prompt)} == {"i"}


def test_two_votes_are_refused_whatever_their_times() -> None:
    vote = ItemVote("i", "p", "a", "good")
    with pytest.raises(ValueError, match="two votes on one item"):
        collect([vote, vote._replace(seconds=1.0)], CLASSES)


def test_an_item_that_nobody_judged_changes_nothing_and_warns_of_nothing() -> None:
    votes, classes = random_table(3, ragged=True)
    judged = [unit for unit in votes if unit]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for statistic in (krippendorff_alpha, fleiss_kappa):
            expected = statistic(counted(judged, classes))
            assert statistic(counted([*judged, []], classes)) == pytest.approx(expected)
            assert math.isnan(statistic(counted([[0], [1]], 2)))


# the bootstrap


def test_raters_are_drawn_anew() -> None:
    """One of five always says bad: the rate of good is k / 5, with k binomial of 5 and 4/5.

    P(k ≤ 1) = 0.007 and P(k ≤ 2) = 0.058, so 2.5 % of the resamples lie below 2/5.
    """
    rows = [
        ItemVote(f"i{i}", f"p{i}", f"r{r}", "good" if r else "bad")
        for i in range(10)
        for r in range(5)
    ]
    votes = collect(rows, CLASSES)
    found = measure(votes, everything(votes), n_unskipped=2, resamples=999, seed=0)["all"]
    good = found.rates["good"]
    assert (good.value, good.low, good.high) == pytest.approx((0.8, 0.4, 1.0))


def test_who_disagrees_with_everyone_does_so_when_drawn_twice() -> None:
    """Three raters who never agree: no resample has a pair alike."""
    rows = [ItemVote(f"i{i}", f"p{i}", f"r{r}", c) for i in range(9) for r, c in enumerate("abc")]
    votes = collect(rows, tuple("abc"))
    found = measure(votes, everything(votes), n_unskipped=3, resamples=99, seed=0)["all"]
    assert (found.agreement.value, found.agreement.low, found.agreement.high) == (0, 0, 0)


def test_a_rater_drawn_twice_does_not_agree_with_itself() -> None:
    """Weights of 2 or 1/2 on raters and prompts leave every statistic where it is."""
    votes = collect(item_votes(60), CLASSES)
    sums = votes.counts().T
    once, ones = np.ones(len(votes.items)), np.ones((len(votes.items), 1))
    plain = agreement.statistics(sums, sums, once, ones, n_unskipped=2)
    double = agreement.statistics(2 * sums, 4 * sums, 3 * once, ones, n_unskipped=2)
    assert np.allclose(np.vstack(plain), np.vstack(double))
    half = agreement.statistics(sums / 2, sums / 4, once, ones, n_unskipped=2)
    assert np.allclose(np.vstack(plain), np.vstack(half))


def test_bootstrap_of_a_mean_is_as_wide_as_theory_says() -> None:
    """One rater less than needed: prompts alone are drawn, and the mean's deviation is σ / √n."""
    x = np.random.default_rng(0).normal(size=400)
    clusters = Clusters(raters=2, prompts=400)
    assert clusters.drawn == "prompts"
    (found,) = bootstrap.bootstrap(
        lambda r, p: np.array([p @ x / p.sum()]), clusters, seed=0, resamples=2000
    )
    assert found.value == pytest.approx(x.mean())
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * x.std() / 20, rel=0.08)


def test_bootstrap_repeats_with_its_seed_and_corners() -> None:
    clusters = Clusters(5, 9)
    draws = [list(bootstrap.draws(clusters, 3, seed)) for seed in (1, 1, 2)]
    same = [np.array_equal(a, b) for (a, _), (b, _) in zip(draws[0], draws[1], strict=True)]
    assert all(same)
    assert any(not np.array_equal(a, b) for (_, a), (_, b) in zip(draws[0], draws[2], strict=True))
    assert all(r.sum() == 5 and p.sum() == 9 for r, p in draws[0])
    lonely = bootstrap.bootstrap(lambda r, p: np.array([0.5]), Clusters(9, 1), seed=0)
    assert lonely[0].plain() == {"value": 0.5, "low": None, "high": None}
    with pytest.raises(ValueError, match="at least one rater"):
        bootstrap.bootstrap(lambda r, p: np.array([0.5]), Clusters(0, 1), seed=0)


def test_limits_are_left_out_where_most_resamples_have_no_value() -> None:
    rows = np.array([[np.nan, 1.0], [np.nan, 2.0], [0.5, 3.0]])
    few, all_of_them = bootstrap.percentiles(np.array([0.5, 2.0]), rows)
    assert math.isnan(few.low)
    assert (all_of_them.low, all_of_them.high) == pytest.approx((1.05, 2.95))
    (outside,) = bootstrap.percentiles(np.array([5.0]), rows[:, 1:])
    assert (outside.low, outside.high) == (pytest.approx(1.05), 5.0)


def test_centred_intervals_stay_in_their_range() -> None:
    rows = np.array([[0.1, 0.9], [0.3, 1.0], [0.5, 1.0], [0.1, 0.8]])
    low, high = np.zeros(2), np.ones(2)
    first, second = bootstrap.centred(np.array([0.2, 0.95]), rows, low, high)
    assert first.high == pytest.approx(0.2 + 1.96 * rows[:, 0].std())
    assert first.low == 0.0
    assert second.high == 1.0


def test_raters_are_drawn_if_there_are_three() -> None:
    two, three = (list(bootstrap.draws(Clusters(n, 4), 50, 0)) for n in (2, 3))
    assert all(np.array_equal(raters, np.ones(2)) for raters, _ in two)
    assert {tuple(sorted(raters)) for raters, _ in three} == {(1, 1, 1), (0, 1, 2), (0, 0, 3)}
    assert all(p.sum() == 4 for draws in (two, three) for _, p in draws)
    assert any(p.max() > 1 for _, p in two)


def test_bootstrap_without_options_is_999_resamples_at_95_percent() -> None:
    seen = []

    def mean(raters: ndarray, prompts: ndarray) -> ndarray:
        seen.append(float(prompts @ x / prompts.sum()))
        return np.array(seen[-1:])

    x = np.random.default_rng(0).normal(size=30)
    (found,) = bootstrap.bootstrap(mean, Clusters(1, 30), seed=0)
    assert len(seen) == 1 + 999
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(seen[1:], [0.025, 0.975])))
    (half,) = bootstrap.bootstrap(mean, Clusters(1, 30), seed=0, confidence=0.5)
    assert (half.low, half.high) == pytest.approx(tuple(np.quantile(seen[1:1000], [0.25, 0.75])))


def test_half_of_the_resamples_are_enough_for_limits() -> None:
    (half,) = bootstrap.percentiles(np.array([0.5]), np.array([[np.nan], [0.5]]))
    assert (half.low, half.high) == (0.5, 0.5)


def test_centred_intervals_need_half_of_the_resamples_and_two() -> None:
    nan = np.nan
    columns = {
        "all": [0.0, 0.2, 0.4, 0.6],
        "half": [nan, 0.2, 0.4, nan],
        "one": [nan, 0.2, nan, nan],
    }
    rows = np.array(list(columns.values())).T
    values = np.full(3, 0.3)
    low, high = np.full(3, -9.0), np.full(3, 9.0)
    every, half, one = bootstrap.centred(values, rows, low, high)
    margin = 1.96 * math.sqrt(0.05)
    assert (every.low, every.high) == pytest.approx((0.3 - margin, 0.3 + margin))
    assert (half.low, half.high) == pytest.approx((0.3 - 0.196, 0.3 + 0.196))
    assert one.plain() == {"value": 0.3, "low": None, "high": None}
    (few,) = bootstrap.centred(
        values[:1], np.array([[nan, nan, nan, 0.2, 0.4]]).T, low[:1], high[:1]
    )
    assert math.isnan(few.low)
    (alone,) = bootstrap.centred(values[:1], np.array([[0.2]]), low[:1], high[:1])
    assert math.isnan(alone.low)
    (unknown,) = bootstrap.centred(np.array([nan]), rows[:, :1], low[:1], high[:1])
    assert math.isnan(unknown.low)
    assert math.isnan(unknown.high)
