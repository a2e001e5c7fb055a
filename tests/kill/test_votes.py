"""Twenty raters vote while the server is killed with SIGKILL again and again: no vote is lost.

`make test-kill` kills it a thousand times on SQLite and two hundred times on PostgreSQL; the
everyday suite 30 and 6 times. The processes are forked from one that has imported everything, so
that most of the time goes into voting.
"""

import http.client
import json
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from postgresql import running_server
from sqlalchemy import text

from sayso.base.types import Prompt, Sample, Sampler, Size, digest
from sayso.feedback.database import Database
from sayso.study.info import StudyInfo
from sayso.study.study import Study
from sayso.web import sessions
from sayso.web.work import people

RATERS = 20
OVERLAP = 3
LEAST_IMAGES, IMAGES_A_KILL = 4000, 30  # work for longer than the kills last
FORKS = """
import os, shlex, signal, sys
import uvicorn.protocols.http.h11_impl, uvicorn.lifespan.on, uvicorn.loops.auto
import sayso.cli, sayso.cli.options, sayso.stages.rate, sayso.web.serving, sayso.feedback.migrations
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        sayso.cli.commands.main(shlex.split(line))
        os._exit(0)
    print(child, flush=True)
"""


@dataclass
class Servers:
    """Starts the server again and again; each is a process of its own that may be killed."""

    study: Path
    port: int
    forks: subprocess.Popen[str]
    pid: int = 0

    def start(self) -> None:
        assert self.forks.stdin is not None
        assert self.forks.stdout is not None
        line = f"rate {self.study} --overlap {OVERLAP} --attention-share 0 --port {self.port}"
        self.forks.stdin.write(f"{line} --no-browser\n")
        self.forks.stdin.flush()
        self.pid = int(self.forks.stdout.readline())
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            os.kill(self.pid, 0)  # raises if it has ended
            time.sleep(0.005)
        raise AssertionError("the server does not listen")

    def kill(self) -> None:
        """Kill the server, and wait until it is gone: until then it holds the port."""
        with suppress(ProcessLookupError):
            while True:
                os.kill(self.pid, signal.SIGKILL)
                time.sleep(0.001)


@dataclass
class Voter(threading.Thread):
    """A browser: leases pages, votes, keeps what was not acknowledged and sends it again."""

    port: int
    cookie: str
    token: str
    stop: threading.Event
    acknowledged: dict[str, int] = field(default_factory=dict)
    outbox: deque[dict[str, Any]] = field(default_factory=deque)
    refused: list[str] = field(default_factory=list)
    leasing: bool = True

    def __post_init__(self) -> None:
        super().__init__(daemon=True)

    def __hash__(self) -> int:
        return id(self)

    def run(self) -> None:
        while not self.stop.is_set():
            try:
                with closing(
                    http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
                ) as line:
                    while not self.stop.is_set():
                        self.step(line)
            except (OSError, http.client.HTTPException):
                time.sleep(0.01)

    def step(self, line: http.client.HTTPConnection) -> None:
        """Send the oldest response that waits, or fetch work when none does."""
        if not self.outbox and not self.leasing:
            time.sleep(0.01)
            return
        if not self.outbox:
            _, response = self.call(line, "/api/next", {"n": 5})
            items = [page["items"][0]["item_id"] for page in response.get("pages", [])]
            if not items:
                time.sleep(0.05)
            self.outbox.extend(map(vote, items))
            return
        body = self.outbox[0]
        status, response = self.call(line, "/api/votes", body)
        if status == 200:
            self.acknowledged[body["id"]] = status
        elif status != 503:
            self.refused.append(f"{status} {response}")
        if status != 503:
            self.outbox.popleft()

    def call(self, line: http.client.HTTPConnection, path: str, body: object) -> tuple[int, Any]:
        headers = {
            "Content-Type": "application/json", "Cookie": self.cookie, "X-CSRF-Token": self.token,
        }  # fmt: skip
        line.request("POST", path, json.dumps(body), headers)
        response = line.getresponse()
        return response.status, json.loads(response.read())


def vote(item: str) -> dict[str, Any]:
    now = time.time() * 1000
    return {
        "id": uuid.uuid4().hex, "item_id": item, "question": "alignment", "value": "good",
        "shown_at": now, "answered_at": now, "latency_ms": 1,
    }  # fmt: skip


