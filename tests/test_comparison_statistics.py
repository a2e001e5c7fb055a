"""Comparisons by hand and by loops: votes, shares, strengths, sides, and how each is drawn."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy import ndarray
from scipy import stats

from sayso.base.bootstrap import Clusters, draws, percentiles
from sayso.base.types import Comparison, Rating
from sayso.votes import item_votes as of
from sayso.votes import side_by_side as shares
from sayso.votes import standings as strengths
from sayso.votes.agreement import collect
from sayso.votes.balance import _covers, balance
from sayso.votes.bradley_terry import PRIOR_SD, davidson
from sayso.votes.item_votes import SIDES, ItemVote, Pair

BASE, BEST, TUNED = "base", "base@best-of-4", "runs/align"


def vote(prompt: str, rater: str, left: str, right: str, value: str, **more: object) -> Comparison:
    made = Comparison(
        f"{prompt}{rater}{left}{right}{value}", prompt, (f"{prompt}{left}",),
        (f"{prompt}{right}",), left, right, rater, "alignment", value, False, 0.0, 1.0,
    )  # type: ignore[arg-type]  # fmt: skip
    return replace(made, **more)  # type: ignore[arg-type]


def random_votes(seed: int, prompts: int, raters: int, models: Sequence[str]) -> list[Comparison]:
    """Every pair of models on every prompt by two raters in three."""
    rng = np.random.default_rng(seed)
    found = []
    for p, r, (i, j) in product(
        range(prompts), range(raters), product(range(len(models)), repeat=2)
    ):
        if i < j and rng.random() < 2 / 3:
            left, right = (models[i], models[j])[:: 1 if rng.random() < 0.5 else -1]
            value = str(rng.choice(["left", "right", "tie"], p=[0.5, 0.3, 0.2]))
            found.append(vote(f"p{p}", f"r{r}", left, right, value))
    return found


# votes on items


def test_tuned_models_come_before_selections_before_the_base() -> None:
    models = [BASE, TUNED, BEST, "base (before 3 May)", "runs/a@best-of-2 (old)", "other"]
    assert [of.rank(m)[0] for m in models] == [2, 0, 1, 2, 1, 0]
    assert sorted([BASE, "b", BEST, "a"], key=of.rank) == ["a", "b", BEST, BASE]


@pytest.mark.parametrize(
    ("left", "right", "value", "expected"),
    [(TUNED, BASE, "left", "first"), (TUNED, BASE, "right", "second"),
     (BASE, TUNED, "left", "second"), (BASE, TUNED, "right", "first"),
     (BASE, TUNED, "tie", "tie"), (BASE, TUNED, "both_bad", "tie")],
)  # fmt: skip
def test_verdict_speaks_of_the_tuned_model_first(
    left: str, right: str, value: str, expected: str
) -> None:
    made = vote("p", "r", left, right, value)
    assert of.pair_of(made) == Pair(TUNED, BASE, "alignment")
    assert of.verdict(made) == expected


def test_votes_on_pairs_are_in_order() -> None:
    pairs = [(BEST, BASE), (TUNED, BASE), (TUNED, BEST), ("runs/b", BASE)]
    made = [vote("p", "r", b, a, "left") for a, b in pairs]
    made += [replace(v, id=f"{v.id}f", question="fidelity") for v in made[:2]]
    expected = [
        Pair(TUNED, BASE, "alignment"), Pair(TUNED, BEST, "alignment"),
        Pair("runs/b", BASE, "alignment"), Pair(BEST, BASE, "alignment"),
        Pair(TUNED, BASE, "fidelity"), Pair(BEST, BASE, "fidelity"),
    ]  # fmt: skip
    for votes in (made, made[::-1]):
        assert list(of.of_comparisons(votes)) == expected
    assert all(len(found) == 1 for found in of.of_comparisons(made).values())


def a_rating(value: str = "good", **shown: object) -> Rating:
    return Rating("m", "a", "r", "alignment", value, False, 5.0, 7.5, "", shown)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("shown", "gold", "attention"),
    [({}, None, None), ({"gold": "good"}, True, None), ({"gold": "bad"}, False, None),
     ({"attention": "good"}, None, True), ({"attention": "bad"}, None, False),
     ({"gold": "bad", "struck": True}, None, None)],
)  # fmt: skip
def test_an_item_vote_tells_how_a_check_went(
    shown: dict[str, object], gold: bool | None, attention: bool | None
) -> None:
    [found] = of.of_ratings([a_rating(**shown)], {"a": "p"})
    assert found == ItemVote("a", "p", "r", "good", 2.5, gold, attention)


def test_votes_that_are_neither_counted_nor_a_check_are_left_out() -> None:
    decision, struck = a_rating(adjudication=True), a_rating(attention="good", struck=True)
    assert of.of_ratings([decision, struck], {"a": "p"}) == []
    votes = [vote("p", "r", TUNED, BASE, "left", shown=v.shown) for v in (decision, struck)]
    votes += [vote("p", "s", TUNED, BASE, "skip")]
    assert of.of_comparisons(votes) == {}
    [[check]] = of.of_comparisons(
        [vote("p", "r", TUNED, BASE, "left", shown={"attention": "left"})]
    ).values()
    assert (check.value, check.attention, check.gold) == ("first", True, None)


def test_the_time_of_a_vote() -> None:
    timed = [
        a_rating(latency_ms=1500),
        a_rating(latency_ms=250.0),
        a_rating(latency_ms="?"),
        a_rating(),
    ]
    timed += [replace(a_rating(), shown_at=7.5), replace(a_rating(), shown_at=8.0)]
    found = of.of_ratings(timed, {"a": "p"})
    assert [b.seconds for b in found] == [1.5, 0.25, 2.5, 2.5, None, None]


def test_items_and_fingerprints_know_neither_sides_nor_order() -> None:
    one = vote("p", "r", TUNED, BASE, "left", left_ids=("a", "b"), right_ids=("c", "d"))
    turned = replace(one, left_ids=one.right_ids, right_ids=one.left_ids, id="other")
    assert of.item_of(one) == of.item_of(turned)
    mixed = replace(one, left_ids=("a", "c"), right_ids=("b", "d"))
    assert len({of.item_of(v) for v in (one, mixed, replace(one, prompt_id="q"))}) == 3
    assert of.fingerprint([one, turned]) == of.fingerprint([turned, one])
    assert len({of.fingerprint(v) for v in ([], [one], [turned], [one, turned])}) == 4


# win, tie, lose


def test_weighted_shares_by_hand() -> None:
    """Prompts: 6 of 9 first; one of each; all tie; nobody voted. Drawn 1, 2, 1 and 5 times."""
    counts = np.array([[6, 1, 0, 0], [3, 1, 0, 0], [0, 1, 5, 0]], float)
    found = shares._shares(counts, np.array([1.0, 2, 1, 5]))
    # of 4 prompts with votes; of 20 votes 8 for the first and 7 ties
    assert found == pytest.approx([1 / 4, 0, 1 / 4, 2 / 4, 1 / 4, (8 + 3.5) / 20])
    lost = shares._shares(counts[[1, 0, 2]], np.array([1.0, 2, 1, 5]))
    assert lost == pytest.approx([0, 1 / 4, 1 / 4, 2 / 4, -1 / 4, (5 + 3.5) / 20])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(shares._shares(counts, np.array([0.0, 0, 0, 1]))).all()


def slow_shares(votes: list[ItemVote], raters: dict[str, float], prompts: dict[str, float]):
    """The six numbers, vote by vote."""
    table = {p: dict.fromkeys(SIDES, 0.0) for p in prompts}
    for b in votes:
        table[b.prompt][b.value] += raters[b.rater]
    whole = sum(prompts[p] for p, t in table.items() if sum(t.values()))
    part = {
        side: sum(
            prompts[p] for p, t in table.items()
            if sum(t.values()) and t[side] >= 2 / 3 * sum(t.values()) - 1e-9
        ) / whole
        for side in SIDES
    }  # fmt: skip
    win, lose, tie = part["first"], part["second"], part["tie"]
    said = {side: sum(t[side] * prompts[p] for p, t in table.items()) for side in SIDES}
    preference = (said["first"] + said["tie"] / 2) / sum(said.values())
    names = ("win", "lose", "tie", "undecided", "net", "preference")
    return dict(
        zip(names, (win, lose, tie, 1 - win - lose - tie, win - lose, preference), strict=True)
    )


def test_intervals_over_raters_and_prompts_vote_by_vote() -> None:
    votes = random_votes(0, 7, 4, (TUNED, BASE))
    [item_votes] = of.of_comparisons(votes).values()
    arrays = collect(item_votes, SIDES)
    found = shares.two_way(arrays, seed=3, resamples=40)
    assert (found["over"], found["resamples"]) == ("raters and prompts", 40)

    def named(names: Sequence[str], weights: ndarray) -> dict[str, float]:
        return dict(zip(names, weights.tolist(), strict=True))

    drawn = [
        slow_shares(item_votes, named(arrays.raters, r), named(arrays.prompts, p))
        for r, p in draws(arrays.clusters, 40, 3)
    ]
    once = slow_shares(
        item_votes, dict.fromkeys(arrays.raters, 1.0), dict.fromkeys(arrays.prompts, 1.0)
    )
    for name, value in once.items():
        margin = 1.96 * np.std([row[name] for row in drawn])
        least = -1 if name == "net" else 0
        assert found[name]["value"] == pytest.approx(value)
        assert found[name]["low"] == pytest.approx(max(least, value - margin))
        assert found[name]["high"] == pytest.approx(min(1, value + margin))


def test_wins_less_losses_end_at_minus_one() -> None:
    """One prompt of five won: −0.6, with a deviation of 0.8 / √5 = 0.36 over prompts."""
    said = zip("abcde", ("left", *["right"] * 4), strict=True)
    [item_votes] = of.of_comparisons([vote(p, "r", TUNED, BASE, v) for p, v in said]).values()
    net = shares.two_way(collect(item_votes, SIDES), seed=0, resamples=99)["net"]
    assert net["value"] == pytest.approx(-0.6)
    assert net["low"] == -1
    assert net["high"] == pytest.approx(-0.6 + 1.96 * 0.36, abs=0.1)


def test_a_row_of_wins_and_losses_by_hand() -> None:
    said = {"a": "left", "b": "right", "c": "tie"}
    votes = [vote(p, r, TUNED, BASE, v) for p, v in said.items() for r in "xy"]
    votes[0] = replace(votes[0], left_ids=("1", "2"), right_ids=("3", "4"))
    votes += [vote("z", "x", TUNED, BASE, "left"), vote("a", "x", TUNED, "other", "left")]
    [row] = shares.side_by_side(votes, [TUNED, BASE], "abc", seed=5)
    assert {k: row[k] for k in ("first", "second", "question", "simulated")} == {
        "first": TUNED, "second": BASE, "question": "alignment", "simulated": False,
    }  # fmt: skip
    assert (row["raters"], row["votes"], row["set_size"], row["n_prompts"]) == (2, 6, 2, 3)
    assert row["threshold"] == 2 / 3
    assert [row[k]["value"] for k in ("win", "tie", "lose", "undecided")] == [1 / 3] * 3 + [0]
    assert row["net"] == 0
    [item_votes] = of.of_comparisons(votes[:6]).values()
    assert row["intervals"] == shares.two_way(collect(item_votes, SIDES), seed=5)
    assert row["intervals"]["resamples"] == 999
    [same] = shares.side_by_side(votes, [TUNED, BASE], "abc")
    [first] = shares.side_by_side(votes, [TUNED, BASE], "abc", seed=0)
    assert same == first


def test_rows_are_in_order() -> None:
    other = "runs/z"
    pairs = [(other, TUNED), (BEST, BASE), (TUNED, BASE), (TUNED, BEST), (other, BASE)]
    votes = [vote("p", "r", b, a, "left") for a, b in pairs]
    votes += [replace(v, id=f"f{v.id}", question="fidelity") for v in votes[:1]]
    votes += [replace(v, id=f"s{v.id}", simulated=True) for v in votes[:1]]
    rows = shares.side_by_side(votes, [BASE, BEST, TUNED, other], ["p"])
    assert [(r["simulated"], r["question"], r["first"], r["second"]) for r in rows] == [
        (False, "alignment", TUNED, BASE), (False, "alignment", TUNED, BEST),
        (False, "alignment", TUNED, other), (False, "alignment", other, BASE),
        (False, "alignment", BEST, BASE), (False, "fidelity", TUNED, other),
        (True, "alignment", TUNED, other),
    ]  # fmt: skip


# left and right


def test_sides_by_hand() -> None:
    """Three raters of 30 prompts, two who always say left and one who always says right."""
    votes = [
        vote(f"p{p}", r, *((TUNED, BASE) if p % 3 else (BASE, TUNED)), side)
        for p in range(30)
        for r, side in (("x", "left"), ("y", "left"), ("z", "right"))
    ]
    ties = [vote(f"p{p}", "t", TUNED, BASE, "tie") for p in range(10)]
    [row] = balance([*votes, *ties], seed=4)
    assert (row["question"], row["simulated"], row["votes"]) == ("alignment", False, 100)
    shown, chosen = row["shown_left"], row["chosen_left"]
    assert (shown["n"], shown["left"], shown["value"]) == (100, 70, 0.7)
    assert shown["p_value"] == pytest.approx(stats.binomtest(70, 100).pvalue)
    assert (chosen["n"], chosen["left"], chosen["value"]) == (90, 60, pytest.approx(2 / 3))
    assert chosen["p_value"] == pytest.approx(stats.binomtest(60, 90).pvalue)
    # by chance alone 60 of 90 would be rare, but these are three people
    assert chosen["p_value"] < 0.01
    assert chosen["low"] < 0.5 < chosen["high"]
    assert row["suspect"] == ["shown_left"]
    replicates = [[(r[0] + r[1]) / r.sum()] for r, _ in draws(Clusters(3, 30), 999, 4)]
    [expected] = percentiles(np.array([2 / 3]), np.array(replicates))
    assert (chosen["low"], chosen["high"]) == pytest.approx((expected.low, expected.high))


def test_the_usual_seed_of_balance_is_0() -> None:
    """Raters and prompts that differ, so that another seed gives another interval."""
    sides = np.random.default_rng(8).integers(2, size=(5, 12))
    votes = [
        vote(f"p{p}", f"r{r}", *((TUNED, BASE) if p % 2 else (BASE, TUNED)), ("left", "right")[s])
        for (r, p), s in np.ndenumerate(sides)
        if r <= p
    ]
    assert balance(votes) == balance(votes, seed=0) != balance(votes, seed=1)


def test_sides_of_every_question_and_kind_of_rater() -> None:
    one = vote("p", "r", TUNED, BASE, "left")
    votes = [replace(one, id=f"{s}{q}", simulated=s, question=q)
             for s in (True, False) for q in ("fidelity", "alignment")]  # fmt: skip
    rows = balance([*votes, replace(one, id="skip", value="skip")])
    assert [(r["simulated"], r["question"], r["votes"]) for r in rows] == [
        (False, "alignment", 1), (False, "fidelity", 1),
        (True, "alignment", 1), (True, "fidelity", 1),
    ]  # fmt: skip


def test_many_votes_for_one_side_without_an_interval_are_suspect() -> None:
    """One prompt alone cannot be drawn anew; then the p-value has to do."""
    sides = [(TUNED, BASE), (BASE, TUNED)]
    votes = [vote("p", f"r{k}", *sides[k % 2], "left") for k in range(12)]
    [row] = balance(votes)
    assert row["chosen_left"]["low"] is None
    assert row["suspect"] == ["chosen_left"]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.4, 0.6, True), (0.5, 0.6, True), (0.4, 0.5, True), (0.51, 0.6, False),
     (0.4, 0.49, False), (None, None, False)],
)  # fmt: skip
def test_a_half_lies_in_the_interval(low: float | None, high: float | None, expected: bool):
    assert _covers({"low": low, "high": high}) is expected


# several models


def slow_counts(votes: list[Comparison], models: Sequence[str], weight: Any):
    wins, ties = np.zeros((2, len(models), len(models)))
    for v in votes:
        i, j = models.index(v.left_model), models.index(v.right_model)
        if v.value == "tie":
            ties[i, j] += weight(v)
            ties[j, i] += weight(v)
        else:
            wins[(i, j) if v.value == "left" else (j, i)] += weight(v)
    return wins, ties


def test_a_table_of_strengths_vote_by_vote(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strengths, "RESAMPLES", 25)
    models = (TUNED, BEST, BASE)
    votes = random_votes(1, 6, 4, models)
    [table] = strengths.standings(votes, seed=2)
    wins, ties = slow_counts(votes, models, lambda v: 1)
    fitted = davidson(wins, ties)
    heading = {k: v for k, v in table.items() if k != "models"}
    assert heading == {
        "question": "alignment", "simulated": False, "reference": BASE, "votes": len(votes),
        "raters": 4, "prompts": 6, "over": "raters and prompts", "prior_sd": PRIOR_SD,
        "separated": False, "tie": pytest.approx(float(fitted.tie)),
    }  # fmt: skip
    replicates = []
    for r, p in draws(Clusters(4, 6), 25, 2):
        drawn = davidson(*slow_counts(
            votes, models, lambda v, r=r, p=p: r[int(v.rater[1:])] * p[int(v.prompt_id[1:])]
        ))  # fmt: skip
        replicates.append([*(drawn.strengths - drawn.strengths[2]), *drawn.preference()[:, 2]])
    values = [*(fitted.strengths - fitted.strengths[2]), *fitted.preference()[:, 2]]
    expected = percentiles(np.array(values), np.array(replicates))
    order = [row["strength"]["value"] for row in table["models"]]
    assert order == pytest.approx(sorted(values[:3], reverse=True))
    for row in table["models"]:
        i = models.index(row["model"])
        assert row["strength"] == pytest.approx(expected[i].plain())
        assert row["preference"] == pytest.approx(expected[3 + i].plain())
        assert (row["won"], row["tied"], row["lost"]) == (
            wins[i].sum(), ties[i].sum(), wins[:, i].sum(),
        )  # fmt: skip


def test_every_group_of_models_has_a_table_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """a and c were compared, and b and the base; nothing is known between them."""
    monkeypatch.setattr(strengths, "RESAMPLES", 3)
    votes = [vote(f"p{p}", f"r{r}", "a", "c", "left") for p in range(3) for r in range(2)]
    votes += [vote(f"q{p}", "s", BASE, "b", "right") for p in range(2)]
    votes += [replace(v, id=f"{v.id}s", simulated=True) for v in votes[-1:]]
    votes += [replace(v, id=f"{v.id}f", question="fidelity") for v in votes[:1]]
    tables = strengths.standings(votes)
    rows = [
        (t["simulated"], t["question"], t["reference"], [r["model"] for r in t["models"]],
         t["votes"], t["raters"], t["prompts"], t["over"])
        for t in tables
    ]  # fmt: skip
    assert rows == [
        (False, "alignment", "c", ["a", "c"], 6, 2, 3, "prompts"),
        (False, "alignment", BASE, ["b", BASE], 2, 1, 2, "prompts"),
        (False, "fidelity", "c", ["a", "c"], 1, 1, 1, "nothing"),
        (True, "alignment", BASE, ["b", BASE], 1, 1, 1, "nothing"),
    ]
    assert all(t["separated"] and t["tie"] == 0 for t in tables)
    strong, weak = tables[0]["models"]
    assert (strong["won"], strong["lost"], weak["won"], weak["lost"]) == (6, 0, 0, 6)
    assert weak["strength"]["value"] == 0
    assert weak["preference"]["value"] == 0.5
    assert strong["preference"]["value"] == pytest.approx(
        1 / (1 + math.exp(-strong["strength"]["value"]))
    )
    assert strengths.standings(votes) == strengths.standings(votes, seed=0)


def test_the_reference_is_the_base_or_the_last_by_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strengths, "RESAMPLES", 25)
    pair = [vote("p", "r", "z", "m@best-of-2", v) for v in ("left", "tie")]
    [table] = strengths.standings(pair)
    assert table["reference"] == "m@best-of-2"
    old = "base (before 3 May)"
    [table] = strengths.standings([*pair, vote("p", "r", "z", BASE, "left"),
                                   vote("p", "r", old, BASE, "left")])  # fmt: skip
    assert table["reference"] == BASE
    votes = random_votes(1, 6, 4, (TUNED, BEST, BASE))
    assert strengths.standings(votes) == strengths.standings(votes, seed=0)
    assert strengths.standings(votes) != strengths.standings(votes, seed=1)
