"""An excluded rater's votes are kept and do not count; their places are asked of others."""

from dataclasses import replace
from pathlib import Path

import pytest
from rating_studies import RatingApp, make_study

from sayso.base.errors import UserError
from sayso.base.types import Rating
from sayso.web.work.excluding import set_excluded
from sayso.web.work.opening import open_task
from sayso.web.work.tasks import TaskOptions


@pytest.fixture
def app(tmp_path: Path) -> RatingApp:
    options = TaskOptions(overlap=1, attention_share=0.0)
    return RatingApp(make_study(tmp_path), options, names=("ann", "bob", "eve", "boss"))


def exclude(app: RatingApp, name: str, excluded: bool = True) -> bool:
    with app.site.write() as db:
        return set_excluded(db, name, excluded, "boss")


def votes(app: RatingApp) -> list[tuple[int, int]]:
    return app.table("select votes, wanted from tasks")


def test_places_open_again_and_votes_come_back(app: RatingApp):
    app.client().work()
    assert votes(app) == [(12, 12)]
    assert exclude(app, "ann")
    assert not exclude(app, "ann"), "once is enough"
    assert votes(app) == [(0, 12)]
    assert app.study.feedback.counts(False) == {}
    assert len(app.study.feedback.ratings(excluded=True)) == 12
    assert app.client("bob").work(most=5) == 5
    assert votes(app) == [(5, 12)]
    assert exclude(app, "ann", excluded=False)
    assert votes(app) == [(12, 12)], "what both judged has more than it asked for"
    assert app.client("bob").work() == 0
    counted = app.study.feedback.counts(False).values()
    assert sorted(label.good for label in counted) == [1] * 7 + [2] * 5


def test_what_an_excluded_rater_votes_fills_no_place(app: RatingApp):
    ann = app.client()
    exclude(app, "ann")
    item = ann.pages()[0]["items"][0]["item_id"]
    assert ann.vote(item, id="one").status_code == 200
    assert ann.vote(item, "retracted", id="two", supersedes="one").status_code == 200
    assert ann.work() == 12
    assert votes(app) == [(0, 12)]
    before = app.site.task
    app.site.task = open_task(app.site.database, app.study, replace(app.options, seed=4))
    assert votes(app) == [(0, 12)] * 2
    exclude(app, "ann", excluded=False)
    assert votes(app) == [(12, 12)] * 2
    assert before != app.site.task


def test_imported_raters_can_be_excluded_too(app: RatingApp):
    sample = app.study.samples()[0].id
    rating = Rating("m", sample, "3f2a", "alignment", "good", False, 1.0, 2.0)
    app.study.feedback.add_ratings([rating])
    assert exclude(app, "3f2a")
    assert app.study.feedback.ratings() == []
    with pytest.raises(UserError, match="no rater 'nobody'"):
        exclude(app, "nobody")
