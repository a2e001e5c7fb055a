"""An excluded rater's votes are kept and do not count; their places are asked of others."""

from dataclasses import replace
from pathlib import Path

import pytest
from rating_studies import Office, make_study

from sayso.base.errors import UserError
from sayso.base.types import Rating
from sayso.web.work.excluding import set_excluded
from sayso.web.work.opening import open_task
from sayso.web.work.tasks import TaskOptions


@pytest.fixture
def office(tmp_path: Path) -> Office:
    options = TaskOptions(overlap=1, attention_share=0.0)
    return Office(make_study(tmp_path), options, names=("ann", "bob", "eve", "boss"))


def exclude(office: Office, name: str, excluded: bool = True) -> bool:
    with office.site.write() as db:
        return set_excluded(db, name, excluded, "boss")


def votes(office: Office) -> list[tuple[int, int]]:
    return office.table("select votes, wanted from tasks")


def test_places_open_again_and_votes_come_back(office: Office):
    office.client().work()
    assert votes(office) == [(12, 12)]
    assert exclude(office, "ann")
    assert not exclude(office, "ann"), "once is enough"
    assert votes(office) == [(0, 12)]
    assert office.study.feedback.counts(False) == {}
    assert len(office.study.feedback.ratings(excluded=True)) == 12
    assert office.client("bob").work(most=5) == 5
    assert votes(office) == [(5, 12)]
    assert exclude(office, "ann", excluded=False)
    assert votes(office) == [(12, 12)], "what both judged has more than it asked for"
    assert office.client("bob").work() == 0
    counted = office.study.feedback.counts(False).values()
    assert sorted(label.good for label in counted) == [1] * 7 + [2] * 5


def test_what_an_excluded_rater_answers_fills_no_place(office: Office):
    ann = office.client()
    exclude(office, "ann")
    item = ann.pages()[0]["items"][0]["item_id"]
    assert ann.vote(item, id="one").status_code == 200
    assert ann.vote(item, "retracted", id="two", supersedes="one").status_code == 200
    assert ann.work() == 12
    assert votes(office) == [(0, 12)]
    before = office.site.task
    office.site.task = open_task(
        office.site.database, office.study, replace(office.options, seed=4)
    )
    assert votes(office) == [(0, 12)] * 2
    exclude(office, "ann", excluded=False)
    assert votes(office) == [(12, 12)] * 2
    assert before != office.site.task


def test_imported_raters_can_be_excluded_too(office: Office):
    sample = office.study.samples()[0].id
    mark = Rating("m", sample, "3f2a", "alignment", "good", False, 1.0, 2.0)
    office.study.feedback.add_ratings([mark])
    assert exclude(office, "3f2a")
    assert office.study.feedback.ratings() == []
    with pytest.raises(UserError, match="no rater 'nobody'"):
        exclude(office, "nobody")
