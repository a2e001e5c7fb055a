"""The real server in a process of its own."""

import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2 as httpx


@dataclass
class Served:
    """A running `sayso rate`."""

    study: Path
    port: int
    process: subprocess.Popen[str]
    said: str = ""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def browser(self) -> httpx.Client:
        return httpx.Client(base_url=self.address, follow_redirects=True, timeout=30)

    def wait(self, seconds: float = 60) -> None:
        """Until the server answers."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                if httpx.get(f"{self.address}/healthz", timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                assert self.process.poll() is None, self.process.communicate()
                time.sleep(0.02)
        raise AssertionError("the server does not answer")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(
    study: Path, *options: object, port: int = 0, files: tuple[int, int] | None = None
) -> Served:
    """Start the server and wait until it answers.

    Args:
        files: soft and hard limit on its open files; None is this process's own.
    """
    port = port or free_port()
    command = [
        sys.executable,
        "-m",
        "sayso",
        "rate",
        study,
        "--port",
        port,
        "--no-browser",
        *options,
    ]
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        preexec_fn=(lambda: resource.setrlimit(resource.RLIMIT_NOFILE, files)) if files else None,
    )  # fmt: skip
    server = Served(study, port, process)
    server.wait()
    assert process.stdout is not None
    # what it warns of, such as a task without checks, comes first
    server.said = next(line for line in process.stdout if line.startswith("Rating "))
    assert re.search(r"Rating .* at http://127\.0\.0\.1:", server.said)
    return server


@contextmanager
def served(study: Path, *options: object) -> Iterator[Served]:
    """A server that is stopped after the block."""
    server = start(study, *options)
    try:
        yield server
    finally:
        server.process.send_signal(signal.SIGTERM)
        server.process.communicate(timeout=30)
