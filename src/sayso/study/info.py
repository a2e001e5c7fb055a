"""What study.json holds."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sayso.base import files
from sayso.base.errors import UserError, check_seed
from sayso.base.records import from_row, sampler_from_row
from sayso.base.types import Sampler
from sayso.base.worlds import DEFAULT

PromptChoice = Literal["train", "validation", "seen", "unseen", "test", "fidelity", "all"]
"""How stages name a part of the prompts; "test" is seen and unseen together."""

HeldOut = Literal["first tenth", "by name"]
"""Which pictures of a pre-training folder are held out: the first tenth of all, in the order of the
hashes of their names, as in studies of before; or each by the hash of its own name."""

HELD_OUT_BEFORE: HeldOut = "first tenth"
"""The rule of a study.json that names none."""

FORMAT = 1
"""Version of the study folder's format that this package writes; newer ones are refused."""


@dataclass(frozen=True, slots=True)
class StudyInfo:
    """What study.json holds. Models are a world's name, a folder, or a hub id.

    `pretraining` may be files too; the fields that begin so say which of its columns, rows and
    split are meant, as `sayso new` explains.
    """

    name: str
    seed: int = 0
    base_model: str = DEFAULT
    clip_model: str = DEFAULT
    pretraining: str = DEFAULT
    sampler: Sampler = field(default_factory=Sampler)
    feedback_url: str = ""
    held_out: HeldOut = HELD_OUT_BEFORE
    pretraining_image: str = ""
    pretraining_caption: str = ""
    pretraining_filter: str = ""
    pretraining_split: str = ""
    format: int = FORMAT


def parse_info(path: Path, row: files.JsonObject) -> StudyInfo:
    version = row.get("format")
    if not isinstance(version, int):
        raise UserError(f"{path / 'study.json'} has no format number; restore it")
    if version > FORMAT:
        raise UserError(
            f"{path} has study format {version}, but this sayso only reads up to {FORMAT}; "
            "upgrade sayso"
        )
    where = path / "study.json"
    sampler = sampler_from_row(row.get("sampler", {}), f"sampler in {where}")
    info = from_row(StudyInfo, row | {"sampler": sampler}, where)
    try:
        check_seed(info.seed)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return info
