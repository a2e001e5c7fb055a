"""The rating app on PostgreSQL: two workers, and the database going down in mid-session."""

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from browser import Watched, chromium, ready, saved
from page_actions import rate
from page_server import Served, WallClock, running
from postgresql import Server
from rating_studies import Rater, RatingApp, items_of, make_study
from served import served
from test_rating_store import waiting_together

from sayso.feedback import work_tables
from sayso.feedback.database import Database
from sayso.web.app import create_app
from sayso.web.site import Site
from sayso.web.work import people
from sayso.web.work.opening import open_task
from sayso.web.work.tasks import TaskOptions
from sayso.web.work.voting import Context, Vote, cast_vote


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    server.start()
    yield server
    server.stop()
    shutil.rmtree(server.folder)


@pytest.fixture
def url(server: Server) -> Iterator[str]:
    """An empty database."""
    yield server.url
    database = Database(server.url)
    with database.engine.begin() as db:
        db.exec_driver_sql("drop schema public cascade")
        db.exec_driver_sql("create schema public")
    database.close()


def test_same_tables(url: str):
    with Database(url).read() as db:
        assert compare_metadata(MigrationContext.configure(db), work_tables.metadata) == []


def second_worker(one: RatingApp) -> RatingApp:
    """Another server of the same study."""
    two = RatingApp.__new__(RatingApp)
    two.__dict__.update(one.__dict__)
    database = Database(one.url, one.busy_timeout_s, keep_open=True)
    two.site = Site(one.study, database, one.site.task, False, one.clock)
    two.asgi = create_app(two.site)
    return two


def test_two_workers_keep_the_overlap(tmp_path: Path, url: str):
    """Four raters at two servers of one database, all at once."""
    names = ("ann", "bob", "cem", "dan")
    options = TaskOptions(overlap=2, attention_share=0.3)  # some meet each rater soon
    one = RatingApp(make_study(tmp_path, per_prompt=5), options, url, names=names)
    two = second_worker(one)
    raters = [app.client(name) for app, name in zip((one, two) * 2, names, strict=True)]
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(Rater.work, raters))
    assert sum(done) >= 40
    everything = one.study.feedback.ratings(simulated=False)
    votes = [vote for vote in everything if "attention" not in vote.shown]
    assert len(everything) > len(votes)
    assert set(Counter(v.sample_id for v in votes).values()) == {2}
    assert len({(v.sample_id, v.rater) for v in votes}) == len(votes) == 40
    assert not any(v.shown["surplus"] for v in votes)
    for app in (one, two):
        app.site.database.close()


def test_a_task_opened_again_waits_for_votes_being_cast(tmp_path: Path, url: str):
    """Another server opens the task while a vote is not committed yet: no counter is lost."""
    options = TaskOptions(attention_share=0.0)
    app = RatingApp(make_study(tmp_path), options, url)
    item = items_of(app.client().pages()[0])[0]
    vote = Vote("v1", item, "alignment", "good", 1.0, 2.0, 1.0, 0.0, 0)
    around = Context("session", "version", app.clock.now)
    other = Database(url)
    with ThreadPoolExecutor(1) as pool:
        with other.write() as db:
            rater = people.by_id(db, db.exec_driver_sql("select id from raters").scalar_one())
            cast_vote(db, rater, vote, around)
            os.utime(app.study.path / "samples.jsonl")
            opening = pool.submit(open_task, app.site.database, app.study, options)
            with pytest.raises(TimeoutError):
                opening.result(1.0)
        opening.result(30)
    other.close()
    assert app.table("select sum(votes) from items") == [(1,)]
    assert app.table("select votes from tasks") == [(1,)]


def test_rows_locked_by_another_program(tmp_path: Path, url: str):
    """Waiting has an end, for the next request in the same process too."""
    names = ("ann", "bob")
    app = RatingApp(make_study(tmp_path), url=url, names=names, busy_timeout_s=1.5)
    ann, bob = app.client(), app.client("bob")
    other = Database(url)
    with other.engine.connect() as db:
        db.exec_driver_sql("select * from tasks for update")
        assert max(waiting_together([ann, bob])) < 2.1
    assert ann.work() == 12
    other.close()
    app.site.database.close()


