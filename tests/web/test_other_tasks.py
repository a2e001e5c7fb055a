"""One live vote per image, rater and question over all tasks, and every task counts it."""

from dataclasses import replace
from pathlib import Path

import pytest
from rating_studies import BASE, TUNED, RatingApp, items_of, make_study

from sayso.web.work.opening import open_task
from sayso.web.work.tasks import TaskOptions

PLAIN = TaskOptions(attention_share=0.0)


@pytest.fixture
def app(tmp_path: Path) -> RatingApp:
    return RatingApp(make_study(tmp_path), PLAIN)


def open_another(app: RatingApp, **changes: object) -> str:
    """Open a task of other options and hand it out: the id of the one before."""
    before = app.site.task
    options = replace(app.options, **changes)
    app.site.task = open_task(app.site.database, app.study, options)
    return before


def numbers(app: RatingApp, task: str) -> tuple[int, int]:
    """Votes of a task by its own counter and by those of its items."""
    [[votes]] = app.table(f"select votes from tasks where id = '{task}'")
    [[of_items]] = app.table(f"select sum(votes) from items where task = '{task}'")
    return votes, of_items


def test_pages_of_an_older_task_are_rated_and_nobody_is_asked_again(app: RatingApp):
    ann = app.client()
    held = ann.pages(5)
    gold = {app.study.samples(BASE)[0].id: "good"}
    old = open_another(app, gold=gold)
    for page in held:
        ann.vote_on(page)
    assert ann.work() >= 7
    assert ann.next()["done"]
    assert len(app.study.feedback.ratings()) == 12
    assert numbers(app, old) == (5, 5)
    assert numbers(app, app.site.task)[0] == 11, "the gold one is not among those wanted"


def test_the_newest_vote_stands_whichever_task_it_came_from(app: RatingApp):
    ann = app.client()
    page = ann.pages()[0]
    open_another(app, seed=9)
    ann.vote_on(page, lambda _: "bad")
    ann.work(lambda _: "good")
    assert {r.value for r in app.study.feedback.ratings()} == {"good"}
    assert len(app.study.feedback.ratings()) == 12


def test_a_vote_taken_back_in_one_task_is_asked_for_in_the_other(app: RatingApp):
    ann = app.client()
    item = items_of(ann.pages()[0])[0]
    ann.vote(item, id="first")
    old = open_another(app, seed=9)
    assert numbers(app, app.site.task) == (1, 1)
    assert ann.vote(item, "retracted", id="back", supersedes="first").status_code == 200
    assert numbers(app, old) == numbers(app, app.site.task) == (0, 0)
    assert ann.work() == 12
    assert ann.next()["done"]
    assert len(app.study.feedback.ratings()) == 12
    assert numbers(app, app.site.task) == (12, 12)
    assert numbers(app, old) == (1, 1)


def test_comparisons_too(tmp_path: Path):
    study = make_study(tmp_path, 4, 2, (BASE, TUNED))
    app = RatingApp(study, replace(PLAIN, kind="compare", right=TUNED, set_size=2))
    ann = app.client()
    held = ann.pages(3)
    open_another(app, seed=4)
    for page in held:
        ann.vote_on(page, lambda _: "left")
    assert ann.work(lambda _: "tie") == 8
    assert {c.value for c in study.feedback.comparisons()} == {"tie"}
    assert len(study.feedback.comparisons()) == 8
