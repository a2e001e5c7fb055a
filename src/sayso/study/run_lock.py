"""One process at a time works on a run; the operating system frees the lock of one that ended."""

import os
import socket
from pathlib import Path

from filelock import FileLock, Timeout

from sayso.base.errors import UserError

NAME = ".lock"
"""The lock's file in the run folder; it stays there and says who held it last."""


def lock(folder: Path, *, is_run: bool = True) -> FileLock:
    """Take the lock of a folder; it is held until it is released or this process ends.

    Within one process the lock may be taken again.

    Args:
        folder: of a run, or of something else that one process at a time works on.
        is_run: which of both, for what is said.
    Raises: UserError: if another process holds it; that process is named.
    """
    path = folder.resolve() / NAME
    found = FileLock(path, blocking=False, thread_local=False, is_singleton=True)
    try:
        found.acquire()
    except Timeout:
        name, other = (f"runs/{folder.name}", "--name") if is_run else (folder, "folder")
        raise UserError(
            f"{name} is in use by {_holder(path)}; wait until it ends, or choose another {other}"
        ) from None
    path.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
    return found


def _holder(path: Path) -> str:
    return path.read_text(encoding="utf-8") or "another process"
