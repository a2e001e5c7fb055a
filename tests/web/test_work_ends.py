"""Every image gets its raters, and the work ends when they have answered, not before."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

from rating_studies import BASE, RatingApp, add_images, items_of, make_study

from sayso.web.work.opening import open_task
from sayso.web.work.queue import LEASE_S
from sayso.web.work.tasks import TaskOptions

PLAIN = TaskOptions(attention_share=0.0)


def test_work_is_not_done_while_others_hold_it(tmp_path: Path):
    app = RatingApp(make_study(tmp_path), PLAIN, names=("ann", "bob"))
    ann, bob = app.client(), app.client("bob")
    held = ann.pages(10)
    ann.pages(10, tuple(page["page_id"] for page in held))
    waiting = bob.next(10)
    assert (waiting["pages"], waiting["done"]) == ([], False)
    app.clock.now += LEASE_S + 1
    assert bob.work() == 12
    assert bob.next()["done"]
    assert ann.next()["done"]


def test_a_broken_picture_does_not_keep_the_work_open(tmp_path: Path):
    app = RatingApp(make_study(tmp_path), PLAIN)
    ann = app.client()
    page = ann.pages()[0]
    [[images]] = app.table(f"select images from items where id = '{items_of(page)[0]}'")
    (app.study.path / json.loads(images)[0][0]).unlink()
    assert ann.http.get(page["items"][0]["image"]["url"]).status_code == 404
    assert ann.work() == 11
    assert ann.next()["done"]


def test_pictures_that_come_back_are_asked_for_in_the_end(tmp_path: Path):
    app = RatingApp(make_study(tmp_path), PLAIN)
    ann = app.client()
    sample = app.study.samples()[3]
    path = app.study.path / sample.path
    path.rename(path.with_suffix(".away"))
    assert ann.work() == 11
    assert app.table("select count(*) from items where broken") == [(1,)]
    path.with_suffix(".away").rename(path)
    assert ann.work() == 1
    assert ann.next()["done"]


def test_images_drawn_later_join_pages_that_have_room(tmp_path: Path):
    study = make_study(tmp_path, prompts=3, per_prompt=4)
    options = replace(PLAIN, images_per_page=3)
    app = RatingApp(study, options)
    add_images(study, BASE, 2, first=4)
    open_task(app.site.database, study, options)
    app.client().work()
    assert len(study.feedback.ratings()) == len(study.samples()) == 18


def test_images_beside_gold_ones_are_rated(tmp_path: Path):
    study = make_study(tmp_path, prompts=10, per_prompt=3)
    gold = {sample.id: "good" for sample in study.samples()[::5]}
    options = replace(PLAIN, images_per_page=3, gold=gold, gold_share=0.1)
    app = RatingApp(study, options, names=("ann", "bob"))
    for name in app.names:
        rater = app.client(name)
        rater.work()
        assert rater.next()["done"]
    rated = {rating.sample_id for rating in study.feedback.ratings()}
    assert rated >= {sample.id for sample in study.samples()} - gold.keys()


def test_the_shared_tenth_stays_what_it_was_when_images_join(tmp_path: Path):
    study = make_study(tmp_path, prompts=8, per_prompt=20)
    options = replace(PLAIN, shared_overlap=3)
    app = RatingApp(study, options)
    shared = "select content from items where overlap = 3"
    before = set(app.table(shared))
    add_images(study, BASE, 4, first=20)
    open_task(app.site.database, study, options)
    assert 5 < len(before) < 40
    assert before <= set(app.table(shared))


def test_the_total_of_a_rater_is_what_was_rated_in_the_end(tmp_path: Path):
    app = RatingApp(make_study(tmp_path), replace(PLAIN, overlap=3, gold_share=0.0))
    ann = app.client()
    totals = {ann.next()["progress"]["mine_total"]}
    ann.work()
    last = ann.next()["progress"]
    assert totals == {12}
    assert (last["mine"], last["mine_total"], last["project"]) == (12, 12, 12)


def test_a_clock_that_was_wrong_for_a_while_exceeds_no_overlap(tmp_path: Path):
    app = RatingApp(make_study(tmp_path, 1, 1), PLAIN, names=("ann", "bob"))
    ann, bob = app.client(), app.client("bob")
    item = items_of(ann.pages()[0])[0]
    app.clock.now -= 5
    assert items_of(bob.pages()[0]) == [item]
    app.clock.now += 6
    for rater in (ann, bob):
        assert rater.vote(item).status_code == 200
    assert app.table("select surplus from ratings order by seq") == [(False,), (True,)]
    assert app.table("select votes from items") == [(1,)]


def test_a_vote_given_again_after_closing_counts(tmp_path: Path):
    app = RatingApp(make_study(tmp_path), PLAIN)
    ann = app.client()
    item = items_of(ann.pages()[0])[0]
    ann.vote(item, id="v1")
    with app.site.write() as db:
        db.exec_driver_sql("update tasks set state = 'closed'")
    ann.vote(item, "retracted", id="v2", supersedes="v1")
    assert ann.vote(item, "bad", id="v3").json()["error"]["stored"]
    assert app.table("select votes from tasks") == [(1,)]
    states = Counter(row[0] for row in app.table("select surplus from ratings where id = 'v3'"))
    assert states == {0: 1}
