"""Records of samples: samples.jsonl, and a file for each of several processes that draw at once.

A process of a launch appends to `samples/<run>/<process>.jsonl`, so that no two write one file.
When all is drawn the main process moves the records to samples.jsonl, in the order of the plan.
Until then, and after a process was lost, readers take both together.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from sayso.base import files
from sayso.base.errors import UserError
from sayso.base.files import JsonObject

FILE, FOLDER = "samples.jsonl", "samples"


def writers_file(study: Path, run: str, process: int) -> Path:
    """Where a process of a launch keeps its records.

    Args:
        run: the folder's name of the run that the launch works on, one launch at a time.
        process: its number in the launch, from 0.
    """
    return study / FOLDER / run / f"{process}.jsonl"


def record_files(study: Path) -> list[Path]:
    """The files that hold records now."""
    return [path for path in (study / FILE, *_of_writers(study)) if path.exists()]


def _of_writers(study: Path) -> list[Path]:
    return sorted((study / FOLDER).glob("*/*.jsonl"))


def read_records(study: Path) -> Iterator[tuple[str, JsonObject]]:
    """Every record once, and where it stands, for error messages; those of samples.jsonl first.

    Raises: UserError: naming the line, if a record has the id of another one.
    """
    # writers' files first: what is moved meanwhile is found in samples.jsonl
    paths = _of_writers(study)
    found = {path: files.read_lines(path) for path in (*paths, study / FILE)}
    yield from each_once(
        "sample",
        (
            (f"{path} line {number}", row)
            for path in (study / FILE, *paths)
            for number, row in enumerate(found[path], 1)
        ),
    )


def each_once(
    kind: str, rows: Iterable[tuple[str, JsonObject]]
) -> Iterator[tuple[str, JsonObject]]:
    """Rows with an id and where each stands; one that is written twice, as by two processes, once.

    Raises: UserError: naming the second of two that differ and have one id.
    """
    seen: dict[str, JsonObject] = {}
    for where, row in rows:
        name = str(row.get("id"))
        if name not in seen:
            seen[name] = row
            yield where, row
        elif row != seen[name]:
            raise UserError(f"{where} repeats {kind} {name} with other values; delete the line")


def gather(study: Path, run: str, places: Mapping[str, int]) -> None:
    """Move the records of a run's processes to samples.jsonl.

    Killed at any moment and repeated, it leaves each record once.

    Args:
        run: the run's folder name; nobody may be drawing for it.
        places: sample id → place in the plan, in whose order they are appended.
    """
    paths = sorted((study / FOLDER / run).glob("*.jsonl"))
    if not paths:
        return
    there = {row.get("id") for row in files.read_lines(study / FILE)}
    rows = {row["id"]: row for path in paths for row in files.read_lines(path)}
    new = [row for name, row in rows.items() if name not in there]
    if new:
        ordered = sorted(new, key=lambda row: places.get(row["id"], len(places)))
        files.append_lines(study / FILE, ordered)
    for path in paths:
        path.unlink()
    for folder in (paths[0].parent, study / FOLDER):
        with contextlib.suppress(OSError):  # another run's files are in it
            folder.rmdir()
