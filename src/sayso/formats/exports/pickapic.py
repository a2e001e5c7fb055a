"""Pick-a-Pic v2: two images, who preferred which. Diffusion-DPO style trainers read it."""

import hashlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from sayso.formats.export_data import ExportData
from sayso.formats.exports import ExportFormat
from sayso.formats.pairs import Pair
from sayso.formats.tables import ParquetTables

SCHEMA = pa.schema([
    ("are_different", pa.bool_()), ("best_image_uid", pa.string()), ("caption", pa.string()),
    ("created_at", pa.timestamp("ns")), ("has_label", pa.bool_()),
    ("image_0_uid", pa.string()), ("image_0_url", pa.string()),
    ("image_1_uid", pa.string()), ("image_1_url", pa.string()),
    ("jpg_0", pa.binary()), ("jpg_1", pa.binary()),
    ("label_0", pa.float64()), ("label_1", pa.float64()),
    ("model_0", pa.string()), ("model_1", pa.string()),
    ("ranking_id", pa.int64()), ("user_id", pa.int64()), ("num_example_per_prompt", pa.int64()),
])  # fmt: skip
LABELS = {"left": (1.0, 0.0), "right": (0.0, 1.0), "tie": (0.5, 0.5)}


class PickAPic(ExportFormat):
    """data/train-00000-of-00001.parquet and data/test-00000-of-00001.parquet."""

    summary: ClassVar[str] = "Preferences between two images of a prompt, as in Pick-a-Pic v2."
    columns: ClassVar[Mapping[str, str]] = {
        "caption": "the prompt",
        "jpg_0, jpg_1": "the image files; 0 is the one shown on the left",
        "label_0, label_1": "1 if preferred, 0 if not; both 0.5 for any tie, both good or bad too",
        "best_image_uid": "id of the preferred image, or tie",
        "are_different": "whether the two files differ",
        "has_label": "always true",
        "user_id": "the rater's keyed hash as a number; null if the pair comes from ratings",
        "ranking_id": "the vote's hash as a number",
        "created_at": "time of the vote, UTC; null if the pair comes from ratings",
        "num_example_per_prompt": "number of rows with this prompt",
        "image_0_url, image_1_url": "empty",
    }
    configs: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "default": {"train": "data/train-*", "test": "data/test-*"}
    }

    def write(self, data: ExportData, folder: Path) -> Mapping[str, int]:
        tables = ParquetTables(folder, SCHEMA)
        per_prompt = Counter(pair.prompt_id for pair in data.pairs())
        for pair in data.pairs():
            row = _row(data, pair, per_prompt[pair.prompt_id])
            split = data.split(data.prompts[pair.prompt_id])
            tables.add(split, row, len(row["jpg_0"]) + len(row["jpg_1"]))
        return tables.close()


def _row(data: ExportData, pair: Pair, of_prompt: int) -> dict[str, Any]:
    samples = [data.sample(pair.left_id), data.sample(pair.right_id)]
    pictures = [data.picture(sample) for sample in samples]
    row: dict[str, Any] = {
        "caption": data.prompts[pair.prompt_id].text,
        "are_different": pictures[0] != pictures[1],
        "best_image_uid": {"left": pair.left_id, "right": pair.right_id, "tie": "tie"}[pair.value],
        "created_at": pair.answered_at,
        "has_label": True,
        "ranking_id": _number(pair.key),
        "user_id": None if pair.rater is None else int(pair.rater, 16) >> 1,
        "num_example_per_prompt": of_prompt,
    }
    for i, (sample, picture) in enumerate(zip(samples, pictures, strict=True)):
        row |= {
            f"image_{i}_uid": sample.id,
            f"image_{i}_url": "",
            f"jpg_{i}": picture,
            f"label_{i}": LABELS[pair.value][i],
            f"model_{i}": data.model_name(sample),
        }
    return row


def _number(key: str) -> int:
    """A non-negative int64 from a vote's id, whatever its form."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) >> 1
