"""HPDv2: JSON arrays of preferences between two image files."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from sayso.formats.export_data import ExportData
from sayso.formats.exports import ExportFormat
from sayso.formats.tables import ImageFolder, json_arrays


class HPDv2(ExportFormat):
    """train.json, test.json, and the images they name in the folder of their split."""

    summary: ClassVar[str] = "Preferences between two images of a prompt, as in HPDv2's train.json."
    columns: ClassVar[Mapping[str, str]] = {
        "prompt": "the prompt",
        "file_path": "two images, relative to the folder of the split (train/ or test/)",
        "human_preference": "1 for the preferred one, 0 for the other",
    }
    configs: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "default": {"train": "train.json", "test": "test.json"}
    }

    def write(self, data: ExportData, folder: Path) -> Mapping[str, int]:
        images = {s: ImageFolder(folder / s, data.extension) for s in ("train", "test")}
        ties = 0
        with json_arrays(folder) as arrays:
            for pair in data.pairs():
                if pair.value == "tie":
                    ties += 1
                    continue
                prompt = data.prompts[pair.prompt_id]
                split = data.split(prompt)
                ids = (pair.left_id, pair.right_id)
                names = [images[split].keep(data.sample(i), data.picture) for i in ids]
                left = int(pair.value == "left")
                arrays.add(split, {
                    "prompt": prompt.text, "file_path": names, "human_preference": [left, 1 - left],
                })  # fmt: skip
        data.leave_out("ties", ties)
        return arrays.rows
