"""The votes of a store as one Parquet file, read in a single statement: what all exports are of."""

import hashlib
import hmac
import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from sayso.base.errors import UserError
from sayso.base.types import Comparison, Prompt, Rating, Sample
from sayso.votes.counted import Standing, counts

if TYPE_CHECKING:
    from sayso.feedback.store import Recorded

Vote = Rating | Comparison
Row = tuple[object, ...]

_JSON = json.JSONEncoder(sort_keys=True, ensure_ascii=False).encode

ROWS = 10_000
"""Rows in a row group, and votes in memory."""

TIME = pa.timestamp("ns", tz="UTC")
IDS = pa.list_(pa.string())
SCHEMA = pa.schema([
    ("vote_id", pa.string()), ("kind", pa.string()), ("task", pa.string()),
    ("item_ids", IDS), ("prompt_id", pa.string()), ("prompt", pa.string()),
    ("question", pa.string()), ("value", pa.string()), ("skip_reason", pa.string()),
    ("rater", pa.string()), ("simulated", pa.bool_()),
    ("left_ids", IDS), ("right_ids", IDS),
    ("left_model", pa.string()), ("right_model", pa.string()),
    ("shown_at", TIME), ("answered_at", TIME), ("latency_ms", pa.float64()),
    ("position", pa.int64()), ("session", pa.string()),
    ("gold", pa.bool_()), ("attention", pa.bool_()), ("adjudication", pa.bool_()),
    ("overlap_target", pa.int64()),
    ("supersedes", pa.string()), ("live", pa.bool_()),
    ("excluded", pa.bool_()), ("counts_as", pa.string()),
    ("app_version", pa.string()), ("guideline_version", pa.string()), ("shown", pa.string()),
])  # fmt: skip
"""One row a vote, the oldest first; docs/exports.md says what each column means."""


class Pseudonyms:
    """Raters' names and sessions as keyed hashes (HMAC-SHA256, 16 hex digits).

    The key never leaves the study, so nobody can try out names; within a study a rater keeps one
    pseudonym in all exports.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._known: dict[str, str] = {}

    def of(self, name: str) -> str:
        if name not in self._known:
            mac = hmac.new(self._key, name.encode(), hashlib.sha256)
            self._known[name] = mac.hexdigest()[:16]
        return self._known[name]


def write_votes(
    path: Path,
    votes: "Iterable[Recorded]",
    samples: Mapping[str, Sample],
    prompts: Mapping[str, Prompt],
    pseudonyms: Pseudonyms,
) -> None:
    """Write the votes to `path`, a chunk at a time.

    Raises: UserError: if a vote is about a sample or a prompt of which there is no record.
    """

    def row(found: "Recorded") -> Row:
        vote, items = found.vote, _items(found.vote)
        prompt = prompts.get(_shown_prompt(vote, prompts) or _prompt_id(vote, samples))
        if prompt is None or any(item not in samples for item in items):
            raise UserError(
                f"vote {vote.id} is about an image or a prompt that has no record in the study; "
                "restore samples.jsonl and prompts.jsonl from a backup"
            )
        return _row(found, items, prompt, pseudonyms)

    with pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
        for part in _chunks(map(row, votes)):
            columns = zip(*part, strict=True)
            arrays = [pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)]
            writer.write_batch(pa.record_batch(arrays, SCHEMA))


def _chunks(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while part := list(islice(rows, ROWS)):
        yield part


def _items(vote: Vote) -> list[str]:
    if isinstance(vote, Rating):
        return [vote.sample_id]
    return [*vote.left_ids, *vote.right_ids]


def _shown_prompt(vote: Vote, prompts: Mapping[str, Prompt]) -> str:
    """The prompt that the page showed, which is not the image's own in a check of attention."""
    shown = str(vote.shown.get("prompt_id", ""))
    return shown if shown in prompts else ""


def _prompt_id(vote: Vote, samples: Mapping[str, Sample]) -> str:
    if isinstance(vote, Comparison):
        return vote.prompt_id
    return samples[vote.sample_id].prompt_id if vote.sample_id in samples else ""


def _row(found: "Recorded", items: list[str], prompt: Prompt, pseudonyms: Pseudonyms) -> Row:
    vote, standing = found.vote, found.standing
    shown = dict(vote.shown)
    if shown.get("session") is not None:
        shown["session"] = pseudonyms.of(str(shown["session"]))
    rated = isinstance(vote, Rating)
    sides = (None,) * 4
    if not rated:
        sides = (list(vote.left_ids), list(vote.right_ids), vote.left_model, vote.right_model)
    return (
        vote.id, "rating" if rated else "comparison", _text(shown, "task"),
        items, prompt.id, prompt.text, vote.question, vote.value, _reason(vote),
        pseudonyms.of(vote.rater), vote.simulated, *sides,
        nanoseconds(vote.shown_at), nanoseconds(vote.answered_at), _number(shown, "latency_ms"),
        _whole(shown, "position"), _text(shown, "session"),
        _flag(shown, "gold"), _flag(shown, "attention"), standing.decision,
        _whole(shown, "overlap_target"),
        vote.supersedes, found.live, found.excluded, _counts_as(standing),
        _text(shown, "app_version"), _text(shown, "guideline_version"),
        _JSON(shown),
    )  # fmt: skip


def _reason(vote: Vote) -> str | None:
    """Why it was skipped; of a comparison only the page knows."""
    if isinstance(vote, Rating):
        return vote.reason
    return _text(vote.shown, "reason") if vote.value == "skip" else None


COUNTS_AS: tuple[Literal["vote", "decision"], ...] = ("vote", "decision")
"""Values of the column `counts_as`; null where a vote counts as neither."""


def _counts_as(standing: Standing) -> str | None:
    return next((purpose for purpose in COUNTS_AS if counts(standing, purpose)), None)


def nanoseconds(seconds: float) -> int:
    """Seconds since the epoch as whole nanoseconds; exact to the last bit of a present-day time."""
    whole = int(seconds)
    # the difference is exact, so nothing is lost before the last rounding
    return 10**9 * whole + round(1e9 * (seconds - whole))


def seconds(nanoseconds: int) -> float:
    """The inverse of `nanoseconds`."""
    return nanoseconds / 10**9


# what the page recorded; a value of another type stays in the column `shown` alone


def _text(shown: Mapping[str, object], key: str) -> str | None:
    value = shown.get(key)
    return str(value) if isinstance(value, str | int) else None


def _number(shown: Mapping[str, object], key: str) -> float | None:
    value = shown.get(key)
    return float(value) if isinstance(value, int | float) else None


def _whole(shown: Mapping[str, object], key: str) -> int | None:
    value = shown.get(key)
    return value if isinstance(value, int) else None


def _flag(shown: Mapping[str, object], key: str) -> bool | None:
    return bool(shown[key]) if key in shown else None


# reading


def read_votes(path: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    """The rows of a snapshot, chunk by chunk; times come as whole nanoseconds."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=ROWS, columns=columns):
            yield from plain_times(batch).to_pylist()


def plain_times(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with times as whole nanoseconds, which Python's own type cannot hold."""
    arrays = [_plain(column) for column in batch.columns]
    return pa.RecordBatch.from_arrays(arrays, names=batch.schema.names)


def _plain(column: pa.Array) -> pa.Array:
    if not pa.types.is_timestamp(column.type):
        return column
    return column.cast(pa.timestamp("ns", column.type.tz)).cast(pa.int64())
