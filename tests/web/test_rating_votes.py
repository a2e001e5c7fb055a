"""Promises 1, 3, 4, 5 through the API: stored before the reply, once, one live vote, overlap."""

import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from page_server import running
from rating_studies import BASE, TUNED, Rater, RatingApp, add_images, items_of, make_study

from sayso.web.work.opening import open_task
from sayso.web.work.queue import LEASE_S
from sayso.web.work.tasks import TaskOptions

PLAIN = TaskOptions(attention_share=0.0)


@pytest.fixture
def app(tmp_path: Path) -> RatingApp:
    return RatingApp(make_study(tmp_path), names=("ann", "bob", "cem"))


def take_all(rater: Rater) -> list[dict[str, Any]]:
    """Lease everything there is."""
    pages: list[dict[str, Any]] = []
    while more := rater.pages(10, tuple(page["page_id"] for page in pages)):
        pages += more
    return pages


def test_everything_once_and_readable_as_feedback(app: RatingApp):
    ann = app.client()
    assert ann.work(lambda item: "bad" if item[0] < "8" else "good") == 12
    final = ann.next()
    assert final["done"]
    assert final["progress"] == {"mine": 12, "mine_total": 12, "project": 12, "project_total": 12}
    ratings = app.study.feedback.ratings(simulated=False)
    assert {r.sample_id for r in ratings} == {s.id for s in app.study.samples(BASE)}
    assert {r.rater for r in ratings} == {"ann"}
    assert {r.question for r in ratings} == {"alignment"}
    assert len({r.value for r in ratings}) == 2
    shown = ratings[0].shown
    assert shown["latency_ms"] == 1500
    assert shown["overlap_target"] == 1
    assert shown["surplus"] is False
    assert ratings[0].answered_at == app.clock.now
    assert sum(label.good + label.bad for label in app.study.feedback.counts(False).values()) == 12


def test_a_reply_means_that_another_connection_sees_the_vote(app: RatingApp):
    """Over the wire, for a client in the process also waits for what runs after the reply."""
    ann = app.client()
    body = ann.body(items_of(ann.pages()[0])[0], "bad", id="v1")
    path = app.study.path / "feedback.db"
    with (
        running(app.asgi) as url,
        closing(sqlite3.connect(path, isolation_level=None)) as blocker,
        ThreadPoolExecutor(1) as background,
    ):
        blocker.execute("begin immediate")  # nothing can be stored until this is over
        reply = background.submit(send_and_look, url, ann, body, path)
        time.sleep(0.3)
        assert not reply.done()
        blocker.execute("rollback")
        assert reply.result() == (200, [("v1", "bad")])


def send_and_look(url: str, ann: Rater, body: dict[str, Any], path: Path) -> tuple[int, list[Any]]:
    """Post a vote, and read the database before anything of the reply but its first line."""
    headers = {"X-CSRF-Token": ann.token}
    with (
        httpx.Client(base_url=url, cookies=dict(ann.http.cookies)) as browser,
        closing(sqlite3.connect(path)) as db,
        browser.stream("POST", "/api/votes", json=body, headers=headers) as reply,
    ):
        return reply.status_code, db.execute("select id, value from ratings").fetchall()


def test_repeating_is_harmless_and_another_body_is_refused(app: RatingApp):
    ann, bob = app.client(), app.client("bob")
    item = items_of(ann.pages()[0])[0]
    body = ann.body(item)
    first = ann.post("/api/votes", body)
    assert ann.post("/api/votes", body).json()["id"] == first.json()["id"] == body["id"]
    changed = ann.post("/api/votes", {**body, "value": "bad"})
    assert (changed.status_code, changed.json()["error"]["code"]) == (409, "vote_conflict")
    assert bob.post("/api/votes", body).status_code == 409
    assert app.table("select value from ratings") == [("good",)]


def test_one_live_vote_supersede_retract_and_vote_again(app: RatingApp):
    ann = app.client()
    page = ann.pages()[0]
    item = items_of(page)[0]
    assert ann.vote(item, id="v1").status_code == 200
    assert ann.vote(item, "bad", id="v2").status_code == 409
    assert ann.vote(item, "bad", id="v2", supersedes="nothing").status_code == 409
    assert ann.vote(item, "bad", id="v2", supersedes="v1").status_code == 200
    assert ann.vote(item, "skip", id="v3", supersedes="v1").status_code == 409
    assert ann.vote(item, "retracted", id="v3", supersedes="v2").status_code == 200
    assert app.study.feedback.ratings() == []
    assert ann.next(have=(page["page_id"],))["progress"]["mine"] == 0
    again = ann.pages()[0]
    assert again["page_id"] == page["page_id"]
    assert again["items"][0]["supersedes"] == "v3"
    assert ann.vote(item, "skip", id="v4", reason="unsure").status_code == 200
    assert [(r.id, r.value, r.reason) for r in app.study.feedback.ratings()] == [
        ("v4", "skip", "unsure")
    ]
    assert app.table("select id, supersedes from ratings order by seq") == [
        ("v1", None), ("v2", "v1"), ("v3", "v2"), ("v4", "v3"),
    ]  # fmt: skip


