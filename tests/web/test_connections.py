"""Connections that ask nothing, or too slowly, or are too many, keep nobody out."""

import logging
import re
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import uvicorn
from postgresql import running_server
from rating_studies import RatingApp, make_study
from served import start

from sayso.base.errors import UserError
from sayso.web import serving
from sayso.web.connections import Door, Limits
from sayso.web.serving import server_options

HALF = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n"


@contextmanager
def running(app: RatingApp, limits: Limits) -> Iterator[int]:
    config = uvicorn.Config(app.asgi, port=0, lifespan="off", **server_options(limits))
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join()


def is_closed(line: socket.socket, within_s: float) -> bool:
    line.settimeout(within_s)
    try:
        return line.recv(1) == b""
    except ConnectionError:
        return True
    except TimeoutError:
        return False


def test_half_open_connections_keep_nobody_out(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.WARNING, "sayso.web")
    app = RatingApp(make_study(tmp_path))
    with running(app, Limits(in_all=20, per_address=5, head_s=1.5)) as port:
        lines = [socket.create_connection(("127.0.0.1", port)) for _ in range(60)]
        for line in lines:
            line.sendall(HALF)
        asked = time.monotonic()
        for _ in range(3):
            assert httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=5).status_code == 200
        assert time.monotonic() - asked < 5
        assert sum(is_closed(line, 0.02) for line in lines[:40]) >= 40, "the oldest made room"
        assert all(is_closed(line, 10) for line in lines), "and those that ask nothing are ended"
        for line in lines:
            line.close()
    said = [r for r in caplog.records if "closed" in r.message]
    assert len(said) == 1


class Line:
    """A connection as the door sees it."""

    def __init__(self, busy: bool = False) -> None:
        self.is_idle, self.ended = not busy, False

    def end(self, _why: str) -> None:
        self.ended = True


def test_one_address_has_so_many_connections_and_no_more():
    door: Any = Door(Limits(in_all=100, per_address=3))
    mine = [Line(busy=True), Line(), Line()]
    others = [Line() for _ in range(3)]
    here = [Line() for _ in range(10)]
    for line in mine:
        door.enter(line, "203.0.113.7")
    for line in others:
        door.enter(line, "203.0.113.8")
    for line in here:
        door.enter(line, "127.0.0.1")
    assert not any(line.ended for line in [*mine, *others, *here])
    fourth = Line()
    door.enter(fourth, "203.0.113.7")
    assert [line.ended for line in [*mine, fourth]] == [False, True, False, False]
    door.leave(mine[1])
    door.leave(mine[2])
    door.enter(Line(), "203.0.113.7")
    assert not any(line.ended for line in [mine[0], mine[2], fourth, *others, *here])


def test_whose_requests_are_all_at_work_gets_no_more_of_them():
    door: Any = Door(Limits(in_all=100, per_address=2))
    for line in (Line(busy=True), Line(busy=True)):
        door.enter(line, "203.0.113.7")
    new, other = Line(), Line()
    door.enter(new, "203.0.113.7")
    door.enter(other, "203.0.113.8")
    assert new.ended
    assert not other.ended


def test_1100_half_open_connections_with_1024_files(tmp_path: Path):
    """The file limit is raised to 1024, a rater works meanwhile, and the log has one line."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    lines: list[socket.socket] = []
    server = start(make_study(tmp_path).path, files=(256, 1024))
    try:
        for _ in range(1100):
            lines.append(socket.create_connection(("127.0.0.1", server.port), timeout=10))
            lines[-1].sendall(HALF)
        asked = time.monotonic()
        with server.browser() as browser:
            browser.get("/").raise_for_status()
            token = {"X-CSRF-Token": browser.get("/api/session").json()["csrf"]}
            response = browser.post("/api/next", json={"have": [], "n": 1}, headers=token)
            assert len(response.json()["pages"]) == 1
        assert time.monotonic() - asked < 5
        assert sum(not is_closed(line, 0.001) for line in lines) > 300, "the limit was raised"
    finally:
        server.process.terminate()
        said, _ = server.process.communicate(timeout=30)
        for line in lines:
            line.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(said.splitlines()) == 1, said
    assert re.search("closed [0-9]+ connections", said)


def _response(line: socket.socket) -> bytes:
    """A whole response of /healthz; head and body may come apart."""
    received = b""
    while not received.endswith(b"}"):
        received += line.recv(4000)
    return received


def test_a_request_that_never_ends_is_ended(tmp_path: Path):
    app = RatingApp(make_study(tmp_path))
    with running(app, Limits(in_all=20, per_address=5, head_s=0.5, body_s=0.5)) as port:
        body = b"POST /sign-in HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\nab"
        for sent in (HALF, body, b""):
            with socket.create_connection(("127.0.0.1", port)) as line:
                line.sendall(sent)
                assert is_closed(line, 10), sent
        with socket.create_connection(("127.0.0.1", port)) as line:  # one that has asked before
            line.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert _response(line).startswith(b"HTTP/1.1 200")
            time.sleep(1)
            line.sendall(HALF + b"\r\n")
            assert line.recv(4000).startswith(b"HTTP/1.1 200"), "waiting between two is no fault"
            while not line.recv(100_000).endswith(b"</html>"):
                pass
            line.sendall(HALF)
            assert is_closed(line, 10)


def test_the_limit_on_files_is_raised_as_far_as_allowed():
    code = (
        "import resource as r; from sayso.web.connections import limits_of_this_machine as f; "
        "hard = r.getrlimit(r.RLIMIT_NOFILE)[1]; r.setrlimit(r.RLIMIT_NOFILE, (300, hard)); "
        "limits = f(); print(r.getrlimit(r.RLIMIT_NOFILE)[0] == hard, limits.in_all < hard)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] > 300
    assert done.stdout.split() == ["True", "True"]


def test_workers_end_with_a_killed_parent(tmp_path: Path):
    with running_server() as url:
        server = start(make_study(tmp_path).path, "--db", url, "--workers", 2)
        server.process.kill()
        server.process.wait()
        assert server.process.stdout is not None
        server.process.stdout.close()
        end = time.monotonic() + 60
        while not serving._is_free("127.0.0.1", server.port):
            assert time.monotonic() < end, "a worker still holds the port"
            time.sleep(0.1)


def test_who_starts_second_on_a_port_reads_one_line():
    with socket.create_server(("127.0.0.1", 0)) as first:
        port = first.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} is in use; choose another with --port"):
            serving._listener("127.0.0.1", port)
