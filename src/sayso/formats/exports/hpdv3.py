"""HPDv3: JSON arrays, one row a pair of images, the preferred one first."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from sayso.formats.export_data import ExportData
from sayso.formats.exports import ExportFormat
from sayso.formats.tables import ImageFolder, json_arrays


@dataclass(slots=True)
class _Tally:
    """Votes on one pair of images: for the one with the lower id, for the other, ties."""

    prompt_id: str
    first: int = 0
    second: int = 0
    ties: int = 0


class HPDv3(ExportFormat):
    """train.json, test.json, and the images they name in images/."""

    summary: ClassVar[str] = "Preferences between two images of a prompt, as in HPDv3."
    columns: ClassVar[Mapping[str, str]] = {
        "prompt": "the prompt",
        "path1": "the image that most raters prefer, relative to this folder",
        "path2": "the other one",
        "choice_dist": "votes for path1 and for path2",
        "model1, model2": "the models that generated them",
    }
    configs: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "default": {"train": "train.json", "test": "test.json"}
    }

    def write(self, data: ExportData, folder: Path) -> Mapping[str, int]:
        tallies = _tallies(data)
        images = ImageFolder(folder / "images", data.extension)
        undecided = 0
        with json_arrays(folder) as arrays:
            for ids, tally in tallies.items():
                if tally.first == tally.second:
                    undecided += 1
                    continue
                split = data.split(data.prompts[tally.prompt_id])
                arrays.add(split, _row(data, images, ids, tally))
        data.leave_out("ties", sum(tally.ties for tally in tallies.values()))
        data.leave_out("undecided_pairs", undecided)
        return arrays.rows


def _tallies(data: ExportData) -> dict[tuple[str, str], _Tally]:
    tallies: dict[tuple[str, str], _Tally] = {}
    for pair in data.pairs():
        first, second = sorted((pair.left_id, pair.right_id))
        tally = tallies.setdefault((first, second), _Tally(pair.prompt_id))
        if pair.value == "tie":
            tally.ties += 1
        elif (pair.value == "left") == (pair.left_id == first):
            tally.first += 1
        else:
            tally.second += 1
    return tallies


def _row(
    data: ExportData, images: ImageFolder, ids: tuple[str, str], tally: _Tally
) -> dict[str, object]:
    votes = [tally.first, tally.second]
    order = (0, 1) if votes[0] > votes[1] else (1, 0)
    samples = [data.sample(ids[i]) for i in order]
    paths = [f"images/{images.keep(sample, data.picture)}" for sample in samples]
    return {
        "prompt": data.prompts[tally.prompt_id].text,
        "path1": paths[0],
        "path2": paths[1],
        "choice_dist": [votes[i] for i in order],
        "model1": data.model_name(samples[0]),
        "model2": data.model_name(samples[1]),
    }
