"""Dawid and Skene's model: it converges, repeats, knows who errs, and finds the hidden truth."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy import ndarray
from scipy import stats

from sayso.base.types import Prompt, Rating
from sayso.votes.agreement import ItemVote, Votes, collect
from sayso.votes.dawid_skene import RIGHT, WRONG, DawidSkene, dawid_skene
from sayso.votes.rater_report import label_quality, rating_section
from sayso.votes.rater_table import rater_table

CLASSES = ("good", "bad")
CARELESS = 7


def crowd(
    seed: int, *, items: int = 1200, raters: int = 20, overlap: int = 3, careless: int | None = None
) -> tuple[list[ItemVote], dict[str, bool]]:
    """Raters who err on 3–8 %, each in its own way, skip 6 %, and perhaps one who does not look.

    Returns: the votes and the hidden truth of each item.
    """
    rng = np.random.default_rng(seed)
    false_good, false_bad = rng.uniform(0.03, 0.08, (2, raters))
    item_votes, truth = [], {}
    for i in range(items):
        name, true = f"i{i:04}", bool(rng.random() < 0.45)
        truth[name] = true
        for r in rng.choice(raters, overlap, replace=False).tolist():
            wrong = rng.random() < (false_bad if true else false_good)[r]
            good = bool(rng.random() < 0.5) if r == careless else true != wrong
            skips = rng.random() < 0.06
            value = "skip" if skips and r != careless else "good" if good else "bad"
            item_votes.append(ItemVote(name, f"p{i // 8}", f"r{r:02}", value))
    return item_votes, truth


def fitted(item_votes: list[ItemVote]):
    judged = collect(item_votes, (*CLASSES, "skip")).without("skip")
    return judged, dawid_skene(judged)


def majority(votes: Votes) -> ndarray:
    counts = votes.counts()
    return np.where(counts[:, 0] == counts[:, 1], 0.5, counts[:, 0] > counts[:, 1])


# what it finds


def test_three_careful_raters_by_hand() -> None:
    """One EM step from the start on one item, good twice and bad once, by the formulas."""
    values = {"a": "good", "b": "good", "c": "bad"}
    votes = collect([ItemVote("i", "p", rater, v) for rater, v in values.items()], CLASSES)
    model = dawid_skene(votes, max_iterations=1)
    start = (2 + 1 / 2) / 4
    shares = np.array([start + 1, 1 - start + 1]) / 3
    # each rater cast one vote, of which `start` belongs to the class good
    good_said_good = (start + RIGHT) / (start + RIGHT + WRONG)
    good_said_bad = (start + WRONG) / (start + RIGHT + WRONG)
    bad_said_good = (1 - start + WRONG) / (1 - start + RIGHT + WRONG)
    bad_said_bad = (1 - start + RIGHT) / (1 - start + RIGHT + WRONG)
    good = shares[0] * good_said_good**2 * good_said_bad
    bad = shares[1] * bad_said_good**2 * bad_said_bad
    assert model.probabilities[0, 0] == pytest.approx(good / (good + bad))
    assert not model.converged


@pytest.mark.parametrize("seed", range(3))
def test_rates_of_error_are_recovered(seed: int) -> None:
    rng = np.random.default_rng(seed)
    right = [(0.95, 0.9), (0.7, 0.95), (0.8, 0.7), (0.9, 0.8), (0.5, 0.5)]
    tables = np.array([[[good, 1 - good], [1 - bad, bad]] for good, bad in right])
    truth = rng.integers(2, size=3000)
    item_votes = [
        ItemVote(f"i{i:04}", "p", f"r{r}", CLASSES[int(rng.random() > tables[r, t, 0])])
        for i, t in enumerate(truth)
        for r in range(5)
    ]
    model = dawid_skene(collect(item_votes, CLASSES))
    assert np.abs(model.confusion - tables).max() < 0.05
    skill, deviation = model.skill()
    assert skill == pytest.approx(tables[:, 0, 0] + tables[:, 1, 1] - 1, abs=0.06)
    assert (np.abs(skill - (tables[:, 0, 0] + tables[:, 1, 1] - 1)) < 4 * deviation).all()


def test_a_rater_of_few_votes_stays_near_the_prior() -> None:
    item_votes, _ = crowd(0, items=200)
    newcomer = ItemVote("i0000", "p0", "zz", item_votes[0].value)
    _, model = fitted([*item_votes, newcomer])
    assert model.confusion[-1].max() < (RIGHT + 1) / (RIGHT + WRONG + 1) + 1e-9
    assert model.confusion[-1].diagonal().min() > RIGHT / (RIGHT + WRONG + 1) - 1e-9


def test_twenty_raters_one_careless() -> None:
    """The careless one is found and nobody else; the labels beat the majority's on the truth."""
    gains = []
    for seed in range(4):
        item_votes, truth = crowd(seed, careless=CARELESS)
        judged, model = fitted(item_votes)
        votes = collect(item_votes, (*CLASSES, "skip"))
        rows = rater_table(item_votes, votes, judged, model)
        assert [row.rater for row in rows if row.careless] == [f"r{CARELESS:02}"]
        assert rows[CARELESS].careless == ("guesses",)
        assert abs(rows[CARELESS].kappa) < 0.2 < min(r.kappa for r in rows if not r.careless)
        labels = {
            "majority": majority(judged).tolist(),
            "model": model.probabilities[:, 0].tolist(),
        }
        found = {
            method: label_quality(dict(zip(judged.items, values, strict=True)), truth)
            for method, values in labels.items()
        }
        assert found["model"]["squared_error"] < 0.9 * found["majority"]["squared_error"]
        gains.append(found["model"]["accuracy"] - found["majority"]["accuracy"])
    assert np.mean(gains) > 0


