"""Comparisons: honest intervals, strengths of several models, left against right."""

from dataclasses import replace

import numpy as np
import pytest
import voted
from scipy import stats

from sayso.base.types import Comparison
from sayso.metrics import quality as metrics
from sayso.study.study import Study
from sayso.votes.agreement import ItemVote, Votes, collect
from sayso.votes.balance import balance, binomial_test
from sayso.votes.item_votes import SIDES
from sayso.votes.side_by_side import side_by_side, two_way
from sayso.votes.standings import standings


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return voted.make_study(tmp_path_factory.mktemp("votes") / "s", prompts=24)


@pytest.fixture(scope="module")
def votes(study: Study) -> list[Comparison]:
    return voted.comparisons(study)


def panel(
    rng: np.random.Generator,
    prompts: int,
    raters: int,
    share: float,
    middle: float = 0.3,
    tie: float = 0.5,
) -> Votes:
    """Every rater on every prompt; `share` of a vote's spread is the prompt's."""
    lead = np.sqrt(share) * rng.normal(size=(prompts, 1))
    lead = middle + lead + np.sqrt(1 - share) * rng.normal(size=(prompts, raters))
    names = np.where(lead > tie, "first", np.where(lead < -tie, "second", "tie"))
    rows = [
        ItemVote(f"i{p:03}", f"p{p:03}", f"r{r}", str(names[p, r]))
        for p in range(prompts)
        for r in range(raters)
    ]
    return collect(rows, SIDES)


# win, tie, lose


def test_intervals_stand_beside_the_shares(study: Study, votes: list[Comparison]) -> None:
    prompts = {p.id for p in study.prompts("seen")}
    rows = side_by_side(votes, voted.MODELS, prompts, seed=0)
    base, best, tuned = voted.MODELS
    pairs = [(tuned, base), (tuned, best), (best, base)]
    assert [(row["first"], row["second"]) for row in rows] == pairs
    for row in rows:
        found = row["intervals"]
        assert found["over"] == "raters and prompts"
        for name in ("win", "tie", "lose", "undecided"):
            assert found[name]["value"] == pytest.approx(row[name]["value"])
            assert 0 <= found[name]["low"] <= found[name]["value"] <= found[name]["high"] <= 1
        assert found["net"]["value"] == pytest.approx(row["net"])
    strong, weak = rows[0]["intervals"]["net"], rows[1]["intervals"]["net"]
    assert strong["low"] > 0 > weak["low"]
    assert rows == side_by_side(votes[::-1], voted.MODELS, prompts, seed=0)


def test_the_shares_are_those_of_the_metric() -> None:
    for seed in range(5):
        found = panel(np.random.default_rng(seed), 30, 9, 0.5)
        by_prompt = [found.value[found.item == i] for i in range(30)]
        counted = metrics.win_tie_lose([[(1, -1, 0)[v] for v in row] for row in by_prompt])
        mine = two_way(found, seed=0, resamples=2)
        for name in ("win", "tie", "lose", "undecided"):
            assert mine[name]["value"] == pytest.approx(getattr(counted, name).value)
        chosen = np.bincount(found.value, minlength=3) / len(found.value)
        assert mine["preference"]["value"] == pytest.approx(chosen[0] + chosen[2] / 2)


def test_correlated_votes_widen_the_interval() -> None:
    """120 prompts × 9 votes for either side: 3.0 points without, 5.5 with a correlation of 0.3.

    1.96 √(1/4 / 1080) = 0.030, times √(1 + 8 · 0.3); signs of normals that share 0.454 of their
    spread have correlation 2/π · arcsin 0.454 = 0.3. Resampling raters and prompts stays on the
    safe side: at most √3 too wide without correlation, less with it.
    """
    rng = np.random.default_rng(0)
    for share, least, most in ((0.0, 0.030, 0.052), (0.454, 0.055, 0.070)):
        panels = [panel(rng, 120, 9, share, middle=0, tie=0) for _ in range(6)]
        found = [two_way(p, seed=0, resamples=200)["preference"] for p in panels]
        half = np.mean([row["high"] - row["low"] for row in found]) / 2
        assert least < half < most


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_intervals_cover_the_truth(share: float) -> None:
    """95 % or a little more, for the shares that need a majority too."""
    rng = np.random.default_rng(2)
    names = ("win", "lose", "undecided", "net", "preference")
    large = two_way(panel(rng, 8000, 9, share), seed=0, resamples=0)
    covered = dict.fromkeys(names, 0)
    for s in range(40):
        found = two_way(panel(rng, 40, 9, share), seed=s, resamples=80)
        for name in names:
            covered[name] += found[name]["low"] <= large[name]["value"] <= found[name]["high"]
    assert min(covered.values()) >= 35


