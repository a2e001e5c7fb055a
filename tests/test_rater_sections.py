"""What raters' sections say, by hand: the edges of the rules, groups, overlap, estimates."""

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats
from voted import votes_of

from sayso.base.bootstrap import Clusters, Interval, draws, percentiles
from sayso.base.types import Comparison, Prompt, Rating
from sayso.votes.agreement import Agreement, collect
from sayso.votes.dawid_skene import dawid_skene
from sayso.votes.item_votes import RATING_VALUES, ItemVote, of_ratings
from sayso.votes.rater_report import (
    comparison_sections,
    label_gain,
    label_quality,
    plain,
    rating_section,
)
from sayso.votes.rater_table import Checks, RaterRow, careless, fails, in_order, rater_table

ROW = RaterRow(
    "r", 50, 2.0, {}, 40, 0.9, 0.8, Checks(0, 0), Checks(0, 0), {}, Interval(0.2, 0.1, 0.44)
)


@pytest.mark.parametrize(
    ("change", "skills", "expected"),
    [
        ({}, [0.9, 0.9, 0.9], ("guesses",)),
        ({}, [0.9, 0.9], ()),
        ({"skill": Interval(0.2, 0.1, 0.45)}, [0.9, 0.9, 0.9], ()),  # half, not below it
        ({"shared": 1}, [0.9, 0.9, 0.9], ("guesses",)),
        ({"shared": 0}, [0.9, 0.9, 0.9], ()),
        ({"seconds": 0.39, "votes": 20}, [], ("hurries",)),
        ({"seconds": 0.39, "votes": 19}, [], ()),
        ({"seconds": 0.4}, [], ()),
        ({"seconds": None}, [], ()),
    ],
)
def test_the_edges_of_carelessness(
    change: dict[str, object], skills: list[float], expected: tuple[str, ...]
) -> None:
    assert careless(replace(ROW, **change), skills) == expected  # type: ignore[arg-type]


def test_checks_are_failed_by_share_and_by_the_binomial_tail() -> None:
    for n in range(1, 70):
        for right in range(n + 1):
            expected = 3 * right < 2 * n and stats.binom.cdf(right, n, 0.9) <= 0.001
            assert fails(Checks(n, right)) == expected


def test_names_that_begin_with_a_number_come_last() -> None:
    assert sorted(["0a", "b", "1", "a10", "a9", "a"], key=in_order) == [
        "a", "a9", "a10", "b", "0a", "1",
    ]  # fmt: skip


def test_rows_hold_the_models_estimates() -> None:
    item_votes = [
        *votes_of("a", "ggbbg"),
        *votes_of("b", "ggbgg"),
        *votes_of("c", "gbbbs"),
        *votes_of("d", "s----"),
    ]
    votes = collect(item_votes, RATING_VALUES)
    judged = votes.without("skip")
    model = dawid_skene(judged)
    value, deviation = model.skill()
    rows = rater_table(item_votes, votes, judged, model)
    assert [row.rater for row in rows] == list("abcd")
    for r, row in enumerate(rows):
        assert row.skill.value == pytest.approx(value[r])
        assert row.skill.low == pytest.approx(value[r] - 1.96 * deviation[r])
        assert row.skill.high == pytest.approx(value[r] + 1.96 * deviation[r])
        table = [[row.confusion[t][v] for v in ("good", "bad")] for t in ("good", "bad")]
        assert table == pytest.approx(model.confusion[r])
    [nobody] = [row for row in rows if row.rater == "d"]
    assert (nobody.votes, nobody.shared) == (1, 0)
    assert math.isnan(nobody.agreement)
    assert math.isnan(nobody.kappa)


