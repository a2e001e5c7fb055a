"""ImageFolder: image files with their texts, what fine-tuning scripts read."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from sayso.formats.export_data import ExportData
from sayso.formats.exports import ExportFormat
from sayso.formats.tables import ImageFolder as Folder


class ImageFolder(ExportFormat):
    """train/ and test/, each with its images and a metadata.jsonl."""

    summary: ClassVar[str] = "Rated images as files, with prompts and ratings in metadata.jsonl."
    columns: ClassVar[Mapping[str, str]] = {
        "image": "the image (`file_name` in metadata.jsonl)",
        "text": "the prompt",
        "p_good": "share of good among the good and bad ratings",
        "n_good, n_bad, n_skip": "the ratings",
        "sample_id, prompt_id, category, model, seed": "its origin",
    }
    configs: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "default": {"train": "train/**", "test": "test/**"}
    }

    def write(self, data: ExportData, folder: Path) -> Mapping[str, int]:
        images = {s: Folder(folder / s, data.extension) for s in ("train", "test")}
        rows: dict[str, int] = {}
        for rated in data.kept():
            split = data.split(rated.prompt)
            name = images[split].keep(rated.sample, data.picture)
            line = {"file_name": name, "text": rated.prompt.text, **data.facts(rated)}
            with (folder / split / "metadata.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            rows[split] = rows.get(split, 0) + 1
        return rows
