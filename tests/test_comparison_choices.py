"""Skips count in no statistic of wins; "both good" and "both bad" are two kinds of tie."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from sayso.base.errors import UserError
from sayso.base.types import Choice, Comparison, Outcome, outcome
from sayso.feedback.derived_ratings import ratings_from_comparisons
from sayso.feedback.store import Recorded
from sayso.stages.rate import RateConfig, rate
from sayso.study.info import StudyInfo
from sayso.study.study import Study
from sayso.votes.balance import balance
from sayso.votes.item_votes import of_comparisons
from sayso.votes.rater_report import comparison_sections
from sayso.votes.side_by_side import side_by_side
from sayso.votes.standings import standings

MODELS = ("runs/align-a", "base")


def votes(values: Sequence[Choice]) -> list[Comparison]:
    """Votes of three raters on as many prompts as it takes, with these values in turn."""
    return [
        Comparison(
            f"vote-{i}", f"p{i // 3}", (f"p{i // 3}a",), (f"p{i // 3}b",), *MODELS, f"rater{i % 3}",
            "alignment", value, False, 0.0, 1.0, {"imported_from": "table"},
        )
        for i, value in enumerate(values)
    ]  # fmt: skip


def statistics(made: list[Comparison]) -> list[object]:
    prompts = {vote.prompt_id for vote in made}
    return [
        of_comparisons(made),
        side_by_side(made, set(MODELS), prompts, seed=1),
        standings(made, seed=1),
        balance(made, seed=1),
        comparison_sections(made, [], resamples=20),
        [(r.sample_id, r.value) for r in ratings_from_comparisons(Recorded(v) for v in made)],
    ]


PLAIN: tuple[Choice, ...] = ("left", "right", "tie", "left", "tie", "left") * 3


def test_a_skip_counts_in_no_statistic():
    judged = votes(PLAIN)
    skipped = [
        replace(vote, id=f"skip-{vote.id}", rater="dora", value="skip") for vote in judged[::2]
    ]
    assert statistics([*judged, *skipped]) == statistics(judged)


@pytest.mark.parametrize("kind", ["both_good", "both_bad"])
def test_both_kinds_of_tie_count_as_ties(kind: Choice):
    split: list[Choice] = [kind if value == "tie" else value for value in PLAIN]
    assert statistics(votes(split)) == statistics(votes(PLAIN))


def test_every_choice_has_an_outcome():
    assert {outcome(choice) for choice in get_args(Choice)} == set(get_args(Outcome))
    assert [outcome(c) for c in ("left", "right", "both_bad")] == ["left", "right", "tie"]


def test_a_split_tie_is_for_people_who_compare(tmp_path: Path):
    study = Study.create(tmp_path / "study", StudyInfo("s", 1))
    for config in (
        RateConfig(split_tie=True),
        RateConfig(split_tie=True, task="compare", right="runs/align-a", simulated=True),
    ):
        with pytest.raises(UserError, match="--split-tie"):
            rate(study, config)
