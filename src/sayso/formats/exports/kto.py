"""KTO style: one row an image, desirable or not (an unpaired preference)."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from sayso.formats.export_data import ExportData
from sayso.formats.exports import ExportFormat
from sayso.formats.tables import IMAGE, ParquetTables, image_value, with_features

SCHEMA = with_features(
    pa.schema([("prompt", pa.string()), ("image", IMAGE), ("label", pa.bool_())])
)


class KTO(ExportFormat):
    """data/train-00000-of-00001.parquet and data/test-00000-of-00001.parquet."""

    summary: ClassVar[str] = "Images called good or bad by most of their raters (KTO style)."
    columns: ClassVar[Mapping[str, str]] = {
        "prompt": "the prompt",
        "image": "the image",
        "label": "true if most raters call it good, false if bad",
    }
    configs: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "default": {"train": "data/train-*", "test": "data/test-*"}
    }

    def write(self, data: ExportData, folder: Path) -> Mapping[str, int]:
        tables = ParquetTables(folder, SCHEMA)
        split_votes = 0
        for sample, prompt, counts in data.rated():
            if counts.value == "skip":
                split_votes += 1
                continue
            content = data.picture(sample)
            image = image_value(content, f"{sample.id}.{data.extension}")
            row = {"prompt": prompt.text, "image": image, "label": counts.value == "good"}
            tables.add(data.split(prompt), row, len(content))
        data.leave_out("images_without_majority", split_votes)
        return tables.close()
