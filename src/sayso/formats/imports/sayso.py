"""Our own export, taken in again: an empty study then holds the same votes."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from sayso.base.errors import UserError
from sayso.base.types import Comparison, Prompt, Rating, Sample, Sampler, Size
from sayso.formats.imports import Column, Context, Entry, Picture, TableImport, decode, read_rows
from sayso.formats.manifest import read_manifest
from sayso.formats.snapshot import SCHEMA, read_votes, seconds

_SINCE = {"excluded", "counts_as"}
"""Columns that exports of older versions lack."""
_LATER = ("model_identity", "true_cfg_scale", "base_precision")
"""The same, of images."""
VOTES: Mapping[str, Column] = {
    name: Column("any", required=name not in _SINCE) for name in SCHEMA.names
}


class Sayso(TableImport):
    """Everything comes back but raters' names and sessions, which stay pseudonyms.

    Attention items, votes of excluded raters and votes that were taken back are left out.

    Votes keep their ids, images their ids and models; final latents are not in the export. The
    files must be what manifest.json says.
    """

    columns: ClassVar[Mapping[str, Column]] = {
        name: Column("any", required=True)
        for name in (
            "sample_id", "sha256", "image", "prompt_id", "prompt", "category", "slots", "split",
            "model", "base_model", "revision", "seed", "num_inference_steps", "guidance_scale",
            "eta", "negative_prompt", "width", "height",
        )
    } | dict.fromkeys(_LATER, Column("any"))  # fmt: skip

    def entries(self, path: Path, context: Context) -> Iterator[Entry]:
        if not path.is_dir():
            raise UserError(f"{path} is not a folder; give the folder that sayso export wrote")
        manifest = read_manifest(path)
        if manifest.get("format") != "sayso":
            raise UserError(f"{path} has format {manifest.get('format')!r}; give it with --format")
        for where, row in read_rows(path / "images.parquet", self.columns):
            yield self.entry(where, row, context)
        chains = _Chains(path / "votes.parquet")
        for _, row in read_rows(path / "votes.parquet", VOTES):
            yield _vote(row, chains)

    def entry(self, where: str, row: Mapping[str, Any], context: Context) -> Entry:
        prompt = Prompt(
            row["prompt_id"], row["prompt"], row["category"], json.loads(row["slots"]), row["split"]
        )
        sampler = Sampler(
            row["num_inference_steps"], row["guidance_scale"], row["eta"],
            Size(row["width"], row["height"]), row["negative_prompt"],
            row.get("true_cfg_scale") or 1.0, row.get("base_precision") or "fp32",
        )  # fmt: skip
        path = context.study.image_path(row["sample_id"])
        sample = Sample(
            row["sample_id"], prompt.id, row["model"], row["seed"], sampler, path, "",
            row.get("model_identity") or "",
        )  # fmt: skip
        content = row["image"]["bytes"]
        decode(where, content)
        return Entry((prompt,), (Picture(sample, content),))


class _Chains:
    """Which votes were superseded by one of the table, and which were taken back for good.

    A row that takes a vote back is no vote and not in the table. So a vote that is not live, and
    that no vote of the table supersedes, was taken back, and those before it count no more.
    """

    def __init__(self, votes: Path) -> None:
        before: dict[str, str] = {}
        self.superseded: set[str] = set()
        for row in read_votes(votes, ["vote_id", "supersedes", "live"]):
            if row["supersedes"] is not None:
                before[row["vote_id"]] = row["supersedes"]
            if not row["live"]:
                self.superseded.add(row["vote_id"])
        self.taken_back: set[str] = set()
        for vote_id in self.superseded - set(before.values()):
            link: str | None = vote_id
            while link in self.superseded:
                self.taken_back.add(link)
                link = before.get(link)

    def kept_link(self, supersedes: str | None) -> str | None:
        """The vote that one supersedes, if it comes with the table and was not taken back."""
        kept = supersedes in self.superseded and supersedes not in self.taken_back
        return supersedes if kept else None


def _vote(row: Mapping[str, Any], chains: _Chains) -> Entry:
    if row["vote_id"] in chains.taken_back:
        return Entry(left_out="withdrawn votes")
    if row["attention"]:
        return Entry(left_out="attention items")
    if row.get("excluded"):
        return Entry(left_out="votes of excluded raters")
    common = {
        "id": row["vote_id"],
        "rater": row["rater"],
        "question": row["question"],
        "value": row["value"],
        "simulated": row["simulated"],
        "shown_at": seconds(row["shown_at"]),
        "answered_at": seconds(row["answered_at"]),
        "shown": json.loads(row["shown"]),
        "supersedes": chains.kept_link(row["supersedes"]),
    }
    if row["kind"] == "rating":
        reason = row["skip_reason"] or ""
        return Entry(ratings=(Rating(sample_id=row["item_ids"][0], reason=reason, **common),))
    sides = {key: tuple(row[key]) for key in ("left_ids", "right_ids")}
    models = {key: row[key] for key in ("left_model", "right_model")}
    vote = Comparison(prompt_id=row["prompt_id"], **sides, **models, **common)
    return Entry(comparisons=(vote,))