def test_two_tabs_of_one_rater(app: RatingApp):
    one, two = app.client(), app.client()
    assert one.pages(3) == two.pages(3)
    item = items_of(one.pages(1)[0])[0]
    assert one.vote(item, "good", id="tab1").status_code == 200
    late = two.vote(item, "bad", id="tab2")
    assert late.status_code == 409
    assert "another tab" in late.json()["error"]["message"]
    assert [r.id for r in app.study.feedback.ratings()] == ["tab1"]


def test_overlap_is_never_exceeded(tmp_path: Path):
    options = TaskOptions(attention_share=0.0, overlap=2)
    app = RatingApp(make_study(tmp_path), options, names=("ann", "bob", "cem"))
    crew = [app.client(name) for name in app.names]
    held = [rater.pages(10) for rater in crew]
    assert sum(map(len, held)) == 24
    for rater, pages in zip(crew, held, strict=True):
        for page in pages:
            rater.vote_on(page)
        rater.work()
    per_item = app.table("select count(*), count(distinct rater) from ratings group by item_id")
    assert per_item == [(2, 2)] * 12
    assert all(not r.shown["surplus"] for r in app.study.feedback.ratings())


def test_a_late_vote_is_kept_as_surplus(app: RatingApp):
    ann, bob = app.client(), app.client("bob")
    held = {items_of(page)[0] for page in take_all(ann)}
    assert bob.pages(10) == []
    app.clock.now += LEASE_S + 1
    taken = items_of(bob.pages(1)[0])[0]
    bob.vote(taken, "bad")
    late = ann.vote(taken, "good")
    assert late.status_code == 200
    assert "surplus" not in late.json(), "checks never are: it would tell that this is none"
    free = next(item for item in sorted(held) if item != taken)
    ann.vote(free, "good")
    assert [r.shown["surplus"] for r in app.study.feedback.ratings()] == [False, True, False]


def test_released_pages_go_to_others(app: RatingApp):
    ann, bob = app.client(), app.client("bob")
    ids = [page["page_id"] for page in take_all(ann)]
    assert ann.post("/api/release", {"page_ids": ids}).json()["items"] == 12
    assert len(bob.pages(10)) == 10


def test_refused_pages_do_not_come_back(app: RatingApp):
    ann = app.client()
    page = ann.pages()[0]
    ann.post("/api/release", {"page_ids": [page["page_id"]], "broken": True, "message": "x"})
    assert ann.work() == 11
    assert app.client("bob").work() == 1


def test_three_images_of_one_prompt_on_a_page(tmp_path: Path):
    options = TaskOptions(attention_share=0.0, images_per_page=3)
    app = RatingApp(make_study(tmp_path, prompts=3, per_prompt=4), options)
    sizes = [len(page["items"]) for page in app.client().pages(10)]
    assert sorted(sizes) == [1, 1, 1, 3, 3, 3]


def test_more_overlap_later_adds_and_takes_nothing_away(app: RatingApp):
    app.client().work()
    more = TaskOptions(attention_share=0.0, overlap=2)
    assert open_task(app.site.database, app.study, more) == app.site.task
    bob = app.client("bob")
    assert app.client().work() == 0
    assert bob.next()["progress"]["project_total"] == 24
    assert bob.work() == 12
    assert app.client("cem").work() == 0


def test_votes_of_another_task_count(tmp_path: Path):
    study = make_study(tmp_path)
    first = RatingApp(study, names=("ann", "bob"))
    first.client().work(most=5)
    other = TaskOptions(attention_share=0.0, seed=9)
    first.site.task = open_task(first.site.database, study, other)
    assert first.client().work() + first.client("bob").work() == 7
    assert len(study.feedback.ratings()) == 12


def test_images_drawn_later_join_the_task(app: RatingApp):
    app.client().work()
    add_images(app.study, BASE, 1, first=3)
    add_images(app.study, TUNED, 1)
    open_task(app.site.database, app.study, PLAIN)
    assert app.client().work() == 4


def test_votes_for_a_page_that_was_not_given(app: RatingApp):
    item = items_of(app.client().pages()[0])[0]
    assert app.client("bob").vote(item).json()["error"]["code"] == "unknown_item"
    assert app.client().vote("nothing").json()["error"]["code"] == "unknown_item"
