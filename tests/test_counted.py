"""Which votes count: one table, and every reader of votes held against it."""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pyarrow.parquet as pq
import pytest
from sqlalchemy import insert, select
from voted_images import BASE, TUNED, a_rating, comparison, images_of, voted_study

from sayso.base.types import Comparison, Rating
from sayso.feedback import vote_tables, work_tables
from sayso.feedback.store import vote_row
from sayso.feedback.vote_queries import counting
from sayso.judges.people import People
from sayso.reporting.page import render
from sayso.reporting.report_data import ReportData
from sayso.reporting.summary import summarise
from sayso.stages._training_data import labels_of
from sayso.stages.agreement import agreement
from sayso.stages.evaluate import _compared, _Gathered
from sayso.stages.export import ExportConfig, export
from sayso.stages.fit import FitConfig, collect
from sayso.study.generations import Generations
from sayso.study.study import Study
from sayso.votes.counted import (
    RULES,
    Purpose,
    Standing,
    counts,
    in_words,
    is_right,
    left_out,
    standing,
    standing_of,
    why_not,
)
from sayso.votes.rater_report import comparison_sections, rating_section
from sayso.web.work.opening import open_task
from sayso.web.work.tasks import TaskOptions

KINDS: dict[str, dict[str, Any]] = {
    "ordinary": {},
    "skip": {"value": "skip"},
    "surplus": {"shown": {"surplus": True}},
    "gold": {"shown": {"gold": "good", "overlap_target": 0}},
    "attention": {"shown": {"attention": "bad", "overlap_target": 0}},
    "struck gold": {"shown": {"gold": "good", "struck": True}},
    "struck attention": {"shown": {"attention": "bad", "struck": True}},
    "decision": {"shown": {"adjudication": True}},
    "passed decision": {"value": "skip", "shown": {"adjudication": True}},
    "excluded": {},
    "taken back": {},
    "superseded": {},
    "simulated": {"simulated": True},
}
"""One vote of each kind; what the store alone knows is added by `store`."""

NONE = {"attention", "struck attention", "excluded", "taken back", "simulated"}
"""Kinds that count in no statistic and for no label."""
OWN = {"ordinary", "skip", "surplus", "gold", "struck gold", "superseded"}
"""A rater's own word: a superseded vote counts through the one that took its place."""
LABELS = OWN - {"skip"}


def make(kind: str, make_vote: Callable[..., Any], value: str) -> list[Any]:
    """The vote of a kind and what follows it."""
    fields = {"value": value, "id": "special", **KINDS[kind]}
    vote = make_vote(**fields)
    if kind == "superseded":
        return [vote, replace(vote, id="newer", supersedes="special")]
    return [vote]


def store(study: Study, kind: str, votes: list[Any]) -> None:
    rating = isinstance(votes[0], Rating)
    add: Any = study.feedback.add_ratings if rating else study.feedback.add_comparisons
    add(votes)
    with study.feedback.database.write() as db:
        if kind == "excluded":
            row = {"rater": "zed", "author": "boss", "created_at": 1.0}
            db.execute(insert(vote_tables.exclusions).values(row))
        if kind == "taken back":
            table = vote_tables.ratings if rating else vote_tables.comparisons
            back = {"id": "back", "value": vote_tables.RETRACTED, "supersedes": "special"}
            db.execute(insert(table).values({**vote_row(votes[0]), **back}))


# the pure function


def test_every_trait_speaks_in_some_purpose_and_no_vote_counts_twice_over():
    assert set(RULES) == set(get_args(Purpose))
    named = {trait for rule in RULES.values() for trait in (*rule.without, *rule.of)}
    assert named == set(Standing.__slots__)
    for flags in itertools.product((False, True), repeat=len(Standing.__slots__)):
        vote = Standing(*flags)
        assert not (counts(vote, "vote") and counts(vote, "decision"))
        if counts(vote, "label") or counts(vote, "place"):
            assert counts(vote, "vote")
        if counts(vote, "vote"):
            assert counts(vote, "opinion")
        if vote.superseded:
            assert not any(counts(vote, purpose) for purpose in RULES)


TABLE: dict[Purpose, set[str]] = {
    "label": LABELS | {"simulated"},
    "decision": {"decision"},
    "vote": OWN | {"simulated"},
    "check": {"gold", "attention"},
    "opinion": OWN | {"simulated", "excluded"},
    "place": (OWN - {"surplus", "gold"}) | {"simulated"},
    "work": OWN | {"simulated", "excluded", "attention", "struck attention"},
}


def standing_of_kind(kind: str) -> Standing:
    [vote, *newer] = make(kind, lambda **more: a_rating("x", "zed", **more), "good")
    gone = kind == "taken back"
    return standing(newer[-1] if newer else vote, superseded=gone, excluded=kind == "excluded")


@pytest.mark.parametrize("purpose", RULES)
def test_the_table(purpose: Purpose):
    assert {k for k in KINDS if counts(standing_of_kind(k), purpose)} == TABLE[purpose]


