"""Labels and preferences from several raters, and what the store gives back as tables."""

import time
from dataclasses import fields, replace
from pathlib import Path

import pytest
import voted

from sayso.base.errors import UserError
from sayso.base.types import Comparison, Rating, Sample, Sampler
from sayso.feedback.store import Feedback
from sayso.stages._training_data import samples_of
from sayso.stages.align import AlignConfig
from sayso.stages.fit import FitConfig, _heldout, collect
from sayso.votes import item_votes, labels
from sayso.votes.labels import LabelMethod, soft_labels


def a_rating(sample: str, rater: str, value: str, **more: object) -> Rating:
    name = f"{sample}{rater}"
    return Rating(name, sample, rater, "alignment", value, True, 1.0, 2.0, **more)  # type: ignore[arg-type]


RATINGS = [
    *(a_rating("a", r, v) for r, v in zip("xyz", ("good", "good", "bad"), strict=True)),
    *(a_rating("b", r, v) for r, v in zip("xyz", ("good", "bad", "skip"), strict=True)),
    *(a_rating("c", r, v) for r, v in zip("xyz", ("bad", "bad", "skip"), strict=True)),
    a_rating("d", "x", "skip"),
]


def test_share_and_majority_by_hand() -> None:
    assert soft_labels(RATINGS, "share") == {"a": pytest.approx(2 / 3), "b": 0.5, "c": 0.0}
    assert soft_labels(RATINGS, "majority") == {"a": 1.0, "b": 0.5, "c": 0.0}


def test_dawid_skene_trusts_who_agrees_with_the_rest(tmp_path: Path) -> None:
    study = voted.make_study(tmp_path / "s")
    voted.add_ratings(study)
    found = study.feedback.soft_labels(simulated=True, method="dawid-skene")
    assert all(0 < y < 1 for y in found.values())
    truth = {i: voted.truth(i) for i in found}
    error = {}
    for method in ("share", "majority", "dawid-skene"):
        labelled = study.feedback.soft_labels(simulated=True, method=method)
        error[method] = sum((y - truth[i]) ** 2 for i, y in labelled.items())
    assert error["dawid-skene"] < error["majority"]
    assert error["dawid-skene"] < error["share"]


def test_skips_and_checks_of_attention_make_no_label() -> None:
    check = a_rating("e", "x", "good", shown={"attention": "good"})
    again = a_rating("a", "w", "bad", shown={"attention": "bad"})
    assert soft_labels([*RATINGS, check, again], "share") == soft_labels(RATINGS, "share")
    gold = a_rating("a", "w", "good", shown={"gold": "good"})
    assert soft_labels([*RATINGS, gold], "share")["a"] == pytest.approx(3 / 4)


def test_a_reviewers_decision_is_the_label_and_not_a_vote() -> None:
    decided = [a_rating(i, "eve", v, shown={"adjudication": True}) for i, v in ("ab", "bg", "cs")
               for v in [{"b": "bad", "g": "good", "s": "skip"}[v]]]  # fmt: skip
    for method in ("share", "majority", "dawid-skene"):
        alone, with_decisions = (soft_labels(m, method) for m in (RATINGS, [*RATINGS, *decided]))
        assert with_decisions == {**alone, "a": 0.0, "b": 1.0}
    a = labels.count_ratings([*RATINGS, *decided])["a"]
    assert (a.good, a.bad, a.share, a.value) == (2, 1, 0.0, "bad")
    assert a.agreement == pytest.approx(1 / 3)
    prompts = dict.fromkeys("abcd", "p")
    assert item_votes.of_ratings(decided, prompts) == []
    assert len(item_votes.of_ratings([*RATINGS, *decided], prompts)) == len(RATINGS)


@pytest.mark.parametrize(
    ("good", "bad", "value", "share", "agreement"),
    [
        (0, 0, "skip", None, None),
        (1, 0, "good", 1.0, None),
        (0, 1, "bad", 0.0, None),
        (1, 1, "skip", 0.5, 0.0),
        (3, 1, "good", 0.75, 0.5),
        (1, 4, "bad", 0.2, 0.6),
    ],
)
def test_what_counts_come_to_by_hand(
    good: int, bad: int, value: str, share: float | None, agreement: float | None
) -> None:
    counts = labels.RatingCounts(good, bad, skip=2)
    assert (counts.value, counts.share, counts.agreement) == (value, share, agreement)
    for decided, label in (("good", 1.0), ("bad", 0.0)):
        reviewed = replace(counts, decided=decided)
        assert (reviewed.value, reviewed.share) == (decided, label)
        assert reviewed.agreement == agreement, "the raters' own"