def make_study(folder: Path, url: str, images: int) -> Study:
    """Many samples that share one picture; raters who sign in."""
    info = StudyInfo("kill", 1, sampler=Sampler(2, image_size=Size(16, 16)), feedback_url=url)
    study = Study.create(folder / "study", info)
    study.write_prompts([Prompt("p", "a dog", "count", {}, "train")])
    Image.new("RGB", (16, 16)).save(study.path / "one.png")
    rows = (
        asdict(Sample(digest(i), "p", "base", i, info.sampler, "one.png", ""))
        for i in range(images)
    )
    (study.path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with study.feedback.database.write() as db:
        for i in range(RATERS):
            people.add(db, f"rater-{i}", "rater")
    return study


def voters(study: Study, port: int, stop: threading.Event) -> list[Voter]:
    """The raters, signed in as their links would."""
    with study.feedback.database.read() as db:
        store = db.scalar(text("select id from store"))
        raters = list(db.scalars(text("select id from raters")))
    found = []
    for rater in raters:
        session = sessions.begin(rater)
        cookie = f"sayso-{store[:8]}={sessions.sign(study.secret(), session)}"
        token = sessions.form_token(study.secret(), session)
        found.append(Voter(port, cookie, token, stop))
    return found


def lease_together(study: Study) -> None:
    """Let everyone begin at the same page, so that all compete for the same places."""
    with Database(study.feedback.database.url).write() as db:
        db.execute(text(
            "insert into participants (task, rater, cursor, handed_out, seen_at) "
            "select tasks.id, raters.id, 0, 0, 0 from tasks, raters"
        ))  # fmt: skip


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest) -> Iterator[tuple[str, int]]:
    """Address of the database ("" for the study's own), and how often to kill."""
    kills = request.config.getoption("--vote-kills")
    if request.param == "sqlite":
        yield "", kills
    else:
        with running_server() as url:
            yield url, max(1, kills // 5)


def test_acknowledged_votes_survive_sigkill(store: tuple[str, int], tmp_path: Path) -> None:
    url, kills = store
    study = make_study(tmp_path, url, max(LEAST_IMAGES, IMAGES_A_KILL * kills))
    stop, rng = threading.Event(), random.Random(41)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    forks = subprocess.Popen(
        [sys.executable, "-c", FORKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    servers, began = Servers(study.path, port, forks), time.monotonic()
    crowd = voters(study, port, stop)
    try:
        servers.start()
        lease_together(study)
        for voter in crowd:
            voter.start()
        for kill in range(kills):
            wanted = sum(len(v.acknowledged) for v in crowd) + rng.randrange(1, 20)
            time.sleep(rng.uniform(0.0, 0.3))
            wait_for(lambda n=wanted: sum(len(v.acknowledged) for v in crowd) >= n)
            servers.kill()
            if url == "" and kill % 100 == 0:
                check_integrity(study)
            servers.start()
        for voter in crowd:
            voter.leasing = False
        wait_for(lambda: not any(v.outbox for v in crowd))
        stop.set()
        for voter in crowd:
            voter.join(60)
        check(study, crowd)
    finally:
        stop.set()
        servers.kill()
        forks.kill()
        forks.communicate()
    seconds = time.monotonic() - began
    n = sum(len(v.acknowledged) for v in crowd)
    print(f"{kills} kills, {n} acknowledged votes, each stored once, {seconds:.0f} s")


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing comes through any more"
        time.sleep(0.002)


def check(study: Study, crowd: list[Voter]) -> None:
    """Every acknowledged vote is there once, by its rater, and no place was given twice."""
    assert [v.refused for v in crowd] == [[]] * len(crowd)
    acknowledged = [key for voter in crowd for key in voter.acknowledged]
    assert len(acknowledged) == len(set(acknowledged)) > len(crowd)
    with Database(study.feedback.database.url).read() as db:
        stored = list(db.execute(text("select id, item_id, rater from ratings")))
        counted = db.scalar(text("select sum(votes) from items"))
        total = db.scalar(text("select votes from tasks"))
        beyond = db.scalar(text("select count(*) from items where votes > overlap"))
        full = db.scalar(text("select count(*) from items where votes = overlap"))
        wanted = db.scalar(text("select wanted from tasks"))
    assert set(acknowledged) <= {row[0] for row in stored}
    assert len(stored) == len({row[0] for row in stored}) == len({row[1:] for row in stored})
    assert counted == total == len(stored)
    assert beyond == 0 < full, "raters never competed for a place"
    assert total < wanted, "the work ran out, so the last kills met nobody at it"
    check_integrity(study)


def check_integrity(study: Study) -> None:
    file = study.feedback.database.file
    if file is not None:
        with closing(sqlite3.connect(file)) as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert db.execute("PRAGMA foreign_key_check").fetchall() == []
