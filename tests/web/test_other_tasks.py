"""One live vote per image, rater and question over all tasks, and every task counts it."""

from dataclasses import replace
from pathlib import Path

import pytest
from rating_studies import BASE, TUNED, Office, items_of, make_study

from sayso.web.work.opening import open_task
from sayso.web.work.tasks import TaskOptions

PLAIN = TaskOptions(attention_share=0.0)


@pytest.fixture
def office(tmp_path: Path) -> Office:
    return Office(make_study(tmp_path), PLAIN)


def open_another(office: Office, **changes: object) -> str:
    """Open a task of other options and hand it out: the id of the one before."""
    before = office.site.task
    options = replace(office.options, **changes)
    office.site.task = open_task(office.site.database, office.study, options)
    return before


def numbers(office: Office, task: str) -> tuple[int, int]:
    """Votes of a task by its own counter and by those of its items."""
    [[votes]] = office.table(f"select votes from tasks where id = '{task}'")
    [[of_items]] = office.table(f"select sum(votes) from items where task = '{task}'")
    return votes, of_items


def test_pages_of_an_older_task_are_answered_and_nobody_is_asked_again(office: Office):
    ann = office.client()
    held = ann.pages(5)
    gold = {office.study.samples(BASE)[0].id: "good"}
    old = open_another(office, gold=gold)
    for page in held:
        ann.answer(page)
    assert ann.work() >= 7
    assert ann.next()["done"]
    assert len(office.study.feedback.ratings()) == 12
    assert numbers(office, old) == (5, 5)
    assert numbers(office, office.site.task)[0] == 11, "the gold one is not among those wanted"


def test_the_newest_answer_stands_whichever_task_it_came_from(office: Office):
    ann = office.client()
    page = ann.pages()[0]
    open_another(office, seed=9)
    ann.answer(page, lambda _: "bad")
    ann.work(lambda _: "good")
    assert {r.value for r in office.study.feedback.ratings()} == {"good"}
    assert len(office.study.feedback.ratings()) == 12


def test_an_answer_taken_back_in_one_task_is_asked_for_in_the_other(office: Office):
    ann = office.client()
    item = items_of(ann.pages()[0])[0]
    ann.vote(item, id="first")
    old = open_another(office, seed=9)
    assert numbers(office, office.site.task) == (1, 1)
    assert ann.vote(item, "retracted", id="back", supersedes="first").status_code == 200
    assert numbers(office, old) == numbers(office, office.site.task) == (0, 0)
    assert ann.work() == 12
    assert ann.next()["done"]
    assert len(office.study.feedback.ratings()) == 12
    assert numbers(office, office.site.task) == (12, 12)
    assert numbers(office, old) == (1, 1)


def test_comparisons_too(tmp_path: Path):
    study = make_study(tmp_path, 4, 2, (BASE, TUNED))
    office = Office(study, replace(PLAIN, kind="compare", right=TUNED, set_size=2))
    ann = office.client()
    held = ann.pages(3)
    open_another(office, seed=4)
    for page in held:
        ann.answer(page, lambda _: "left")
    assert ann.work(lambda _: "tie") == 8
    assert {c.value for c in study.feedback.comparisons()} == {"tie"}
    assert len(study.feedback.comparisons()) == 8
