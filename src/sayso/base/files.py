"""Durable files: a file appears whole under its name or not at all; lines are appended whole."""

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

from sayso.base.errors import UserError
from sayso.base.progress import console

JsonObject = dict[str, Any]
_ENDS = 1 << 16


@contextmanager
def new_file(path: Path, *, sync_name: bool = True) -> Iterator[Path]:
    """A temporary name that becomes the file `path` when the block ends well.

    Args:
        sync_name: whether to wait until the name is on the disk too; for many files of one folder
            it is quicker to call `sync_folder` once. The content always is before it has its name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        _sync_file(temporary)
        temporary.replace(path)
        if sync_name:
            sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Put `content` at `path` atomically and durably (temporary name, fsync, rename).

    Args:
        mode: permissions of the file, before the umask.
    """
    with new_file(path) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)


def write_json(path: Path, value: object) -> None:
    """`write_bytes` of indented JSON; NaN is refused (ValueError), for no reader agrees on it."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    write_bytes(path, (text + "\n").encode())


def read_json(path: Path) -> JsonObject:
    """The JSON object in `path`.

    Raises: UserError: if the file is missing, is no JSON or holds no object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; restore it or make the study again") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); restore or delete it") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object; restore or delete it")
    return value


def append_lines(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Append JSON lines durably; on failure the file is cut back to what it was.

    A last line without its end, which an append that was stopped left there, is cut off first, and
    the console says so: it was never told to be written.
    """
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    # unbuffered: closing a file must not write what a failed write left in its buffer
    with path.open("ab+", buffering=0) as file, _alone(file):
        before = _cut_torn_line(file, path)
        try:
            _write_all(file, content)
            os.fsync(file.fileno())
        except BaseException:
            file.truncate(before)
            raise
    if new:
        sync_folder(path.parent)


@contextmanager
def _alone(file: FileIO) -> Iterator[None]:
    """No other process appends meanwhile: cutting back must not cut another's lines."""
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows
        yield
        return
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


def _cut_torn_line(file: FileIO, path: Path) -> int:
    """Cut off a last line that has no end; the length of what is whole."""
    length = file.seek(0, os.SEEK_END)
    if not length:
        return 0
    file.seek(length - 1)
    if file.read(1) == b"\n":
        return length
    file.seek(0)
    whole = file.readall().rfind(b"\n") + 1
    file.truncate(whole)
    console.print(f"{path}: removed the last line, which was incomplete", soft_wrap=True)
    return whole


def _write_all(file: FileIO, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[file.write(left) or 0 :]


def read_lines(path: Path) -> list[JsonObject]:
    """Every JSON line of `path`, oldest first; an absent file has none.

    Of files that only `append_lines` writes. A last line without its end was never told to be
    written and does not count, which the console says.

    Raises: UserError: naming the line, if another one is no JSON object.
    """
    try:
        whole, end, torn = path.read_bytes().rpartition(b"\n")
    except FileNotFoundError:
        return []
    if torn:
        console.print(
            f"{path}: the last line is incomplete and is ignored; run the command that wrote it "
            "again",
            soft_wrap=True,
        )
    lines = (whole + end).split(b"\n")
    return [_parse_line(path, n, line) for n, line in enumerate(lines, 1) if line.strip()]


def _parse_line(path: Path, number: int, line: bytes) -> JsonObject:
    try:
        value = json.loads(line)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise UserError(
            f"{path} line {number} is damaged or not JSON; restore the file, or delete that line "
            "and run the command again"
        )
    return value


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(path: Path) -> str:
    """A hash of a file's length, first and last 64 KiB: quick, and tells a cut or emptied file."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        parts = [str(size).encode()]
        for start in (0, max(0, size - _ENDS)):
            file.seek(start)
            parts.append(file.read(_ENDS))
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def read_or_make_secret(path: Path) -> bytes:
    """32 random bytes that stay the same; the file is made with mode 0600.

    Raises: UserError: if others may read it or it is not whole.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    if not path.exists():
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):  # another process was faster
            os.link(temporary, path)
        temporary.unlink()
        sync_folder(path.parent)
    if path.stat().st_mode & 0o077:
        raise UserError(f"{path} can be read by others; run: chmod 600 {path}")
    try:
        return bytes.fromhex(path.read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(
            f"{path} is damaged; delete it (everyone then has to sign in again)"
        ) from None


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes `path` when the block ends well, replacing what was there.

    Its files are on the disk before it has its name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    replaced = path.with_name(f".{path.name}.{os.getpid()}.replaced.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        _sync_tree(temporary)
        if path.exists():
            path.replace(replaced)
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        sync_folder(path) if path.is_dir() else _sync_file(path)
    sync_folder(folder)


def _sync_file(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the names in `folder` are on the disk; where folders cannot be opened, do not."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems do not know it
            raise
    finally:
        os.close(descriptor)


def sync_names(paths: Iterable[Path]) -> None:
    """`sync_folder` of the folders that the files are in, and of those that these are in."""
    folders = {path.parent for path in paths}
    for folder in {*folders, *(folder.parent for folder in folders)}:
        sync_folder(folder)


def remove_temporaries(folder: Path) -> None:
    """Delete what an interrupted `new_folder` or `write_bytes` left in `folder`."""
    for leftover in folder.glob(".*.tmp"):
        _delete(leftover)


def remove_abandoned(paths: Iterable[Path]) -> None:
    """Delete what killed writers of these files or folders left; what running ones write stays."""
    names = dict[Path, set[str]]()
    for path in paths:
        names.setdefault(path.parent, set()).add(path.name)
    for folder, written in names.items():
        for leftover in folder.glob(".*.tmp"):
            name, _, pid = leftover.name[1:].removesuffix(".tmp").rpartition(".")
            if name in written and pid.isdigit() and not _runs(int(pid)):
                _delete(leftover)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
