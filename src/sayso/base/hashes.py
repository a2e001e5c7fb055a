"""Digests of files and model folders; a big file is read once and remembered until it changes."""

import contextlib
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path

from sayso.base import files
from sayso.base.types import digest

REMEMBERED_FROM_BYTES = 1 << 24
"""Smaller files are read each time, which takes less than a twentieth of a second."""
SETTLED_NS = 2_000_000_000
"""A file that changed less than this before it was read could change again unseen: within one tick
of the file system's clock."""
PARTS = (".json", ".txt", ".safetensors")
"""Endings of the files of a model folder that decide what it computes."""

MADE_OF = "sayso.json"
"""In a model's folder that sayso wrote: what it was made of, files and digests."""


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex digits.

    That of a big file is remembered in the user's cache folder under path, size, inode and the
    times of its last change, so that a model of many gigabytes is read once.

    Raises: OSError: if it cannot be read.
    """
    if path.stat().st_size < REMEMBERED_FROM_BYTES:
        return files.sha256(path)
    key, known = _state(path), _remembered()
    found = known.get(str(path.resolve()), {})
    if found.get("state") == key:
        return found["sha256"]
    started = time.time_ns()
    value = files.sha256(path)
    if _state(path) == key and started - max(key[2:]) > SETTLED_NS:
        _remember(path, {"state": key, "sha256": value})
    return value


def _state(path: Path) -> list[int]:
    # ctime cannot be set back as mtime can, by cp -p or rsync
    stat = path.stat()
    return [stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns]


def user_cache() -> Path:
    """The folder of what the user's studies share and can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sayso"


def _memory() -> Path:
    return user_cache() / "file-hashes.json"


def _remembered() -> dict[str, files.JsonObject]:
    try:
        return json.loads(_memory().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _remember(path: Path, entry: files.JsonObject) -> None:
    known = {name: row for name, row in _remembered().items() if Path(name).exists()}
    # without a place to remember it, the file is read again next time
    with contextlib.suppress(OSError):
        files.write_json(_memory(), {**known, str(path.resolve()): entry})


def folder_digest(folder: Path) -> str:
    """A hash of the files of a model folder that decide what it computes: weights, configs, words.

    Of a folder in diffusers' layout these are the files of the parts that model_index.json names.
    Where weights lie there in several variants (`fp16`, `non_ema`) beside the plain ones, the plain
    ones count, as in loading. Names and contents count, places and dates do not.
    """
    index = folder / "model_index.json"
    if not index.is_file():
        return digest(_rows(folder, _parts(folder)))
    rows = files.read_json(index)
    named = [k for k, v in rows.items() if isinstance(v, list) and any(v)]
    return digest(_rows(folder, [index, *(p for name in named for p in _parts(folder / name))]))


def _parts(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    found = sorted(p for p in folder.iterdir() if p.suffix in PARTS and p.is_file())
    plain = [p for p in found if not _is_variant(p)]
    return plain if any(p.suffix == ".safetensors" for p in plain) else found


def _is_variant(path: Path) -> bool:
    """Whether the file is `name.<variant>.safetensors` or the index of such shards."""
    stem = path.name.removesuffix(".index.json").removesuffix(".safetensors")
    return ".safetensors" in path.name and "." in stem


def weights_digest(folder: Path) -> str:
    """`folder_digest` of the files below `folder`, for what a run wrote."""
    return digest(_rows(folder, (p for p in folder.rglob("*") if p.suffix in PARTS)))


def files_digest(folder: Path, patterns: Iterable[str] = ("*",)) -> str:
    """A hash of all files below `folder` but its README.md, chat templates and the like too.

    Args:
        patterns: of the files' names; those that match none do not count.
    """
    there = (p for p in folder.rglob("*") if p.is_file() and p.name != "README.md")
    wanted = list(patterns)
    return digest(_rows(folder, (p for p in there if any(p.match(one) for one in wanted))))


def _rows(folder: Path, paths: Iterable[Path]) -> list[list[str]]:
    return [[p.relative_to(folder).as_posix(), file_digest(p)] for p in sorted(paths)]


def weight_hashes(folder: Path) -> dict[str, str]:
    """File name within the folder → SHA-256, for the weights, as env.json records them."""
    return dict(_rows(folder, folder.rglob("*.safetensors")))