def test_a_row_without_a_model_by_hand() -> None:
    """b beside a and c: alike with 1 of 2, 2 of 2 and 0 of 1."""
    item_votes = [
        *votes_of("a", "gg-g", seconds=1.0),
        *votes_of("b", "gggs", seconds=2.0),
        *votes_of("c", "bgb"),
    ]
    item_votes[2] = item_votes[2]._replace(seconds=1.0)
    item_votes += [
        *votes_of("d", "s"),
        ItemVote("j", "p", "x", "good"),
        ItemVote("j", "p", "y", "good"),
    ]
    item_votes.append(ItemVote("t", "p", "b", "bad", 0.1, None, False))
    votes = collect((b for b in item_votes if b.attention is None), RATING_VALUES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = rater_table(item_votes, votes, votes.without("skip"), None)
    b = rows[1]
    assert (b.votes, b.seconds, b.shared) == (4, 2.0, 3)
    assert b.shares == {"good": 0.75, "bad": 0, "skip": 0.25}
    assert b.agreement == pytest.approx((1 / 2 + 1 + 0) / 3)
    # b says good always, so chance is the others' share of good
    assert b.kappa == pytest.approx(0)
    assert (b.gold, b.attention, b.confusion) == (Checks(0, 0), Checks(1, 0), {})
    assert math.isnan(b.skill.value)
    assert rows[0].seconds == 1.0
    # nobody else judged the last item of a
    assert (rows[0].shared, rows[0].agreement) == (2, pytest.approx((1 / 2 + 1) / 2))
    assert rows[2].seconds is None
    # d judged nothing; x and y could not but agree
    assert [(r.shared, r.agreement) for r in rows[4:]] == [(1, 1), (1, 1)]
    assert all(math.isnan(row.kappa) for row in rows[3:])


PROMPTS = {
    "i0": Prompt("p0", "", "zebra", {}, "train"), "i1": Prompt("p1", "", "colour", {}, "train"),
    "i2": Prompt("p1", "", "colour", {}, "train"), "i3": Prompt("p2", "", "count", {}, "train"),
}  # type: ignore[arg-type]  # fmt: skip


def ratings_of(table: Mapping[str, str], question: str = "alignment") -> list[Rating]:
    return [
        Rating(f"{b.item}{b.rater}", b.item, b.rater, question, b.value, False, 1.0, 3.0)  # type: ignore[arg-type]
        for rater, values in table.items()
        for b in votes_of(rater, values)
    ]


def test_a_section_by_hand() -> None:
    ratings = ratings_of({"a": "ggbs", "b": "gb-g", "c": "g---"})
    check = replace(ratings[0], id="t", sample_id="i9", shown={"attention": "bad"})
    elsewhere = replace(ratings[0], id="e", sample_id="other")
    section = rating_section(
        [*ratings, elsewhere, check, *ratings_of({"a": "b"}, "fidelity")], PROMPTS, resamples=0
    )
    assert section is not None
    assert (section.task, section.question, section.models) == ("rate", "alignment", ())
    assert (section.votes, section.items, section.prompts, section.over) == (
        8, 4, 3, "raters and prompts",
    )  # fmt: skip
    # without skips: three on i0, two on i1, one on i2 and on i3
    assert section.overlap == {1: 2, 2: 1, 3: 1}
    # the paper's categories in its order, then others
    assert list(section.groups) == ["all", "count", "colour", "zebra"]
    found = {name: (g.items, g.shared_items, g.votes) for name, g in section.groups.items()}
    assert found == {"all": (4, 2, 8), "count": (1, 0, 2), "colour": (2, 1, 3), "zebra": (1, 1, 3)}
    judged = collect(of_ratings(ratings, {s: p.id for s, p in PROMPTS.items()}), RATING_VALUES[:2])
    model = dawid_skene(judged)
    assert section.estimation == {
        "items": 4, "iterations": len(model.log_posterior), "converged": True,
        "shares": pytest.approx({"good": model.shares[0], "bad": model.shares[1]}),
    }  # fmt: skip
    assert [(row.rater, row.votes) for row in section.raters] == [("a", 4), ("b", 3), ("c", 1)]
    assert section.careless == []


def test_a_section_of_one_category_or_of_lone_ratings() -> None:
    same = {s: replace(p, category="count") for s, p in PROMPTS.items()}
    section = rating_section(ratings_of({"a": "gb", "b": "--gg"}), same, resamples=0)
    assert section is not None
    assert list(section.groups) == ["all"]
    assert section.estimation is None
    assert rating_section([], PROMPTS) is None


UNEVEN = np.random.default_rng(5)
MANY = {f"i{k}": Prompt(f"p{k % 9}", "", "count", {}, "train") for k in range(24)}
RATINGS = ratings_of({f"r{r}": "".join(UNEVEN.choice(list("gggb-"), 24)) for r in range(5)})
COMPARISONS = [
    Comparison(
        f"{p}{r}", f"p{p}", (f"{p}x",), (f"{p}b",), "runs/x", "base", f"r{r}", "alignment",
        str(UNEVEN.choice(["left", "left", "right", "tie"])), False, 0.0, 1.0,
    )
    for p in range(9)
    for r in range(5)
]  # type: ignore[arg-type]  # fmt: skip
LABELS, OTHERS = (dict(zip(MANY, UNEVEN.random(24).tolist(), strict=True)) for _ in range(2))
TRUTH = {i: label > 0.4 for i, label in LABELS.items()}
PROMPT_OF = {sample: prompt.id for sample, prompt in MANY.items()}


@pytest.mark.parametrize(
    "call",
    [
        lambda **more: rating_section(RATINGS, MANY, **more),
        lambda **more: comparison_sections(COMPARISONS, MANY.values(), **more)[0].groups["all"],
        lambda **more: label_gain(LABELS, OTHERS, TRUTH, PROMPT_OF, **more),
    ],
    ids=["ratings", "comparisons", "label_gain"],
)
def test_intervals_are_of_999_resamples_and_seed_0(call: Callable[..., Any]) -> None:
    """Votes that differ so much that one resample more, or another seed, changes the limits."""
    usual = plain(call())
    assert usual == plain(call(resamples=999, seed=0))
    assert usual != plain(call(resamples=1000, seed=0))
    assert usual != plain(call(resamples=999, seed=1))


def test_comparison_sections_by_hand() -> None:
    votes = [
        Comparison(
            f"{p}{r}{m}", p, (f"{p}{m}",), (f"{p}b",), m, "base", r, "alignment", value, False,
            0.0, 1.0,
        )
        for m in ("runs/x", "runs/y")
        for p in ("p0", "p1", "p2")
        for r, value in (("a", "left"), ("b", "tie"), ("c", "right"))
    ]  # type: ignore[arg-type]  # fmt: skip
    check = replace(votes[0], id="t", prompt_id="p9", shown={"attention": "left"})
    x, y = comparison_sections([*votes, check], PROMPTS.values(), resamples=60, seed=3)
    assert (x.task, x.models, y.models) == ("compare", ("runs/x", "base"), ("runs/y", "base"))
    assert (x.votes, x.items, x.prompts, x.overlap) == (9, 3, 3, {3: 3})
    assert list(x.groups) == ["all", "count", "colour", "zebra"]
    rates = {name: rate.value for name, rate in x.groups["all"].rates.items()}
    assert rates == pytest.approx(dict.fromkeys(("first", "second", "tie"), 1 / 3))
    assert x.groups["all"].agreement.value == 0
    [again, _] = comparison_sections(votes, PROMPTS.values(), resamples=60, seed=3)
    assert plain(again.groups) == plain(x.groups)
    assert comparison_sections([check], PROMPTS.values()) == []


def test_label_gain_draws_prompts() -> None:
    """Two images of p and one each of q and r; the squared errors differ by −0.75, 0.25 and 0."""
    labels = {"a": 0.5, "b": 0.5, "c": 0.5, "d": 0.3}
    others = {"a": 0.0, "b": 0.0, "c": 0.0, "d": 0.3}
    truth = {"a": True, "b": True, "c": False, "d": True}
    prompt_of = dict(zip("abcd", "ppqr", strict=True))
    found = label_gain(labels, others, truth, prompt_of)
    sums, sizes = np.array([-1.5, 0.25, 0]), np.array([2, 1, 1])
    rows = [[w @ sums / (w @ sizes)] for _, w in draws(Clusters(1, 3), 999, 0)]
    [expected] = percentiles(np.array([-1.25 / 4]), np.array(rows))
    assert plain(found) == pytest.approx(plain(expected))


def test_what_json_can_hold() -> None:
    none = Interval(1.0, math.nan, math.inf)
    agreement = Agreement(1, 2, 3, none, none, none, {"good": none})
    low = {"value": 1.0, "low": None, "high": None}
    assert plain({1: (agreement, [math.nan, 2.5, None, "x", True])}) == {
        "1": [
            {"items": 1, "shared_items": 2, "votes": 3, "alpha": low, "kappa": low,
             "agreement": low, "rates": {"good": low}},
            [None, 2.5, None, "x", True],
        ]
    }  # fmt: skip
    assert plain(Checks(4, 3)) == {"n": 4, "right": 3, "share": 0.75}
    assert plain(Checks(0, 0)) == {"n": 0, "right": 0, "share": None}


def test_two_votes_on_an_item_are_enough_for_estimates() -> None:
    two = {s: replace(p, category="count" if s == "i0" else "colour") for s, p in PROMPTS.items()}
    section = rating_section(ratings_of({"a": "ggbb", "b": "gbbb"}), two, resamples=0)
    assert section is not None
    assert section.estimation is not None
    assert all(math.isfinite(row.skill.value) for row in section.raters)
    assert list(section.groups) == ["all", "count", "colour"]


def test_prompts_of_no_known_category_are_in_no_group() -> None:
    votes = [
        Comparison(p, p, ("a",), ("b",), "x", "base", "r", "alignment", "left", False, 0.0, 1.0)
        for p in ("p0", "p1", "unknown")
    ]
    [section] = comparison_sections(votes, PROMPTS.values(), resamples=0)
    assert list(section.groups) == ["all", "colour", "zebra"]
    assert section.groups["all"].items == 3


def test_quality_of_labels_by_hand() -> None:
    """Images that have both; a label of 1/2 is half right."""
    labels = {"a": 0.9, "b": 0.1, "c": 0.5, "d": 0.4, "e": 0.8, "no-truth": 1.0}
    truth = {"a": True, "b": False, "c": True, "d": True, "e": True, "no-label": False}
    assert label_quality(labels, truth) == {
        "n": 5,
        "accuracy": pytest.approx((1 + 1 + 0.5 + 0 + 1) / 5),
        "squared_error": pytest.approx((0.01 + 0.01 + 0.25 + 0.36 + 0.04) / 5),
    }
    nothing = {"n": 0, "accuracy": None, "squared_error": None}
    assert label_quality(labels, {"no-label": True}) == nothing


def test_label_gain_is_of_images_with_both_labels_and_a_truth() -> None:
    only, prompt_of = label_gain(LABELS, OTHERS, TRUTH, PROMPT_OF), {**PROMPT_OF, "x": "p0"}
    assert label_gain({**LABELS, "x": 1.0}, OTHERS, TRUTH, prompt_of) == only
    assert label_gain(LABELS, {**OTHERS, "x": 1.0}, TRUTH, prompt_of) == only
    assert label_gain(LABELS, OTHERS, {**TRUTH, "x": True}, prompt_of) == only
    none = label_gain(LABELS, {}, TRUTH, PROMPT_OF)
    assert all(math.isnan(x) for x in (none.value, none.low, none.high))