def test_few_raters_are_not_drawn_anew(votes: list[Comparison]) -> None:
    two = [v for v in votes if v.rater in ("simulated-00", "simulated-01")]
    (row, *_) = side_by_side(two, voted.MODELS, {v.prompt_id for v in two})
    assert row["intervals"]["over"] == "prompts"
    one = [v for v in votes if v.prompt_id == votes[0].prompt_id]
    (row, *_) = side_by_side(one, voted.MODELS, {v.prompt_id for v in one})
    assert row["intervals"]["over"] == "nothing"
    assert row["intervals"]["win"]["low"] is None


def test_people_and_programs_are_counted_apart(votes: list[Comparison]) -> None:
    person = [replace(v, id=f"p{v.id}", simulated=False, value="left") for v in votes[:5]]
    for count in (
        lambda v: side_by_side(v, voted.MODELS, {x.prompt_id for x in v}),
        standings,
        balance,
    ):
        rows = count([*votes, *person])
        assert sum(row["votes"] for row in rows if not row["simulated"]) == 5
        assert [r for r in rows if r["simulated"]] == count(votes)  # fmt: skip


# several models


def test_strengths_are_those_the_votes_were_drawn_with(votes: list[Comparison]) -> None:
    (table,) = standings(votes, seed=0)
    assert table["reference"] == "base"
    assert [row["model"] for row in table["models"]] == list(voted.MODELS[::-1])
    for row in table["models"]:
        expected = voted.STRENGTHS[row["model"]]
        assert row["strength"]["value"] == pytest.approx(expected, abs=0.35)
        assert row["strength"]["low"] <= expected <= row["strength"]["high"]
    assert sum(r["won"] + r["tied"] + r["lost"] for r in table["models"]) == 2 * len(votes)
    best, _, base = table["models"]
    assert best["preference"]["value"] > 0.6
    assert base["strength"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert not table["separated"]


def test_models_never_compared_stand_in_tables_of_their_own(votes: list[Comparison]) -> None:
    other = [
        replace(v, id=f"o{v.id}", left_model="runs/a", right_model="runs/b") for v in votes[:6]
    ]
    tables = standings([*votes, *other])
    assert sorted(len(t["models"]) for t in tables) == [2, 3]
    small = next(t for t in tables if len(t["models"]) == 2)
    assert {row["model"] for row in small["models"]} == {"runs/a", "runs/b"}


def test_a_model_that_never_lost_is_finite_and_flagged(votes: list[Comparison]) -> None:
    pair = [v for v in votes if {v.left_model, v.right_model} == {"base", "runs/align-rwr"}]
    all_won = [replace(v, value="right" if v.left_model == "base" else "left") for v in pair]
    (table,) = standings(all_won)
    assert table["separated"]
    assert 3 < table["models"][0]["strength"]["value"] < 30
    assert table["tie"] == 0


# left and right


def test_drawn_sides_are_balanced(votes: list[Comparison]) -> None:
    (row,) = balance(votes)
    assert row["suspect"] == []
    assert row["shown_left"]["n"] == len(votes)
    decided = [v for v in votes if v.value != "tie"]
    assert row["chosen_left"]["n"] == len(decided)
    assert row["chosen_left"]["left"] == sum(v.value == "left" for v in decided)
    assert row["chosen_left"]["low"] < 0.5 < row["chosen_left"]["high"]


def test_a_taste_for_the_left_is_seen(study: Study) -> None:
    (row,) = balance(voted.comparisons(study, left_taste=0.8))
    assert row["suspect"] == ["chosen_left"]
    assert row["chosen_left"]["value"] > 0.6


def test_sides_that_were_not_drawn_are_seen(votes: list[Comparison]) -> None:
    fixed = [
        v
        if v.left_model != "base"
        else replace(
            v, left_model=v.right_model, right_model="base", left_ids=v.right_ids,
            right_ids=v.left_ids, value={"left": "right", "right": "left", "tie": "tie"}[v.value],
        )
        for v in votes
    ]  # fmt: skip
    (row,) = balance(fixed)
    assert "shown_left" in row["suspect"]


def test_ties_alone_say_nothing_of_sides(votes: list[Comparison]) -> None:
    (row,) = balance([replace(v, value="tie") for v in votes])
    assert row["chosen_left"] == {
        "n": 0, "left": 0, "value": None, "low": None, "high": None, "p_value": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize(("k", "n"), [(0, 0), (0, 7), (3, 10), (5, 10), (400, 1000), (499, 1000)])
def test_binomial_test_equals_scipy(k: int, n: int) -> None:
    expected = stats.binomtest(k, n, 0.5).pvalue if n else 1.0
    assert binomial_test(k, n) == pytest.approx(expected, rel=1e-9)


def test_binomial_test_refuses() -> None:
    with pytest.raises(ValueError, match="need 0"):
        binomial_test(3, 2)
