"""An export for download: made by the command line beside the server, one at a time.

A process of its own keeps votes flowing while it works. What stands in the folder, and whether its
lock is held, is all there is to know, so every worker of the server says the same.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from sayso.base import files
from sayso.base.errors import UserError
from sayso.formats.exports import need_pyarrow
from sayso.study.study import Study

PATIENCE_S = 3.0
"""A small export is there when the page that asked for it comes back."""
CHUNK = 1 << 18
_NICE = 10
_GLANCE_S = 0.5
"""Longer than pages that look at the state hold the lock; who holds it for longer downloads."""


@dataclass(frozen=True, slots=True)
class Made:
    """The last export: what was asked for, and what became of it.

    Attributes:
        order: the options, `by` whom and `at` when, in seconds since the epoch.
        said: the last line of the command.
        manifest, sha256, bytes: of a finished one; the checksum is the manifest's, which has those
            of all other files.
    """

    state: Literal["running", "ready", "failed"]
    order: Mapping[str, Any]
    said: str = ""
    manifest: Mapping[str, Any] | None = None
    sha256: str = ""
    bytes: int = 0


class Downloads:
    """The folder in which a study's exports for download are made, one after the other."""

    def __init__(self, study: Study) -> None:
        self._study = study.path.resolve()
        self._folder = study.export_path(".download").resolve()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, options: Mapping[str, str], by: str, now: float) -> None:
        """Begin an export in place of the last one, and wait a little for its end.

        Args:
            options: of `sayso export` by their names in Python; `format` among them.
        Raises: UserError: if one is being made or downloaded, or the package for tables is missing.
        """
        need_pyarrow()
        with self._turn() as lock:
            self._clear()
            files.write_json(self._folder / "order.json", {**options, "by": by, "at": now})
            with (self._folder / "said.txt").open("wb") as said:
                # the lock is handed on, so that it is held just as long as the process runs
                self._process = subprocess.Popen(
                    self._command(options), stdin=subprocess.DEVNULL, stdout=said, stderr=said,
                    pass_fds=(lock.fileno(),),
                )  # fmt: skip
        with contextlib.suppress(ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, self._process.pid, _NICE)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE_S)

    def _command(self, options: Mapping[str, str]) -> list[str]:
        asked = [f"--{name.replace('_', '-')}={v}" for name, v in options.items() if v]
        command = [sys.executable, "-m", "sayso", "export", str(self._study)]
        return [*command, *asked, f"--out={self._folder / options['format']}"]

    def remove(self) -> None:
        """Delete the last export.

        Raises: UserError: if one is being made or downloaded.
        """
        with self._turn():
            self._clear()

    def last(self) -> Made | None:
        """The last export, which may still be in the making."""
        if not (self._folder / "order.json").exists():
            return None
        order = files.read_json(self._folder / "order.json")
        if self._is_held():
            return Made("running", order)
        return self._finished(order)

    def _finished(self, order: Mapping[str, Any]) -> Made:
        lines = (
            (self._folder / "said.txt").read_text(encoding="utf-8", errors="replace").split("\n")
        )
        said = next((line for line in reversed(lines) if line.strip()), "It was stopped.")
        folder = self._folder / order["format"]
        path = folder / "manifest.json"
        if not path.exists():
            return Made("failed", order, said.removeprefix("sayso: error: "))
        size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
        manifest = json.loads(path.read_text(encoding="utf-8"))
        return Made("ready", order, said, manifest, files.sha256(path), size)

    def archive(self) -> tuple[str, Iterator[bytes]] | None:
        """Layout and ZIP archive of the finished export, which stays until the archive is read."""
        if not (self._folder / "lock").exists():
            return None
        lock = (self._folder / "lock").open("rb")
        last = self.last() if _take(lock, shared=True) else None
        if last is None or last.state != "ready":
            lock.close()
            return None
        layout = str(last.order["format"])
        return layout, _while_held(lock, zipped(self._folder / layout))

    def _clear(self) -> None:
        for path in self._folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != "lock":
                path.unlink()

    @contextmanager
    def _turn(self) -> Iterator[IO[bytes]]:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "lock").open("wb") as lock:
            end = time.monotonic() + _GLANCE_S
            while not _take(lock):
                if self._is_held():
                    raise UserError("an export is being made already; wait until it is done")
                if time.monotonic() > end:
                    raise UserError("the export is being downloaded; wait until that is done")
                time.sleep(0.01)
            yield lock

    def _is_held(self) -> bool:
        """Whether an export is being made; who only reads holds the lock with others."""
        with (self._folder / "lock").open("wb") as lock:
            return not _take(lock, shared=True)


def _take(lock: IO[bytes], shared: bool = False) -> bool:
    """Take a lock that is given back when the file is closed, by whom it was handed to as well."""
    import fcntl  # absent on Windows, where the other pages shall work

    try:
        fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _while_held(lock: IO[bytes], parts: Iterator[bytes]) -> Iterator[bytes]:
    """The parts; the lock is given back after the last, or when nobody wants more."""
    with lock:
        yield from parts


class _Sink:
    """What a ZIP archive is written to: it forgets what was taken, so it cannot go back."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, part: bytes) -> int:
        self._parts.append(bytes(part))
        return len(part)

    def flush(self) -> None:
        pass

    def take(self) -> bytes:
        taken = b"".join(self._parts)
        self._parts.clear()
        return taken


def zipped(folder: Path) -> Iterator[bytes]:
    """The files of a folder as a ZIP archive, a chunk at a time; nothing is compressed again."""
    sink = _Sink()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:  # type: ignore[arg-type]
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            name = f"{folder.name}/{path.relative_to(folder)}"
            info = zipfile.ZipInfo.from_file(path, name, strict_timestamps=False)
            with path.open("rb") as source, archive.open(info, "w") as entry:
                while part := source.read(CHUNK):
                    entry.write(part)
                    yield sink.take()
    yield sink.take()
