"""Durable files: a file appears whole under its name or not at all; lines are appended whole."""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sayso.errors import UserError

JsonObject = dict[str, Any]


def write_bytes(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Put `content` at `path` atomically and durably (temporary name, fsync, rename).

    Args:
        mode: permissions of the file, before the umask.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb", opener=lambda p, flags: os.open(p, flags, mode)) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


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
        raise UserError(f"{path} is missing; restore it or make the study anew") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); restore or delete it") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object; restore or delete it")
    return value


def append_lines(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Append JSON lines in one durable write; on failure the file is cut back to what it was."""
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        before = file.tell()
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            os.truncate(path, before)
            raise


def read_lines(path: Path) -> list[JsonObject]:
    """Every JSON line of `path`, oldest first; an absent file has none.

    Raises: UserError: naming the line, if one is no JSON object.
    """
    if not path.exists():
        return []
    return [_parse_line(path, n, line) for n, line in enumerate(_text_lines(path), 1)]


def _text_lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        yield from (line for line in file if line.strip())


def _parse_line(path: Path, number: int, line: str) -> JsonObject:
    try:
        value = json.loads(line)
    except ValueError:
        value = None
    if not isinstance(value, dict) or not line.endswith("\n"):
        raise UserError(
            f"{path} line {number} is half written or not JSON; delete that line and repeat the "
            "command"
        )
    return value


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    if path.stat().st_mode & 0o077:
        raise UserError(f"{path} can be read by others; run: chmod 600 {path}")
    try:
        return bytes.fromhex(path.read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(f"{path} is damaged; delete it, and everyone signs in again") from None


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes `path` when the block ends well, replacing what was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        shutil.rmtree(path, ignore_errors=True)
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_temporaries(folder: Path) -> None:
    """Delete what an interrupted `new_folder` or `write_bytes` left in `folder`."""
    for leftover in folder.glob(".*.tmp"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def save_image(path: Path, save: Callable[[Path], None]) -> None:
    """Let `save` write to a temporary name, then give it its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        save(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