@pytest.mark.parametrize("seed", range(4))
def test_nobody_is_called_careless_among_careful_raters(seed: int) -> None:
    item_votes, _ = crowd(100 + seed, items=300)
    judged, model = fitted(item_votes)
    rows = rater_table(item_votes, collect(item_votes, (*CLASSES, "skip")), judged, model)
    assert [row.rater for row in rows if row.careless] == []


def test_who_always_votes_the_same_guesses_too() -> None:
    item_votes, _ = crowd(3, careless=CARELESS)
    item_votes = [b._replace(value="good") if b.rater == "r07" else b for b in item_votes]
    judged, model = fitted(item_votes)
    rows = rater_table(item_votes, collect(item_votes, CLASSES), judged, model)
    assert [r.rater for r in rows if r.careless] == ["r07"]
    assert rows[7].kappa == pytest.approx(0, abs=1e-9)
    assert rows[7].confusion["bad"]["good"] > 0.9


# how it behaves


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_it_converges_and_its_objective_never_falls(seed: int) -> None:
    """Random votes of any number of classes, raters and items, nothing to learn from them."""
    rng = np.random.default_rng(seed)
    classes = tuple("abcd"[: rng.integers(2, 5)])
    raters, items = int(rng.integers(1, 9)), int(rng.integers(1, 40))
    item_votes = [
        ItemVote(f"i{i}", "p", f"r{r}", str(rng.choice(classes)))
        for i in range(items)
        for r in range(raters)
        if rng.random() < 0.7
    ]
    votes = collect(item_votes, classes)
    if not item_votes:
        return
    model = dawid_skene(votes)
    assert model.converged
    assert model.probabilities.sum(1) == pytest.approx(1)
    assert model.confusion.sum(2) == pytest.approx(1)
    assert 0 < model.probabilities.min() <= model.probabilities.max() < 1
    steps = np.diff(model.log_posterior)
    assert (steps > -1e-7).all()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000))
def test_raters_and_classes_may_be_renamed(seed: int) -> None:
    item_votes, _ = crowd(seed, items=60, raters=6)
    names = {f"r{r:02}": f"x{5 - r}" for r in range(6)}
    other = {"good": "bad", "bad": "good", "skip": "skip"}
    _, model = fitted(item_votes)
    _, renamed = fitted([b._replace(rater=names[b.rater]) for b in item_votes])
    assert renamed.probabilities == pytest.approx(model.probabilities, abs=1e-6)
    assert renamed.confusion == pytest.approx(model.confusion[::-1], abs=1e-5)
    _, swapped = fitted([b._replace(value=other[b.value]) for b in item_votes])
    assert swapped.probabilities == pytest.approx(model.probabilities[:, ::-1], abs=1e-6)


