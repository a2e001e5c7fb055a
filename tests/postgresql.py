"""A PostgreSQL server of our own, on a free port, stopped after the test."""

import os
import pwd
import shutil
import socket
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

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


class Server:
    """A server whose data lie in a folder of their own."""

    def __init__(self) -> None:
        self.folder, self.port = Path("/tmp") / f"sayso-pg-{uuid.uuid4().hex[:8]}", free_port()
        owner = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
        as_owner = ["setpriv", f"--reuid={owner}", f"--regid={owner}", "--clear-groups"]
        self._prefix = as_owner if os.geteuid() == 0 else []
        program("initdb")
        self.folder.mkdir(mode=0o700)
        shutil.chown(self.folder, owner)
        self._run(program("initdb"), "-D", self._data, "-A", "trust", "-U", "sayso", "-E", "UTF8")

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://sayso@127.0.0.1:{self.port}/postgres"

    @property
    def _data(self) -> str:
        return str(self.folder / "data")

    def _run(self, *command: str) -> None:
        subprocess.run([*self._prefix, *command], check=True, capture_output=True, cwd="/")

    def start(self) -> None:
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1"
        log = str(self.folder / "log")
        self._run(program("pg_ctl"), "-D", self._data, "-w", "-l", log, "-o", options, "start")

    def stop(self) -> None:
        self._run(program("pg_ctl"), "-D", self._data, "-m", "immediate", "stop")


@contextmanager
def running_server() -> Iterator[str]:
    """URL of a server of our own."""
    server = Server()
    server.start()
    try:
        yield server.url
    finally:
        server.stop()
        shutil.rmtree(server.folder)
