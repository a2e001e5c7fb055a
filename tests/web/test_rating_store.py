"""What is wrong with the store while people rate: a clear response, and nothing lost."""

import gc
import shutil
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from disks import small_disk
from rating_studies import Rater, RatingApp, items_of, make_study
from sqlalchemy import event
from test_rating_bad_input import PLAIN, app, error

from sayso.base.errors import UserError
from sayso.feedback.database import Database
from sayso.web.filesystems import kind_of, refuse_network
from sayso.web.serving import Listening, check, prepare
from sayso.web.work.opening import open_task

__all__ = ["app"]


def waiting_together(raters: list[Rater]) -> list[float]:
    """Everyone asks for work, a little after each other, in vain: how long it takes, in seconds."""

    def ask(rater: Rater) -> float:
        began = time.monotonic()
        assert error(rater.post("/api/next", {})) == (503, "store_unavailable", True)
        return time.monotonic() - began

    with ThreadPoolExecutor(len(raters)) as pool:
        asked = []
        for rater in raters:
            asked.append(pool.submit(ask, rater))
            time.sleep(0.8)
        return [one.result() for one in asked]


@pytest.fixture
def limits(app: RatingApp) -> Iterator[list[str]]:
    """Commands that every new connection runs first."""
    commands: list[str] = []

    def restrict(connection: sqlite3.Connection, _record: object) -> None:
        for command in commands:
            connection.execute(command)

    event.listen(app.site.database.engine, "connect", restrict)
    yield commands
    commands.clear()


@pytest.mark.parametrize("command", ["PRAGMA max_page_count=1", "PRAGMA query_only=ON"])
def test_full_disk_and_read_only_store(app: RatingApp, limits: list[str], command: str):
    """A full disk: SQLite may take no page more, so sooner or later a vote does not fit."""
    ann = app.client()
    item = items_of(ann.pages()[0])[0]
    limits.append(command)
    app.site.database.close()
    stored, refused = vote_until_refused(ann, item)
    limits.clear()
    app.site.database.close()
    assert ann.post("/api/votes", refused).status_code == 200
    ids = [*stored, refused["id"]]
    assert app.table("select id from ratings order by seq") == [(vote,) for vote in ids]


def vote_until_refused(rater: Rater, item: str) -> tuple[list[str], dict[str, Any]]:
    """Answer and take back again and again: the ids that were stored, and the vote that was not."""
    stored: list[str] = []
    for i in range(2000):
        value = "retracted" if i % 2 else "bad"
        body = rater.body(item, value, supersedes=stored[-1] if stored else None, reason="x" * 200)
        response = rater.post("/api/votes", body)
        if response.status_code != 200:
            assert error(response) == (503, "store_unavailable", True)
            return stored, body
        stored.append(body["id"])
    raise AssertionError("the disk never gets full")


def fill(path: Path) -> None:
    """Write until nothing fits any more."""
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(512))


def test_a_disk_that_gets_full_in_mid_session(tmp_path: Path):
    with small_disk(tmp_path / "disk", "2m") as disk:
        app = RatingApp(make_study(disk), busy_timeout_s=0.5)
        ann = app.client()
        item = items_of(ann.pages()[0])[0]
        ballast = disk / "ballast"
        with pytest.raises(OSError, match="No space"):
            fill(ballast)
        stored, refused = vote_until_refused(ann, item)
        assert ann.session()["rater"]["name"] == "ann"  # reading goes on
        ballast.unlink()
        assert ann.post("/api/votes", refused).status_code == 200
        ids = [*stored, refused["id"]]
        assert app.table("select id from ratings order by seq") == [(vote,) for vote in ids]
        assert app.table("pragma integrity_check") == [("ok",)]
        app.site.database.close()