def test_the_same_votes_give_the_same_numbers_in_any_order() -> None:
    item_votes, _ = crowd(5, items=200)
    _, first = fitted(item_votes)
    _, second = fitted(item_votes[::-1])
    assert np.array_equal(first.probabilities, second.probabilities)


def test_full_agreement_leaves_little_doubt() -> None:
    rows = [ItemVote(f"i{i:02}", "p", r, CLASSES[i % 2]) for i in range(40) for r in "abc"]
    model = dawid_skene(collect(rows, CLASSES))
    assert model.probabilities[::2, 0].min() > 0.999
    assert model.probabilities[1::2, 0].max() < 0.001
    assert model.skill()[0].min() > 0.85


def test_an_image_that_all_skipped_gets_the_usual_share() -> None:
    item_votes, _ = crowd(1, items=100)
    item_votes += [ItemVote("z", "p0", f"r{r:02}", "skip") for r in range(3)]
    judged, model = fitted(item_votes)
    assert judged.items[-1] == "z"
    assert model.probabilities[-1] == pytest.approx(model.shares, abs=1e-6)


def test_it_needs_votes_and_classes() -> None:
    with pytest.raises(ValueError, match="0 votes in 2 classes"):
        dawid_skene(collect([], CLASSES))
    with pytest.raises(ValueError, match="in 1 classes"):
        dawid_skene(collect([ItemVote("i", "p", "r", "good")], ("good",)))


def test_section_names_the_careless_rater_and_the_groups() -> None:
    item_votes, _ = crowd(2, items=400, careless=CARELESS)
    prompts = [
        Prompt(f"p{k}", f"text {k}", ("count", "colour")[k % 2], {}, "train") for k in range(50)
    ]
    prompt_of = {b.item: prompts[int(b.prompt[1:])] for b in item_votes}
    ratings = [
        Rating(str(k), b.item, b.rater, "alignment", b.value, True, 0.0, 0.0)  # type: ignore[arg-type]
        for k, b in enumerate(item_votes)
    ]
    section = rating_section(ratings, prompt_of, resamples=20)
    assert section is not None
    assert [row.rater for row in section.careless] == [f"r{CARELESS:02}"]
    assert list(section.groups) == ["all", "count", "colour"]
    assert section.groups["count"].items + section.groups["colour"].items == section.items == 400
    assert section.over == "raters and prompts"
    assert section.estimation is not None
    assert section.estimation["converged"]
    assert rating_section(ratings, prompt_of, "fidelity") is None


# step by step, by its definition


def test_skill_is_the_mean_of_beta_posteriors_by_hand() -> None:
    """A row of k right and m wrong votes is Beta(4 + k, 1 + m); skill is linear in its mean."""
    votes = np.array([[[6.0, 2.0], [1.0, 5.0]]])
    confusion = np.array([[[10 / 13, 3 / 13], [2 / 11, 9 / 11]]])
    unused = np.zeros((1, 2)), np.ones(2) / 2
    value, deviation = DawidSkene(*unused, confusion, votes, (), True).skill()
    rows = [stats.beta(10, 3), stats.beta(9, 2)]
    assert value == pytest.approx([sum(r.mean() for r in rows) - 1])
    assert deviation == pytest.approx([np.sqrt(sum(r.var() for r in rows))])


def test_skill_among_three_classes() -> None:
    votes = np.array([np.diag([5.0, 3, 1]), np.diag([0.0, 0, 9])])
    table = votes + 0.5 + 3.5 * np.eye(3)
    confusion = table / table.sum(2, keepdims=True)
    unused = np.zeros((1, 3)), np.ones(3) / 3
    value, deviation = DawidSkene(*unused, confusion, votes, (), True).skill()
    rows = [[stats.beta(4 + v, 1) for v in rater] for rater in ((5, 3, 1), (0, 0, 9))]
    assert value == pytest.approx([(sum(b.mean() for b in r) - 1) / 2 for r in rows])
    assert deviation == pytest.approx([np.sqrt(sum(b.var() for b in r)) / 2 for r in rows])