def test_the_character_nul_is_refused(tmp_path: Path, url: str):
    """PostgreSQL cannot store it."""
    names = ("ann", "boss")
    app = RatingApp(make_study(tmp_path), TaskOptions(attention_share=0.0), url, names=names)
    ann, boss = app.client(), app.client("boss")
    page = ann.pages()[0]
    assert ann.vote(items_of(page)[0], "skip", reason="x\0y").status_code == 422
    told = {"page_ids": [page["page_id"]], "message": "x\0y"}
    assert ann.post("/api/release", told).status_code == 422
    assert ann.http.get("/i/%00/0").status_code == 400
    assert ann.http.get("/in/%00").status_code == 400
    for path, form in (
        ("raters", {"action": "link", "name": "a\0"}),
        ("raters", {"action": "add", "name": "a\0", "role": "rater"}),
        ("guideline", {"text": "a\0", "base_version": "0"}),
        ("task", {"task": "a\0", "action": "pause"}),
    ):
        response = boss.http.post(f"/admin/{path}", data={"csrf": boss.token, **form})
        assert response.status_code == 422, path
    decision = boss.body("a\0", "good")
    assert boss.post(f"/api/decisions/{app.site.task}/votes", decision).status_code == 422
    assert ann.vote(items_of(page)[0], "skip", reason="line\nline ü").status_code == 200
    app.site.database.close()


def test_two_reviewers_decide_at_once(tmp_path: Path, server: Server, url: str):
    options = TaskOptions(overlap=2, attention_share=0.0)
    names = ("ann", "bob", "eve", "boss")
    one = RatingApp(make_study(tmp_path, per_prompt=5), options, url, names=names)
    one.client().work()
    one.client("bob").work(lambda _: "bad")
    two, start = second_worker(one), Barrier(2)
    items = [row[0] for row in one.table("select id from items")]

    def decide(rater: Rater) -> list[int]:
        found = []
        for item in items:
            start.wait(30)
            path = f"/api/decisions/{one.site.task}/votes"
            found.append(rater.post(path, rater.body(item, "good")).status_code)
        return found

    with ThreadPoolExecutor(2) as pool:
        statuses = list(pool.map(decide, [one.client("eve"), two.client("boss")]))
    assert [sorted(both) for both in zip(*statuses, strict=True)] == [[200, 409]] * len(items)
    assert "deadlock" not in (server.folder / "log").read_text()
    assert one.table("select count(*) from ratings where decision") == [(len(items),)]
    for app in (one, two):
        app.site.database.close()


def test_the_database_goes_down_in_mid_session(tmp_path: Path, server: Server, url: str):
    app = RatingApp(make_study(tmp_path), TaskOptions(attention_share=0.0), url, busy_timeout_s=2.0)
    ann = app.client()
    item = items_of(ann.pages()[0])[0]
    body = ann.body(item)
    server.stop()
    down = ann.post("/api/votes", body)
    assert (down.status_code, down.json()["error"]["retry"]) == (503, True)
    assert "kept in your browser" in down.json()["error"]["message"]
    assert ann.http.get("/").status_code == 503
    server.start()
    assert ann.post("/api/votes", body).status_code == 200
    assert [r.id for r in app.study.feedback.ratings()] == [body["id"]]
    app.site.database.close()


def test_the_page_keeps_votes_while_the_database_is_down(tmp_path: Path, server: Server, url: str):
    options = TaskOptions(attention_share=0.0)
    study = make_study(tmp_path, per_prompt=5)
    app = RatingApp(study, options, url, WallClock(), busy_timeout_s=2.0)  # type: ignore[arg-type]
    with running(app.asgi) as address, chromium() as browser:
        watched = Watched(browser)
        page = watched.open(Served(app, address).link)
        ready(page)
        expected: dict[str, str] = {}
        rate(page, watched, ["good"], expected)
        saved(page)
        server.stop()
        rate(page, watched, ["bad", "skip"], expected)
        page.wait_for_selector('#saved[data-state="unavailable"]')
        assert page.inner_text("#saved").startswith("2 waiting: the server cannot store votes now")
        server.start()
        page.click("#saved-retry")
        saved(page)
        assert Served(app, address).live() == expected
        watched.context.close()
        assert watched.errors == []
    app.site.database.close()


def test_workers_of_the_command(tmp_path: Path, url: str):
    study = make_study(tmp_path)
    study.use_database(url)
    with study.feedback.database.write() as db:
        link = people.add(db, "ann", "rater")
    with served(study.path, "--workers", 2, "--attention-share", 0) as running:
        browser = running.browser()
        browser.get(f"/in/{link}")
        token = browser.get("/api/session").json()["csrf"]
        response = browser.post("/api/next", json={"n": 10}, headers={"X-CSRF-Token": token})
        assert len(response.json()["pages"]) == 10