def test_dawid_skene_needs_two_ratings_of_some_image() -> None:
    alone = [a_rating("a", "x", "good"), a_rating("b", "y", "bad"), a_rating("b", "z", "skip")]
    with pytest.raises(UserError, match="no image has ratings by two"):
        soft_labels(alone, "dawid-skene")
    assert soft_labels([], "dawid-skene") == {}
    with pytest.raises(UserError, match=r"labels 'majorty'.*did you mean 'majority'"):
        labels.check_method("majorty")
    two = soft_labels([a_rating(i, r, v) for i, v in (("a", "good"), ("b", "bad")) for r in "xy"],
                      "dawid-skene")  # fmt: skip
    assert two["a"] > 0.9
    assert two["b"] < 0.1


@pytest.mark.parametrize("method", labels.METHODS)
def test_labels_do_not_depend_on_the_order_of_votes(method: LabelMethod) -> None:
    assert soft_labels(RATINGS, method) == soft_labels(RATINGS[::-1], method)


# preferences


def sample(name: str, prompt: str) -> Sample:
    return Sample(name, prompt, "base", 0, Sampler(), "", "")


def test_good_is_preferred_over_bad_of_the_same_prompt() -> None:
    samples = [sample(n, p) for n, p in (("a", "p"), ("b", "p"), ("c", "p"), ("e", "q"))]
    more = [a_rating("e", "x", "bad"), a_rating("f", "x", "good")]
    found = labels.preferences(soft_labels([*RATINGS, *more], "share"), samples, True, "alignment")
    assert [(p.prompt_id, p.chosen_id, p.rejected_id) for p in found] == [("p", "a", "c")]
    assert found[0].certainty == pytest.approx(2 / 3)
    assert found[0].simulated


def test_certainty_is_the_chance_that_both_labels_are_right() -> None:
    """An image of label 1/2 is neither good nor bad, and one without a label nothing."""
    names = {"a": 0.8, "b": 0.25, "half": 0.5}
    samples = [sample(n, "p") for n in (*names, "unlabelled")]
    (found,) = labels.preferences(names, samples, False, "fidelity")
    assert (found.chosen_id, found.rejected_id) == ("a", "b")
    assert found.certainty == pytest.approx(0.8 * 0.75)
    assert (found.simulated, found.question) == (False, "fidelity")


def test_every_pair_of_a_prompt_is_there_once() -> None:
    names = [f"s{k}" for k in range(7)]
    given = [a_rating(n, "x", "good" if k < 3 else "bad") for k, n in enumerate(names)]
    found = labels.preferences(
        soft_labels(given, "majority"), [sample(n, "p") for n in names], True, "alignment"
    )
    assert len(found) == len({(p.chosen_id, p.rejected_id) for p in found}) == 3 * 4
    assert {p.certainty for p in found} == {1.0}


# the store's tables


@pytest.fixture
def store(tmp_path: Path) -> Feedback:
    store = Feedback(f"sqlite:///{tmp_path / 'feedback.db'}")
    store.add_ratings(RATINGS)
    return store


def test_the_store_counts_the_ratings_of_each_image(store: Feedback) -> None:
    person = replace(a_rating("c", "anna", "good"), simulated=False)
    check = a_rating("a", "w", "bad", shown={"attention": "bad"})
    store.add_ratings([person, check])
    rows = store.counts(simulated=True)
    assert set(rows) == {"a", "b", "c", "d"}
    a = rows["a"]
    assert (a.good, a.bad, a.skip) == (2, 1, 0)
    assert a.share == pytest.approx(2 / 3)
    assert a.agreement == pytest.approx(1 / 3)
    assert rows["c"].agreement == 1.0
    assert (rows["d"].skip, rows["d"].share, rows["d"].agreement) == (1, None, None)
    assert store.counts(simulated=False) == {"c": labels.RatingCounts(good=1)}


def test_the_store_reads_votes_and_preferences_as_tables(store: Feedback) -> None:
    comparison = Comparison(
        "v", "p", ("a",), ("b",), "base", "runs/x", "x", "fidelity", "tie", True, 0.0, 1.0
    )
    store.add_comparisons([comparison])
    assert store.votes(simulated=True) == [*RATINGS, comparison]
    assert store.votes(simulated=False) == []
    samples = [sample(n, "p") for n in "abcd"]
    (found,) = store.preferences(samples, simulated=True)
    assert (found.chosen_id, found.rejected_id, found.question) == ("a", "c", "alignment")
    assert store.preferences(samples, simulated=False) == []
    assert store.soft_labels(True, among={"c"}) == {"c": 0.0}


