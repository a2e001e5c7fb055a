"""Preferences between two single images: as compared by raters, or good over bad."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from sayso.base.types import Outcome, Sample, digest, outcome
from sayso.formats.snapshot import read_votes
from sayso.votes.labels import RatingCounts


@dataclass(frozen=True, slots=True)
class Pair:
    """Two images of one prompt and which of them is preferred.

    `key` identifies the preference. `rater` (a pseudonym) and `answered_at` (nanoseconds) are None
    where the pair follows from the ratings of several raters.
    """

    key: str
    prompt_id: str
    left_id: str
    right_id: str
    value: Outcome
    rater: str | None = None
    answered_at: int | None = None


def compared(votes: Path, question: str) -> Iterator[Pair]:
    """The comparisons of single images on a question that count, as shown."""
    for row in _comparisons(votes, question):
        if not _is_of_sets(row) and row["value"] != "skip":
            yield Pair(
                row["vote_id"],
                row["prompt_id"],
                row["left_ids"][0],
                row["right_ids"][0],
                outcome(row["value"]),
                row["rater"],
                row["answered_at"],
            )


def left_out(votes: Path, question: str) -> dict[str, int]:
    """Why comparisons that count are no pairs → how many: of sets of several images, or skipped."""
    found = {"comparisons_of_sets": 0, "skipped_comparisons": 0}
    for row in _comparisons(votes, question):
        if row["value"] == "skip":
            found["skipped_comparisons"] += 1
        elif _is_of_sets(row):
            found["comparisons_of_sets"] += 1
    return found


def _is_of_sets(row: Mapping[str, Any]) -> bool:
    return len(row["item_ids"]) > 2


def _comparisons(votes: Path, question: str) -> Iterator[dict[str, Any]]:
    """The rows of the comparisons on a question that count, skipped ones too."""
    columns = ["vote_id", "kind", "prompt_id", "item_ids", "left_ids", "right_ids", "question"]
    columns += ["value", "rater", "answered_at", "counts_as"]
    for row in read_votes(votes, columns):
        asked = row["kind"] == "comparison" and row["question"] == question
        if asked and row["counts_as"] == "vote":
            yield row


def from_ratings(
    counts: Mapping[str, RatingCounts], samples: Mapping[str, Sample], per_prompt: int
) -> Iterator[Pair]:
    """Every image that most raters call good over every one of its prompt that most call bad.

    Which of the two stands left is drawn by a hash, so that the preferred one has no fixed side.

    Args:
        counts: sample id → what its votes on one question come to.
        per_prompt: keep at most this many pairs of a prompt, those with the lowest hash; 0 = all.
    """
    sides: dict[str, tuple[list[str], list[str]]] = {}
    for name, count in counts.items():
        good_bad = sides.setdefault(samples[name].prompt_id, ([], []))
        if count.value != "skip":
            good_bad[count.value == "bad"].append(name)
    for prompt_id, (good, bad) in sides.items():
        pairs = sorted((digest([g, b]), g, b) for g, b in product(good, bad))
        for key, chosen, rejected in pairs[: per_prompt or None]:
            if int(key, 16) % 2:
                yield Pair(key, prompt_id, chosen, rejected, "left")
            else:
                yield Pair(key, prompt_id, rejected, chosen, "right")