def test_why_a_vote_is_left_out():
    assert why_not(Standing(excluded=True, attention=True), "vote") == "excluded"
    assert why_not(Standing(), "check") == "ordinary"
    votes = [Standing(), Standing(decision=True), Standing(excluded=True), Standing(excluded=True)]
    assert left_out(votes, "vote") == {"decision": 1, "excluded": 2}
    assert in_words(left_out(votes, "vote")) == (
        "1 reviewers' decisions, which set labels, 2 of raters whom an admin has excluded"
    )
    assert in_words({}) == ""
    assert standing_of({}, "good") == Standing()


# the same in SQL


@pytest.mark.parametrize("kind", KINDS)
def test_sql_says_the_same(tmp_path: Path, kind: str):
    study = study_with(tmp_path, kind)
    with study.feedback.database.read() as db:
        for table in (vote_tables.ratings, vote_tables.comparisons):
            for purpose in sorted(set(RULES) - {"check", "place"}):
                query = select(table.c.rater).where(counting(table, purpose))
                found = "zed" in set(db.scalars(query))
                # a comparison has no skip: in its place stands a tie
                passed = {"skip": "ordinary", "passed decision": "decision"}
                alike = kind if table is vote_tables.ratings else passed.get(kind, kind)
                assert found == (alike in TABLE[purpose]), (table.name, purpose)
    with pytest.raises(KeyError):
        counting(vote_tables.ratings, "place")


# every reader of votes


@dataclass(frozen=True)
class Case:
    """A study with two people's votes and one vote more, of a kind."""

    study: Study
    image: str
    folder: Path


def study_with(folder: Path, kind: str | None) -> Study:
    """One image good to ann and bad to Zoë, one comparison; and a vote of zed on each."""
    study = voted_study(folder / "study")
    image, (left, right) = images_of(study, "p0")[2], comparison_sets(study)
    if kind:
        rating = make(kind, lambda **more: a_rating(image, "zed", **more), "good")
        value = KINDS[kind].get("value", "left").replace("skip", "tie")
        sides = make(
            kind,
            lambda **more: comparison(study, prompt="q0", left=left, right=right, rater="zed",
                                      **{"key": more.pop("id"), **more, "value": value}),
            value,
        )  # fmt: skip
        store(study, kind, rating)
        store_sides(study, kind, sides)
    return study


def store_sides(study: Study, kind: str, votes: list[Comparison]) -> None:
    if kind == "excluded":
        study.feedback.add_comparisons(votes)
    else:
        store(study, kind, votes)


def comparison_sets(study: Study) -> tuple[list[str], list[str]]:
    return images_of(study, "q0"), images_of(study, "q0", TUNED)


def place(case: Case) -> object:
    """How many raters the image has in a task that is opened after the vote."""
    options = TaskOptions(overlap=5, attention_share=0.0)
    with case.study.feedback.database.write() as db:
        for name in ("ann", "Zoë 猫", "zed"):
            row = {"id": name, "name": name, "role": "rater", "simulated": False, "active": True,
                   "created_at": time.time()}  # fmt: skip
            db.execute(insert(work_tables.raters).values(row))
    task = open_task(case.study.feedback.database, case.study, options)
    items, tasks = work_tables.items.c, work_tables.tasks.c
    with case.study.feedback.database.read() as db:
        on_item = select(items.votes).where(items.content == f"alignment:{case.image}")
        in_all = select(tasks.votes).where(tasks.id == task)
        return db.scalar(on_item), db.scalar(in_all)


def judged_by_people(case: Case) -> object:
    [sample] = [s for s in case.study.samples() if s.id == case.image]
    [prompt] = [p for p in case.study.prompts() if p.id == sample.prompt_id]
    return People().judge_samples(case.study, [sample], [prompt])


def section(case: Case) -> Any:
    prompts = {p.id: p for p in case.study.prompts()}
    prompt_of = {s.id: prompts[s.prompt_id] for s in case.study.samples()}
    return rating_section(case.study.feedback.ratings(False), prompt_of, resamples=0)


def checks(case: Case) -> object:
    return [(row.gold, row.attention) for row in section(case).raters]


def exported(case: Case, form: str) -> Any:
    out = case.folder / form
    export(case.study, ExportConfig(format=form, out=str(out), raters="people"))
    found = []
    for file in sorted(out.rglob("*.parquet")):
        if file.name not in ("votes.parquet", "images.parquet"):
            found += pq.read_table(file).drop_columns("image").to_pylist() if form == "kto" else (
                pq.read_table(file).to_pylist())  # fmt: skip
    return found


def side_by_side(case: Case, part: str) -> object:
    prompts = {p.id: p for p in case.study.prompts("test")}
    models = {"base": BASE, "aligned": TUNED}
    samples = {role: case.study.samples(model) for role, model in models.items()}
    generations = Generations(case.study)
    judged = ("people", People())
    data = _Gathered(models, samples, {}, prompts, generations, {}, *judged)
    found = _compared(case.study, data)[part]
    return [r for r in found if not r["simulated"]]


