"""What the raters say of each image, counted from a snapshot of the votes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import compute

from sayso.base.types import Value
from sayso.votes.labels import RatingCounts

# its functions are made while it is imported, so no type checker knows them
pc: Any = compute

SCHEMA = pa.schema([
    ("sample_id", pa.string()), ("question", pa.string()), ("n_good", pa.int64()),
    ("n_bad", pa.int64()), ("n_skip", pa.int64()), ("p_good", pa.float64()),
    ("agreement", pa.float64()), ("decided", pa.string()),
])  # fmt: skip


def count_labels(votes: Path) -> dict[tuple[str, str], RatingCounts]:
    """Image and question → what the votes that count come to, sorted.

    Only a few columns are read, so a million votes need some tens of megabytes.
    """
    columns = ["kind", "item_ids", "question", "value", "counts_as"]
    table = pq.read_table(votes, columns=columns)
    table = table.filter(pc.equal(table["kind"], "rating"))
    decided = _decisions(table.filter(pc.equal(table["counts_as"], "decision")))
    table = table.filter(pc.equal(table["counts_as"], "vote"))
    counts = {
        f"n_{value}": pc.cast(pc.equal(table["value"], value), pa.int64())
        for value in ("good", "bad", "skip")
    }
    # a rating is of one image, so its list of items is as long as the table
    items = {"sample_id": pc.list_flatten(table["item_ids"]), "question": table["question"]}
    grouped = pa.table({**items, **counts}).group_by(["sample_id", "question"])
    return _sorted(grouped.aggregate([(name, "sum") for name in counts]), decided)


def _decisions(table: pa.Table) -> dict[tuple[str, str], Value]:
    """Image and question → what a reviewer has decided; of several the newest stands."""
    rows = table.select(["item_ids", "question", "value"]).to_pylist()
    return {(r["item_ids"][0], r["question"]): r["value"] for r in rows}


def _sorted(
    table: pa.Table, decided: Mapping[tuple[str, str], Value]
) -> dict[tuple[str, str], RatingCounts]:
    numbers = {
        (row["sample_id"], row["question"]): [row[f"n_{v}_sum"] for v in ("good", "bad", "skip")]
        for row in table.to_pylist()
    }
    return {
        key: RatingCounts(*numbers.get(key, (0, 0, 0)), decided=decided.get(key))
        for key in sorted(numbers.keys() | decided.keys())
    }
