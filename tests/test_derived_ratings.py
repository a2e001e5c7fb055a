"""Truth that follow from imported comparisons, counted by hand."""

from dataclasses import replace

import pytest

from sayso.base.types import Comparison, Rating
from sayso.feedback.derived_ratings import ratings_from_comparisons
from sayso.feedback.store import Recorded

IMPORTED = {"imported_from": "table"}
DERIVED = {"derived_from": "comparisons"}


def compared(left: str, right: str, value: str, **more: object) -> Comparison:
    vote = Comparison(
        f"{left}{right}{value}", "p", (left,), (right,), "m", "n", "ann", "alignment", value,
        False, 1.0, 2.0, IMPORTED,
    )  # type: ignore[arg-type]  # fmt: skip
    return replace(vote, **more)  # type: ignore[arg-type]


def a_rating(sample: str, value: str, shown: dict[str, object], **more: object) -> Rating:
    vote = Rating("old", sample, "ann", "alignment", value, False, 1.0, 2.0, "", shown)  # type: ignore[arg-type]
    return replace(vote, **more)  # type: ignore[arg-type]


def derived(*votes: Rating | Comparison) -> dict[str, str]:
    made = ratings_from_comparisons(map(Recorded, votes))
    assert len({r.sample_id for r in made}) == len(made)
    return {r.sample_id: r.value for r in made}


@pytest.mark.parametrize(
    ("value", "left", "right"),
    [("left", "good", "bad"), ("right", "bad", "good"), ("tie", "skip", "skip"),
     ("both_good", "skip", "skip"), ("both_bad", "skip", "skip")],
)  # fmt: skip
def test_one_comparison(value: str, left: str, right: str) -> None:
    assert derived(compared("a", "b", value)) == {"a": left, "b": right}


def test_wins_less_losses_decide() -> None:
    draw = [compared("a", "b", "left"), compared("a", "b", "right")]
    assert derived(*draw) == {"a": "skip", "b": "skip"}
    # a wins 2 of 3, b wins 1 of 2, c wins 1 of 3, d ties and wins
    votes = [compared("a", "b", "left"), compared("c", "a", "right"), compared("b", "c", "left"),
             compared("c", "a", "left", id="again"), compared("d", "e", "tie"),
             compared("d", "f", "left")]  # fmt: skip
    expected = {"a": "good", "b": "skip", "c": "bad", "d": "good", "e": "skip", "f": "bad"}
    assert derived(*votes) == derived(*votes[::-1]) == expected


def test_what_the_rating_tells() -> None:
    votes = [
        compared("a", "b", "left", answered_at=9.0, simulated=True, question="fidelity"),
        compared("a", "c", "left", answered_at=5.0, simulated=True, question="fidelity"),
    ]
    made = {r.sample_id: r for r in ratings_from_comparisons(map(Recorded, votes))}
    a = made["a"]
    assert (a.rater, a.question, a.simulated, a.supersedes) == ("ann", "fidelity", True, None)
    assert a.shown == DERIVED
    # as late as the last comparison behind it
    assert [(r.shown_at, r.answered_at) for r in made.values()] == [(9, 9), (9, 9), (5, 5)]
    again = ratings_from_comparisons(map(Recorded, votes[::-1]))
    assert {r.id for r in again} == {r.id for r in made.values()}
    assert len({r.id for r in again}) == 3


def test_raters_questions_and_programs_have_ratings_of_their_own() -> None:
    vote = compared("a", "b", "left")
    others = [replace(vote, rater="bob"), replace(vote, question="fidelity"),
              replace(vote, simulated=True)]  # fmt: skip
    turned = [replace(v, value="right") for v in others]
    made = ratings_from_comparisons(map(Recorded, [vote, *turned]))
    assert [r.value for r in made if r.sample_id == "a"] == ["good", "bad", "bad", "bad"]
    assert len({r.id for r in made}) == 8


def test_only_what_was_said_of_single_images_counts() -> None:
    useless = [
        compared("a", "b", "skip"),
        compared("a", "b", "left", left_ids=("a", "c")),
        compared("a", "b", "left", right_ids=("b", "c")),
        compared("a", "b", "left", left_ids=("a", "c"), right_ids=("b", "d")),
        compared("a", "b", "left", shown={}),
        compared("a", "b", "left", shown={**IMPORTED, "attention": "left"}),
        a_rating("a", "good", {}),
    ]
    for vote in useless:
        assert derived(vote) == {}
    # and keeps nothing that follows from being counted
    assert derived(*useless, compared("x", "y", "left")) == {"x": "good", "y": "bad"}


def test_an_earlier_rating_is_replaced_when_the_balance_has_changed() -> None:
    old = a_rating("a", "good", DERIVED)
    assert derived(old, compared("a", "b", "left")) == {"b": "bad"}
    made = ratings_from_comparisons(map(Recorded, [compared("a", "b", "right"), old]))
    assert [(r.sample_id, r.value, r.supersedes) for r in made] == [
        ("a", "bad", "old"), ("b", "good", None),
    ]  # fmt: skip
    fresh = ratings_from_comparisons([Recorded(compared("a", "b", "right"))])
    assert fresh[0].id != made[0].id, "a rating that replaces another is another"


def test_ratings_that_do_not_count_are_not_there() -> None:
    gone = Recorded(a_rating("a", "bad", {}), live=False)
    check = Recorded(a_rating("a", "bad", {"attention": "good"}))
    vote = Recorded(compared("a", "b", "left"))
    assert {r.sample_id for r in ratings_from_comparisons([gone, check, vote])} == {"a", "b"}
    own = Recorded(a_rating("a", "bad", {}))
    assert {r.sample_id for r in ratings_from_comparisons([gone, own, vote])} == {"b"}