def slow_tables(votes: Votes, truth: ndarray) -> tuple[ndarray, ndarray, ndarray]:
    """Shares, expected votes and confusion, vote by vote; 4 votes are right before, 1 wrong."""
    n_raters, n_classes = len(votes.raters), len(votes.classes)
    expected = np.zeros((n_raters, n_classes, n_classes))
    for item, rater, value in zip(votes.item, votes.rater, votes.value, strict=True):
        for t in range(n_classes):
            expected[rater, t, value] += truth[item, t]
    judged = sorted(set(votes.item.tolist()))
    shares = np.array([1 + sum(truth[i, t] for i in judged) for t in range(n_classes)])
    table = expected + np.where(np.eye(n_classes) > 0, 4.0, 1 / (n_classes - 1))
    return shares / shares.sum(), expected, table / table.sum(2, keepdims=True)


def slow_truth(votes: Votes, shares: ndarray, confusion: ndarray) -> tuple[ndarray, float]:
    """Bayes' rule item by item, and the log posterior of shares and tables."""
    n_classes = len(shares)
    truth, total = np.zeros((len(votes.items), n_classes)), 0.0
    for i in range(len(votes.items)):
        mine = np.flatnonzero(votes.item == i)
        joint = [
            shares[t] * np.prod([confusion[votes.rater[v], t, votes.value[v]] for v in mine])
            for t in range(n_classes)
        ]
        truth[i] = np.array(joint) / sum(joint)
        total += np.log(sum(joint)) if len(mine) else 0.0
    for table in confusion:
        for t, row in enumerate(table):
            weights = [4.0 if t == v else 1 / (n_classes - 1) for v in range(n_classes)]
            total += sum(w * np.log(p) for w, p in zip(weights, row, strict=True))
    return truth, total + float(np.log(shares).sum())


@pytest.mark.parametrize("classes", ["ab", "abc"])
@pytest.mark.parametrize("steps", [1, 4])
def test_its_steps_are_those_of_the_definition(classes: str, steps: int) -> None:
    """Items of 0 to 4 votes; one was skipped by all."""
    rng = np.random.default_rng(len(classes))
    item_votes = [
        ItemVote(f"i{i}", "p", f"r{r}", str(rng.choice([*classes])))
        for i in range(12)
        for r in rng.choice(4, int(rng.integers(1, 5)), replace=False)
    ]
    item_votes.append(ItemVote("none", "p", "r0", "skip"))
    votes = collect(item_votes, (*classes, "skip")).without("skip")
    model = dawid_skene(votes, max_iterations=steps)
    truth = np.array([(row + 1 / len(row)) / (row.sum() + 1) for row in votes.counts()])
    history = []
    for _ in range(steps):
        shares, _, confusion = slow_tables(votes, truth)
        truth, log_posterior = slow_truth(votes, shares, confusion)
        history.append(log_posterior)
    assert model.probabilities == pytest.approx(truth)
    assert model.log_posterior == pytest.approx(history)
    shares, expected, confusion = slow_tables(votes, truth)
    assert model.shares == pytest.approx(shares)
    assert model.votes == pytest.approx(expected)
    assert model.confusion == pytest.approx(confusion)
    assert not model.converged


def test_it_stops_when_no_probability_moves_any_more() -> None:
    item_votes, _ = crowd(4, items=30)
    judged, model = fitted(item_votes)
    n = len(model.log_posterior)
    short, long = (dawid_skene(judged, max_iterations=m) for m in (n - 1, n))
    assert (short.converged, long.converged, model.converged) == (False, True, True)
    assert np.abs(model.probabilities - short.probabilities).max() < 1e-8
    before = dawid_skene(judged, max_iterations=n - 2)
    assert np.abs(short.probabilities - before.probabilities).max() >= 1e-8


def test_a_last_rater_who_never_gives_the_last_value() -> None:
    rows = [ItemVote(f"i{i}", "p", r, v) for i in range(3) for r, v in zip("ab", "xy", strict=True)]
    rows = [b._replace(value="x") if b.rater == "b" else b._replace(value="y") for b in rows]
    votes = collect(rows, ("x", "y"))
    model = dawid_skene(votes, max_iterations=1)
    assert model.votes.sum((1, 2)) == pytest.approx([3, 3])
    assert model.votes[1, :, 1] == pytest.approx([0, 0])
