"""The vote store on a real PostgreSQL server, started for the test on a free port and stopped."""

import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sayso.errors import UserError
from sayso.feedback import Feedback
from sayso.types import Rating

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


def program(name: str) -> str:
    found = shutil.which(name) or next(
        (str(folder / name) for folder in reversed(BINARIES) if (folder / name).exists()), None
    )
    if found is None:
        pytest.skip(f"PostgreSQL's {name} is not installed")
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a server of our own."""
    folder, port = Path("/tmp") / f"sayso-pg-{os.getpid()}", free_port()
    owner = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    as_owner = ["setpriv", f"--reuid={owner}", f"--regid={owner}", "--clear-groups"]
    prefix = as_owner if os.geteuid() == 0 else []
    folder.mkdir(mode=0o700)
    shutil.chown(folder, owner)

    def run(*command: str) -> None:
        subprocess.run([*prefix, *command], check=True, capture_output=True, cwd="/")

    data = str(folder / "data")
    run(program("initdb"), "-D", data, "-A", "trust", "-U", "sayso", "-E", "UTF8")
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1"
    run(program("pg_ctl"), "-D", data, "-w", "-l", str(folder / "log"), "-o", options, "start")
    try:
        yield f"postgresql+psycopg://sayso@127.0.0.1:{port}/postgres"
    finally:
        run(program("pg_ctl"), "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(folder)


def vote(number: int) -> Rating:
    return Rating(f"id-{number}", f"s{number}", "ann", "alignment", "good", False, 1.0, 2.0)


def test_stored_once_and_superseded(server: str) -> None:
    store = Feedback(server)
    votes = [vote(i) for i in range(5)]
    assert store.add_ratings(votes) == 5
    assert store.add_ratings(votes) == 0
    changed = replace(votes[0], id="id-9", value="bad", supersedes="id-0")
    assert store.add_ratings([changed]) == 1
    live = {rating.sample_id: rating.value for rating in Feedback(server).ratings()}
    assert live == {"s0": "bad", **{f"s{i}": "good" for i in range(1, 5)}}


def test_all_votes_are_read_in_chunks(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sayso.feedback._STREAM_CHUNK", 2)
    store = Feedback(server)
    votes = [replace(vote(i), rater="streamed") for i in range(30, 35)]
    votes = [replace(v, id=f"stream-{v.id}", sample_id=f"stream-{v.sample_id}") for v in votes]
    later = replace(votes[0], id="stream-later", value="bad", supersedes=votes[0].id)
    store.add_ratings([*votes, later])
    mine = [(v, live) for v, live in store.stream(simulated=False) if v.rater == "streamed"]
    assert mine == [(v, v is not votes[0]) for v in [*votes, later]]


def test_same_id_other_body_is_refused(server: str) -> None:
    store = Feedback(server)
    store.add_ratings([vote(20)])
    with pytest.raises(UserError, match="id-20"):
        store.add_ratings([replace(vote(20), value="bad")])