def test_database_locked_by_another_program(app: RatingApp):
    ann = app.client()
    item = items_of(ann.pages()[0])[0]
    body = ann.body(item)
    with closing(sqlite3.connect(app.study.path / "feedback.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert error(ann.post("/api/votes", body)) == (503, "store_unavailable", True)
        assert ann.session()["rater"]["name"] == "ann"  # reading goes on
        other.execute("ROLLBACK")
    assert ann.post("/api/votes", body).status_code == 200
    assert len(app.study.feedback.ratings()) == 1


def test_two_waits_are_no_longer_than_one(tmp_path: Path):
    """One request waits for the other program, the next for the first and then for the program."""
    app = RatingApp(make_study(tmp_path), names=("ann", "bob"), busy_timeout_s=1.5)
    ann, bob = app.client(), app.client("bob")
    with closing(sqlite3.connect(app.study.path / "feedback.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        waits = waiting_together([ann, bob])
        other.execute("ROLLBACK")
    assert max(waits) < 2.1
    assert ann.work() == 12
    [[left_ms]] = app.table("PRAGMA busy_timeout")
    assert left_ms == 1500


def test_database_of_a_newer_version(app: RatingApp):
    with closing(sqlite3.connect(app.study.path / "feedback.db")) as db, db:
        db.execute("update schema_version set version = 99")
    with pytest.raises(UserError, match=r"format 99.*upgrade sayso"):
        prepare(app.study, "", PLAIN)


def test_a_database_file_that_is_gone_takes_no_votes(app: RatingApp):
    ann = app.client()
    item = items_of(ann.pages()[0])[0]
    assert ann.http.get("/healthz").status_code == 200
    away = app.study.path / "away"
    away.mkdir()
    for file in app.study.path.glob("feedback.db*"):
        file.rename(away / file.name)
    assert ann.http.get("/healthz").status_code == 503
    body = ann.body(item)
    assert error(ann.post("/api/votes", body)) == (503, "store_unavailable", True)
    for file in away.iterdir():  # a copy: connections to the old file are of no use
        shutil.copy(file, app.study.path / file.name)
    assert ann.http.get("/healthz").status_code == 200
    assert ann.post("/api/votes", body).status_code == 200
    with closing(sqlite3.connect(app.study.path / "feedback.db")) as db:
        assert db.execute("select id from ratings").fetchall() == [(body["id"],)]


def test_several_workers_need_postgresql(app: RatingApp):
    with pytest.raises(UserError, match="--workers 2 is not possible with SQLite"):
        check(False, app.site.database, Listening(workers=2))


def test_network_drives_are_refused(tmp_path: Path):
    mounts = (
        "21 1 8:1 / / rw - ext4 /dev/sda rw\n"
        "22 21 0:40 / /home/shared\\040disk rw shared:1 - nfs4 server:/x rw\n"
        "23 22 0:41 / /home/shared\\040disk/local rw - xfs /dev/sdb rw\n"
    )
    for folder, kind in (("/home", "ext4"), ("/home/shared disk", "nfs4")):
        assert kind_of(Path(folder) / "study/feedback.db", mounts) == kind
    assert kind_of(Path("/home/shared disk/local/f.db"), mounts) == "xfs"
    with pytest.raises(UserError, match=r"network drive \(nfs4\)"):
        refuse_network(Path("/home/shared disk/study/feedback.db"), mounts)
    refuse_network(tmp_path / "feedback.db")


def test_collections_stay_as_the_caller_set_them(app: RatingApp):
    """Opening a task sets them aside for a while."""
    for enabled in (True, False):
        (gc.enable if enabled else gc.disable)()
        try:
            (app.study.path / "samples.jsonl").touch()
            open_task(app.site.database, app.study, PLAIN)
            assert gc.isenabled() is enabled
        finally:
            gc.enable()


def test_votes_stay_in_one_database(tmp_path: Path):
    study = make_study(tmp_path)
    RatingApp(study).client().work(most=1)
    with pytest.raises(UserError, match="the votes of a study stay in one database"):
        study.use_database("postgresql://me@127.0.0.1:1/x")
    assert Database(study.feedback.database.url).absent is False
