"""What an import found: counted, told, and what is wrong with it in a sentence."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sayso.base.types import SPLITS, Split

if TYPE_CHECKING:
    from sayso.formats.imports import Entry

SHOWN, SHOWN_TABLES = 3, 12
"""Damaged rows and tables that a message names."""


@dataclass
class Tally:
    """What was found in tables; `images` has each image's prompt, `votes` the number per prompt."""

    prompts: dict[str, Split] = field(default_factory=dict[str, Split])
    images: dict[str, str] = field(default_factory=dict[str, str])
    votes: Counter[str] = field(default_factory=Counter[str])
    ratings: int = 0
    comparisons: int = 0
    rows: Counter[Path] = field(default_factory=Counter[Path])
    left_out: Counter[str] = field(default_factory=Counter[str])
    damaged: list[str] = field(default_factory=list[str])

    def add(self, entry: "Entry", file: Path) -> None:
        """Count what one row becomes."""
        self.rows[file] += 1
        self.prompts |= {p.id: p.split for p in entry.prompts}
        self.images |= {p.sample.id: p.sample.prompt_id for p in entry.pictures}
        about = [self.images.get(r.sample_id, "") for r in entry.ratings]
        about += [c.prompt_id for c in entry.comparisons]
        self.votes.update(about)
        self.ratings += len(entry.ratings)
        self.comparisons += len(entry.comparisons)
        if entry.damaged:
            self.damaged.append(entry.damaged)
        if entry.left_out or entry.damaged:
            self.left_out[entry.left_out or "damaged rows"] += 1

    @property
    def facts(self) -> dict[str, object]:
        """The numbers as a run's result keeps them."""
        return {
            "rows": self.rows.total(),
            "prompts": len(self.prompts),
            "images": len(self.images),
            "ratings": self.ratings,
            "comparisons": self.comparisons,
            "splits": {split: self.of(split) for split in SPLITS if self.of(split)["prompts"]},
            "left_out": dict(sorted(self.left_out.items())),
            "damaged": self.damaged,
        }

    def of(self, split: Split) -> dict[str, int]:
        """The numbers of one split."""
        return {
            "prompts": sum(s == split for s in self.prompts.values()),
            "images": sum(self.prompts.get(p) == split for p in self.images.values()),
            "votes": sum(n for p, n in self.votes.items() if self.prompts.get(p) == split),
        }

    def lines(self, splits: Mapping[Path, Split], kept: int) -> Iterator[str]:
        """What was read, into which splits it goes, and what is left out and why.

        Args:
            splits: of the tables, where their names say them.
            kept: how many prompts stay in another split that the study has them in.
        """
        tables = [table for table in self.rows if table in splits]
        for table in tables[:SHOWN_TABLES]:
            to = "train" if splits[table] == "train" else f"test prompts ({splits[table]})"
            yield f"{table}: {_number(self.rows[table], 'rows')}, to {to}"
        if len(tables) > SHOWN_TABLES:
            yield f"and {len(tables) - SHOWN_TABLES} more tables"
        for split in SPLITS:
            of = self.of(split)
            if of["prompts"]:
                yield f"{split}: " + ", ".join(_number(n, what) for what, n in of.items())
        if kept:
            yield f"already in the study, in another split, which stays: {_number(kept, 'prompts')}"
        for reason, number in sorted(self.left_out.items()):
            yield f"left out: {_number(number, reason)}"


def damaged_rows(path: Path, rows: Sequence[str]) -> str:
    """The message for rows that cannot be taken in."""
    shown = "; ".join(rows[:SHOWN]) + ("; …" if len(rows) > SHOWN else "")
    return (
        f"{path} has {_number(len(rows), 'damaged rows')}: {shown}. Nothing was imported; get the "
        "table again, or leave them out with --damaged leave-out"
    )


def torn_prompts(texts: Mapping[str, tuple[Path, Path]]) -> str:
    """The message for texts that tables of two splits have."""
    text, (one, other) = next(iter(texts.items()))
    return (
        f"tables of two splits share {_number(len(texts), 'prompts')}, such as {text!r} in {one} "
        f"and {other}; import the tables one by one: a prompt stays in the split it was first in"
    )


def _number(n: int, what: str) -> str:
    """A number and what is counted, given in the plural."""
    words = re.sub("(row|vote|item|prompt|image)s", r"\1", what, count=1) if n == 1 else what
    return f"{n:,} {words}"
