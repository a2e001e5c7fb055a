"""ImageRewardDB: one row an image, with ratings from 1 to 7 and its rank within the prompt."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from sayso.base.errors import UserError
from sayso.base.types import Prompt, Sample
from sayso.formats.export_data import ExportData
from sayso.formats.exports import ExportFormat
from sayso.formats.tables import IMAGE, ParquetTables, image_value, with_features
from sayso.votes.labels import RatingCounts

SCHEMA = with_features(pa.schema([
    ("image", IMAGE), ("prompt_id", pa.string()), ("prompt", pa.string()),
    ("classification", pa.string()), ("image_amount_in_total", pa.int8()), ("rank", pa.int8()),
    ("overall_rating", pa.int8()), ("image_text_alignment_rating", pa.int8()),
    ("fidelity_rating", pa.int8()),
]))  # fmt: skip
MOST_IMAGES = 127
"""What an int8 holds."""


def rating(p_good: float) -> int:
    """The share of good ratings on the scale of 1 (all bad) to 7 (all good): 1 + 6 p, rounded."""
    return 1 + int(6 * p_good + 0.5)


class ImageRewardDB(ExportFormat):
    """data/train-00000-of-00001.parquet and data/test-00000-of-00001.parquet."""

    summary: ClassVar[str] = "Images with ratings from 1 to 7, as in ImageRewardDB."
    columns: ClassVar[Mapping[str, str]] = {
        "image": "the image",
        "prompt_id, prompt, classification": "the prompt and its category",
        "image_amount_in_total": "number of rows with this prompt",
        "rank": "1 is best: 1 + how many images of the prompt have a higher share of good ratings",
        "image_text_alignment_rating": "1 + 6 × share of good on alignment, rounded; or null",
        "fidelity_rating": "the same for fidelity; or null",
        "overall_rating": "the same for the mean of both shares, or for the only one",
    }
    configs: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "default": {"train": "data/train-*", "test": "data/test-*"}
    }

    def write(self, data: ExportData, folder: Path) -> Mapping[str, int]:
        shares = _shares(data.labels)
        if not shares:
            raise UserError("nothing to export: no image is rated good or bad by these raters")
        by_prompt: dict[str, list[Sample]] = {}
        for sample in data.samples:
            if sample.id in shares:
                by_prompt.setdefault(sample.prompt_id, []).append(sample)
        tables = ParquetTables(folder, SCHEMA)
        for prompt_id, samples in by_prompt.items():
            prompt = data.prompts[prompt_id]
            _refuse_too_many(prompt, len(samples))
            for sample in samples:
                content = data.picture(sample)
                row = _row(sample, prompt, samples, shares)
                row["image"] = image_value(content, f"{sample.id}.{data.extension}")
                tables.add(data.split(prompt), row, len(content))
        return tables.close()


def _shares(labels: Mapping[tuple[str, str], RatingCounts]) -> dict[str, dict[str, float]]:
    """Share of good per image and question, where there is a good or bad rating."""
    shares: dict[str, dict[str, float]] = {}
    for (sample, question), counts in labels.items():
        if counts.share is not None:
            shares.setdefault(sample, {})[question] = counts.share
    return shares


def _overall(shares: Mapping[str, float]) -> float:
    return sum(shares.values()) / len(shares)


def _row(
    sample: Sample, prompt: Prompt, of_prompt: list[Sample], shares: dict[str, dict[str, float]]
) -> dict[str, Any]:
    mine = shares[sample.id]
    better = sum(_overall(shares[other.id]) > _overall(mine) for other in of_prompt)
    return {
        "prompt_id": prompt.id,
        "prompt": prompt.text,
        "classification": prompt.category,
        "image_amount_in_total": len(of_prompt),
        "rank": 1 + better,
        "overall_rating": rating(_overall(mine)),
        "image_text_alignment_rating": rating(mine["alignment"]) if "alignment" in mine else None,
        "fidelity_rating": rating(mine["fidelity"]) if "fidelity" in mine else None,
    }


def _refuse_too_many(prompt: Prompt, n: int) -> None:
    if n > MOST_IMAGES:
        raise UserError(
            f"prompt {prompt.text!r} has {n} rated images, but ImageRewardDB counts only up to "
            f"{MOST_IMAGES}; choose another --format, such as sayso or kto"
        )
