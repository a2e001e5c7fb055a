"""Names of models to policies: which folder, which family, which run's weights."""

from pathlib import Path

import torch

from sayso.base.errors import UserError
from sayso.base.files import read_json
from sayso.base.plugins import load_plugin, plugin_names
from sayso.base.types import Sampler
from sayso.base.weights import VARIANTS
from sayso.base.worlds import find_world, or_world
from sayso.families import Policy
from sayso.study.identity import model_folder
from sayso.study.study import Study


def resolve(name: str) -> Path:
    """The folder of a base model: a world's, a folder in diffusers' layout, or a hub id.

    Raises: UserError: if there is no such model.
    """
    if world := find_world(name):
        return _checked(world.base_model)
    folder = Path(name).expanduser()
    if folder.exists() or name.count("/") != 1:
        return _checked(folder)
    return _download(name)


def _checked(folder: Path) -> Path:
    if not (folder / "model_index.json").is_file():
        raise UserError(
            f"no model at {folder}: give a folder with model_index.json (diffusers' layout), "
            f"a hub id such as owner/name, {or_world()}"
        )
    return folder


def _download(name: str) -> Path:
    from diffusers import DiffusionPipeline

    reason: Exception | None = None
    for variant in (None, *VARIANTS):
        try:
            return Path(DiffusionPipeline.download(name, use_safetensors=True, variant=variant))
        except (OSError, ValueError) as error:
            reason = error
            # of the plain weights there are only pickles; there may be safetensors of a variant
            if "safetensors" not in str(error) and "variant" not in str(error):
                break
    raise UserError(
        f"model {name!r} is no folder and could not be fetched as safetensors ({reason}); "
        "check the name and the network"
    )


def family(folder: Path) -> type[Policy]:
    """The family that loads a folder, by the pipeline class in its model_index.json.

    Raises: UserError: if no family knows the class.
    """
    wanted = read_json(folder / "model_index.json").get("_class_name")
    if not isinstance(wanted, str):
        raise UserError(
            f"{folder / 'model_index.json'} names no pipeline (_class_name); restore the folder"
        )
    found = [load_plugin("family", name, Policy) for name in plugin_names("family")]
    for kind in found:
        if wanted in kind.pipelines:
            return kind
    known = ", ".join(name for kind in found for name in kind.pipelines)
    raise UserError(f"{folder} is a {wanted}; sayso can load {known}")


def load_policy(study: Study, model: str, device: torch.device) -> Policy:
    """The base model of the study with the weights of `model` over it.

    Args:
        study: names the base model, holds the runs.
        model: "base" or an align run such as "runs/align-rwr".
        device: where the policy lives.
    Raises: UserError: for an unknown or unfinished run, or a selection such as "base@best-of-16".
    """
    folder, *runs = model_folders(study, model)
    policy = family(folder).load(folder, device)
    policy.name = f"{model} ({folder})" if model == "base" else model
    for weights in runs:
        policy.load_weights(weights)
    return policy


def evaluations(study: Study, sampler: Sampler) -> int | None:
    """Network evaluations for a picture; None if the base is not on this machine."""
    folder = model_folder(study.info.base_model, "pipeline")
    if folder is None:
        return None
    kind = family(folder)
    once = kind.evaluations(folder, sampler.num_inference_steps)
    return once * (1 if kind.guidance(sampler) is None else 2)


def model_folders(study: Study, model: str) -> list[Path]:
    """The folder of the base model, and those of the weights that are laid over it.

    Raises: UserError: as `load_policy`.
    """
    return [resolve(study.info.base_model), *weight_folders(study, model)]


def weight_folders(study: Study, model: str) -> list[Path]:
    """The weights that lead from the base to `model`, in the order in which they are laid over."""
    if model == "base":
        return []
    if "@" in model:
        raise UserError(f"model {model!r} is a selection of images; it has no weights of its own")
    run = study.find_run(model)
    if not run.finished or "model" not in run.config or not run.weights.is_dir():
        raise UserError(f"{run.name} is no finished align run; finish it or choose another --model")
    return [*weight_folders(study, run.config["model"]), run.weights]