def test_tables_become_data_frames(store: Feedback) -> None:
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(list(store.counts(simulated=True).values()))
    assert list(table.columns) == [f.name for f in fields(labels.RatingCounts)]
    assert table.good.sum() == 3


# what the reward learns


def test_the_reward_learns_the_labels_asked_for(tmp_path: Path) -> None:
    study = voted.make_study(tmp_path / "s", prompts=12)
    voted.add_ratings(study)
    for image in study.samples():
        (study.path / image.path).parent.mkdir(exist_ok=True)
        (study.path / image.path).touch()
    data = {method: collect(study, FitConfig(labels=method)) for method in labels.METHODS}  # type: ignore[arg-type]
    share, majority, estimate = (data[m] for m in ("share", "majority", "dawid-skene"))
    assert share.labels == [v.good / (v.good + v.bad) for v in share.counts]
    assert set(majority.labels) <= {0.0, 0.5, 1.0}
    assert all(0 < y < 1 for y in estimate.labels)
    assert [s.id for s in estimate.samples] == [s.id for s in share.samples]
    train = {p.id for p in study.prompts("train")}
    ids = {s.id for s in study.samples() if s.prompt_id in train}
    among_train = study.feedback.soft_labels(True, method="dawid-skene", among=ids)
    assert estimate.labels == [among_train[s.id] for s in estimate.samples]
    held = [_heldout(study, FitConfig(labels=m), d) for m, d in data.items()]  # type: ignore[arg-type]
    assert held[0] == held[1] == held[2]


def test_training_takes_the_labels_asked_for(tmp_path: Path) -> None:
    study = voted.make_study(tmp_path / "s", prompts=12)
    voted.add_ratings(study)
    simulated = study.feedback.kind_in_use()
    share = samples_of(study, ["base"], "share", simulated=simulated).labels
    estimate = samples_of(study, ["base"], "dawid-skene", simulated=simulated).labels
    assert len(share) == len(estimate) == 6 * 8
    assert {round(y, 3) for y in share if y == y} <= {0.0, 0.333, 0.5, 0.667, 1.0}
    assert all(0 < y < 1 for y in estimate if y == y)
    wrong = AlignConfig()
    object.__setattr__(wrong, "labels", "dawid")
    with pytest.raises(
        UserError, match="labels 'dawid'; choose share, majority, dawid-skene or auto"
    ):
        wrong.check()


def test_labels_of_an_unknown_kind_are_refused(tmp_path: Path) -> None:
    config = FitConfig()
    object.__setattr__(config, "labels", "shares")
    with pytest.raises(UserError, match="labels 'shares'; choose share, majority or dawid-skene"):
        collect(voted.make_study(tmp_path / "s"), config)


# votes on items


def test_item_votes_turn_sides_into_models() -> None:
    vote = Comparison(
        "v", "p", ("a",), ("b",), "base", "runs/x", "r", "alignment", "right", True, 0.0, 0.0
    )
    turned = replace(
        vote, id="w", rater="s", left_ids=("b",), right_ids=("a",), left_model="runs/x",
        right_model="base", value="left",
    )  # fmt: skip
    tied = replace(vote, id="u", rater="t", value="tie")
    (pair, found), = item_votes.of_comparisons([vote, turned, tied]).items()  # fmt: skip
    assert (pair.first, pair.second) == ("runs/x", "base")
    assert [b.value for b in found] == ["first", "first", "tie"]
    assert len({b.item for b in found}) == 1
    elsewhere = replace(vote, prompt_id="q")
    assert item_votes.item_of(elsewhere) != item_votes.item_of(vote)
    assert [b.seconds for b in found] == [None] * 3


def test_item_votes_know_times_and_checks() -> None:
    now = time.time()
    plain = a_rating("a", "x", "good")
    timed = replace(plain, shown_at=now, answered_at=now + 9, shown={"latency_ms": 1500})
    gold = replace(plain, shown={"gold": "bad"})
    check = replace(plain, shown={"attention": "good"})
    found = item_votes.of_ratings([plain, timed, gold, check], {"a": "p"})
    assert [b.seconds for b in found] == [1.0, 1.5, 1.0, 1.0]
    assert [(b.gold, b.attention) for b in found] == [
        (None, None), (None, None), (False, None), (None, True),
    ]  # fmt: skip
    assert item_votes.of_ratings([plain], {}) == []
