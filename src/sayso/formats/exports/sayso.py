"""Our own tables: every vote with everything that was recorded, the images, the labels."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from sayso.base.pictures import picture_size
from sayso.base.types import Sample
from sayso.formats import labels
from sayso.formats.export_data import ExportData
from sayso.formats.exports import ExportFormat
from sayso.formats.tables import IMAGE, ParquetTable, image_value, with_features

IMAGES = with_features(pa.schema([
    ("sample_id", pa.string()), ("sha256", pa.string()), ("image", IMAGE),
    ("prompt_id", pa.string()), ("prompt", pa.string()), ("category", pa.string()),
    ("slots", pa.string()), ("split", pa.string()), ("model", pa.string()),
    ("base_model", pa.string()), ("revision", pa.string()), ("seed", pa.int64()),
    ("num_inference_steps", pa.int64()), ("guidance_scale", pa.float64()), ("eta", pa.float64()),
    ("negative_prompt", pa.string()), ("true_cfg_scale", pa.float64()),
    ("base_precision", pa.string()),
    ("width", pa.int64()), ("height", pa.int64()), ("model_identity", pa.string()),
]))  # fmt: skip


class Sayso(ExportFormat):
    """votes.parquet, images.parquet, labels.parquet."""

    summary: ClassVar[str] = "Votes of raters on generated images, without loss."
    columns: ClassVar[Mapping[str, str]] = {
        "votes": "one row per vote, including superseded ones (`live` is false)",
        "images": "one row per image with votes: bytes, prompt, model, sampler",
        "labels": "one row per image and question: counts of good, bad and skip, agreement",
    }
    configs: ClassVar[Mapping[str, Mapping[str, str]]] = {
        name: {"train": f"{name}.parquet"} for name in ("votes", "images", "labels")
    }

    def write(self, data: ExportData, folder: Path) -> Mapping[str, int]:
        rows = {"images": _write_images(data, folder / "images.parquet")}
        rows["labels"] = _write_labels(data, folder / "labels.parquet")
        rows["votes"] = data.counts["votes"]
        data.votes.rename(folder / "votes.parquet")
        return rows


def _write_images(data: ExportData, path: Path) -> int:
    table = ParquetTable(path, IMAGES)
    for sample in data.samples:
        content = data.picture(sample)
        table.add(_image_row(data, sample, content), len(content))
    table.close()
    return table.rows


def _image_row(data: ExportData, sample: Sample, content: bytes) -> dict[str, Any]:
    prompt = data.prompts[sample.prompt_id]
    width, height = picture_size(content)
    drawn = asdict(sample.sampler)
    del drawn["image_size"]  # width and height
    return {
        "sample_id": sample.id,
        "sha256": hashlib.sha256(content).hexdigest(),
        "image": image_value(content, f"{sample.id}.{data.extension}"),
        "prompt_id": prompt.id,
        "prompt": prompt.text,
        "category": prompt.category,
        "slots": json.dumps(dict(prompt.slots), sort_keys=True, ensure_ascii=False),
        "split": prompt.split,
        "model": sample.model,
        "base_model": data.base_model,
        "seed": sample.seed,
        **drawn,
        "width": width,
        "height": height,
        "model_identity": sample.model_identity,
    }


def _write_labels(data: ExportData, path: Path) -> int:
    table = ParquetTable(path, labels.SCHEMA)
    for (sample, question), count in data.labels.items():
        table.add({
            "sample_id": sample, "question": question, "n_good": count.good, "n_bad": count.bad,
            "n_skip": count.skip, "p_good": count.share, "agreement": count.agreement,
            "decided": count.decided,
        })  # fmt: skip
    table.close()
    return table.rows
