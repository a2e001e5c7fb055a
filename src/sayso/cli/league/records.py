"""What became of each cell of each seed: a file each, so that a league goes on where it stopped."""

import json
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from sayso.base import files
from sayso.base.errors import UserError
from sayso.base.files import JsonObject
from sayso.cli.league.cells import Cell
from sayso.cli.league.config import Size

State = Literal["finished", "failed", "left out"]
OUTDATED = "its options, or what it learned from, are others now; run it again"


@dataclass(frozen=True)
class Record:
    """The outcome of a cell of one seed.

    Args:
        cell, seed: which.
        identity: of everything the outcome hangs on; another one means that it is of something
            else.
        state: finished, failed (while it ran), or left out (this version cannot run it).
        reason: why, in one line, if not finished.
        facts: what is known: trials, steps, network evaluations, seconds, distances …
        scores: a row for each test image.
        votes: a row for each prompt and question of the blind comparison with the base.
        settings: those of the cell; empty = of a version that did not keep them.
    """

    cell: str
    seed: int
    identity: str
    state: State
    reason: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    scores: Sequence[JsonObject] = ()
    votes: Sequence[JsonObject] = ()
    settings: str = ""

    @property
    def finished(self) -> bool:
        return self.state == "finished"


class Records:
    """The files of a league's cells: `cells/<slug>/seed-<n>/`; the outcome is written last."""

    def __init__(self, folder: Path, size: Size) -> None:
        self._folder, self._size = folder, size

    def read(self, slug: str, seed: int, *, rows: bool = True) -> Record | None:
        """The outcome of a cell; None if there is none yet.

        Args:
            rows: whether to read its scores and votes too.
        """
        path = self._path(slug, seed)
        if not (path / "outcome.json").exists():
            return None
        outcome = files.read_json(path / "outcome.json")
        for name in ("scores", "votes") if rows else ():
            outcome[name] = files.read_lines(path / f"{name}.jsonl")
        return Record(**outcome)

    def current(self, cell: Cell, seed: int, *, rows: bool = False) -> Record | None:
        """As `read`; an outcome of other settings than the cell has now is left out."""
        known = self.read(cell.slug, seed, rows=rows)
        if known is None or known.settings == cell.settings(self._size):
            return known
        return replace(known, state="left out", reason=OUTDATED)

    def write(self, slug: str, record: Record) -> Record:
        path = self._path(slug, record.seed)
        path.mkdir(parents=True, exist_ok=True)
        (path / "outcome.json").unlink(missing_ok=True)
        for name, rows in (("scores", record.scores), ("votes", record.votes)):
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            files.write_bytes(path / f"{name}.jsonl", lines.encode())
        outcome = {k: v for k, v in vars(record).items() if k not in ("scores", "votes")}
        files.write_json(path / "outcome.json", outcome)
        return record

    def announce(self, cells: Sequence[Cell]) -> None:
        """Write down which cells there are now, in order, without the base."""
        rows = [
            {
                "name": c.name, "kind": c.kind, "about": c.about,
                "known_settings": c.settings(self._size), "follows": c.follows,
            }
            for c in cells
        ]  # fmt: skip
        files.write_json(self._folder / "line-up.json", {"cells": rows})

    def line_up(self) -> list[Cell]:
        """The cells that were announced last; none before that."""
        path = self._folder / "line-up.json"
        rows = files.read_json(path)["cells"] if path.exists() else []
        return [Cell(aligner="", options="", **row) for row in rows]

    def _path(self, slug: str, seed: int) -> Path:
        return self._folder / "cells" / slug / f"seed-{seed}"


def best_cells(
    records: Records, cells: Iterable[Cell], seeds: Sequence[int], most: int
) -> list[Cell]:
    """The `most` best cells by the mean held-out reward on validation prompts, over all seeds.

    A cell that is not finished for every seed, with the options it has now, is not among them.
    """
    found = []
    for cell in cells:
        of_seeds = [records.current(cell, seed) for seed in seeds]
        rewards = [r.facts["reward"] for r in of_seeds if r and r.finished]
        if len(rewards) == len(seeds):
            found.append((sum(rewards) / len(rewards), cell))
    ranked = sorted(found, key=lambda pair: -pair[0])
    return [cell for _, cell in ranked[:most]]


def why_failed(error: Exception) -> str:
    """One line for the record; a bug's is followed by where it happened.

    Raises: the error itself, if it is the machine's and would meet every cell: a full disk, a
        missing permission.
    """
    from sayso.base.devices import OUT_OF_MEMORY, is_out_of_memory

    if is_out_of_memory(error):
        return OUT_OF_MEMORY
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    if isinstance(error, OSError):
        raise error
    frame = traceback.extract_tb(error.__traceback__)[-1]
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said} ({Path(frame.filename).name}, line {frame.lineno})"
