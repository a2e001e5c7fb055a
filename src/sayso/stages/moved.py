"""Stage `moved`: tell a study where its models lie now."""

from dataclasses import dataclass

from sayso.base.errors import UserError
from sayso.base.hashes import weight_hashes
from sayso.base.progress import console
from sayso.stages._base_model import base_model_name
from sayso.study.identity import model_folder
from sayso.study.model_files import model_name
from sayso.study.study import Study


@dataclass(frozen=True)
class MovedConfig:
    """Where moved or renamed models are now. Their contents must be the same."""

    base_model: str = ""
    """The base model's new folder, hub id or file; default: unchanged."""
    base_config: str = ""
    """As in sayso new, for a base model in one file."""
    base_lora: str = ""
    """As in sayso new: the LoRA in the base model's weights."""
    clip_model: str = ""
    """The CLIP model's new folder or hub id; default: unchanged."""


def moved(study: Study, config: MovedConfig) -> Study:
    """Write the new places into study.json, if the weights there are those that runs have loaded.

    Raises: UserError: if neither model is given, there is no such model, or its weights differ from
        those that a run of the study recorded.
    """
    given = {
        "base_model": config.base_model
        and base_model_name(config.base_model, config.base_config, config.base_lora),
        "clip_model": config.clip_model
        and model_name(config.clip_model, "CLIP model", "config.json"),
    }
    places = {field: place for field, place in given.items() if place}
    if not places:
        raise UserError("give the model that was moved: --base-model or --clip-model")
    for field, place in places.items():
        _refuse_other_content(study, field, place)
    found = study.with_models(**places)
    for field, place in places.items():
        console.print(f"{field} is now {place}", soft_wrap=True)
    return found


def _refuse_other_content(study: Study, field: str, place: str) -> None:
    """Compare the weights with those that runs wrote down when they loaded the model."""
    layout = "pipeline" if field == "base_model" else "clip"
    old, new = getattr(study.info, field), model_folder(place, layout)
    if new is None:
        raise UserError(f"{place} is not on this machine; fetch it, so that it can be compared")
    there, names = weight_hashes(new), {old, str(model_folder(old, layout))}
    for run in study.runs():
        for row in run.environment.get("loaded", []):
            differing = [k for k, v in row["sha256"].items() if there.get(k) != v]
            if row["folder"] in names and differing:
                raise UserError(
                    f"{place} is not the model that {run.name} loaded from {old}: "
                    f"{min(differing)} differs; find that model, or make another study"
                )