READERS: dict[str, tuple[Callable[[Case], object], set[str]]] = {
    "labels": (lambda c: c.study.feedback.counts(False), OWN | {"decision"}),
    "share": (lambda c: c.study.feedback.soft_labels(False), LABELS | {"decision"}),
    "dawid-skene": (
        lambda c: c.study.feedback.soft_labels(False, method="dawid-skene"),
        LABELS | {"decision"},
    ),
    "preferences": (
        lambda c: c.study.feedback.preferences(c.study.samples(), False),
        LABELS | {"decision"},
    ),
    "fit": (lambda c: collect(c.study, FitConfig(raters="people")).labels, LABELS | {"decision"}),
    "align": (
        lambda c: labels_of(c.study, c.study.samples(BASE), "share", simulated=False),
        LABELS | {"decision"},
    ),
    "evaluate by people": (judged_by_people, LABELS | {"decision"}),
    "agreement": (lambda c: section(c).groups["all"].rates, OWN),
    "rater table": (lambda c: [r.votes for r in section(c).raters], OWN),
    "rater table's checks": (checks, OWN | {"gold"}),
    "report": (lambda c: ratings_of(ReportData(c.study).feedback), OWN),
    "summary": (lambda c: ratings_of(summarise(ReportData(c.study))["feedback"]), OWN),
    "export's labels": (lambda c: exported(c, "sayso"), OWN | {"decision"}),
    "export for KTO": (lambda c: exported(c, "kto"), LABELS | {"decision"}),
    "comparisons' agreement": (lambda c: sections_of_sides(c), OWN),
    "side by side": (lambda c: side_by_side(c, "comparisons"), OWN),
    "standings": (lambda c: side_by_side(c, "bradley_terry"), OWN),
    "balance": (lambda c: side_by_side(c, "balance"), OWN),
    "overlap and progress": (place, OWN),
}
"""Reader → what it tells of a study, and the kinds of votes that change it."""


def ratings_of(feedback: dict[str, Any]) -> object:
    return {k: v for k, v in feedback.items() if k != "left_out"}


def sections_of_sides(case: Case) -> object:
    found = case.study.feedback.comparisons(False)
    return [s.votes for s in comparison_sections(found, case.study.prompts(), resamples=0)]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str | None], object]:
    """What a reader tells of the study with a vote of some kind; of None without."""

    @cache
    def case(kind: str | None) -> Case:
        folder = tmp_path_factory.mktemp("counted")
        study = study_with(folder, kind)
        return Case(study, images_of(study, "p0")[2], folder)

    return lambda reader, kind: repr(READERS[reader][0](case(kind)))


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_counts_what_the_table_says(
    told: Callable[[str, str | None], object], reader: str
):
    without = told(reader, None)
    changed = {kind for kind in KINDS if told(reader, kind) != without}
    assert changed == READERS[reader][1]


def test_a_decision_alone_is_a_label_everywhere(tmp_path: Path):
    """All raters of an image may be excluded after a reviewer has decided on it."""
    study = voted_study(tmp_path / "study")
    image = images_of(study, "p2")[2]
    decision = a_rating(image, "eve", "bad", shown={"adjudication": True})
    study.feedback.add_ratings([decision])
    assert study.feedback.counts(False)[image].value == "bad"
    assert study.feedback.soft_labels(False)[image] == 0.0
    assert study.feedback.counts(False)[image].share == 0.0
    case = Case(study, image, tmp_path)
    [row] = [r for r in exported(case, "sayso") if r["sample_id"] == image]
    assert (row["n_good"], row["n_bad"], row["decided"], row["p_good"]) == (0, 0, "bad", 0.0)
    data = collect(study, FitConfig(raters="people"))
    assert dict(zip([s.id for s in data.samples], data.labels, strict=True))[image] == 0.0


def test_agreement_says_what_was_left_out(tmp_path: Path):
    study = study_with(tmp_path, "excluded")
    run = agreement(study, replace_config())
    assert run.result["left_out"] == {"attention": 1, "excluded": 2}
    assert summarise(ReportData(study))["feedback"]["left_out"] == {"attention": 1, "excluded": 2}
    assert "2 of raters whom an admin has excluded" in render(
        ReportData(study), summarise(ReportData(study)), 4
    )


def replace_config() -> Any:
    from sayso.stages.agreement import AgreementConfig

    return AgreementConfig(raters="people", resamples=0, judge="none")


@pytest.mark.parametrize(
    ("value", "expected", "right"),
    [
        ("left", "left", True), ("left", "right", False), ("right", "right", True),
        ("right", "left", False), ("both_good", "left", False), ("good", "good", True),
        ("bad", "good", False), ("skip", "good", False), ("tie", "good", False),
        *((v, side, None) for v in ("tie", "both_bad", "skip") for side in ("left", "right")),
    ],
)  # fmt: skip
def test_who_sees_no_difference_may_well_have_looked(
    value: str, expected: str, right: bool | None
) -> None:
    assert is_right(value, expected) is right
