"""Names of models to policies: which folder, which family, which run's weights."""

import re
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

import torch
from huggingface_hub import constants

from sayso.base.devices import QUANTISED, BasePrecision
from sayso.base.errors import UserError
from sayso.base.files import read_json
from sayso.base.plugins import load_plugin, plugin_names
from sayso.base.types import Sampler
from sayso.base.weights import VARIANTS, quiet_libraries, reason_of
from sayso.base.worlds import find_world, or_world
from sayso.families import PARTS, Policy
from sayso.families._diffusers import DiffusersPolicy
from sayso.families._lora import LORA_FILE
from sayso.families._precision import KEPT, quantise
from sayso.study.identity import model_folder
from sayso.study.study import Study

OTHER_TASKS = re.compile(
    "Inpaint|Img2Img|ImageToImage|Edit|Upscal|Control|Pix2Pix|Depth|Fill|Adapter|Kontext|Layered|Omni"
)
"""In the names of pipelines that do something else than draw from a text."""


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
            with quiet_libraries():
                return Path(DiffusionPipeline.download(name, use_safetensors=True, variant=variant))
        except (OSError, ValueError) as error:
            reason = error
            # of the plain weights there are only pickles; there may be safetensors of a variant
            if "safetensors" not in str(error) and "variant" not in str(error):
                break
    if constants.is_offline_mode():
        raise UserError(
            f"model {name!r} is no folder and not in the cache {constants.HF_HUB_CACHE}, and "
            f"HF_HUB_OFFLINE is set; unset it, or fetch the model first with: hf download {name}"
        )
    why = reason_of((reason and reason.__cause__) or reason or OSError())
    raise UserError(
        f"model {name!r} is not a folder and could not be fetched as safetensors ({why}); check "
        "the name and the network"
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
    found = {name: load_plugin("family", name, Policy) for name in plugin_names("family")}
    for kind in found.values():
        if wanted in kind.pipelines:
            return kind
    known = ", ".join(f"{name} ({' or '.join(kind.pipelines)})" for name, kind in found.items())
    other = OTHER_TASKS.search(wanted)
    what = f"a {wanted}, which does not draw from a text alone" if other else f"a {wanted}"
    raise UserError(f"{folder} is {what}; give a model of one of the families {known}")


def load_policy(
    study: Study,
    model: str,
    device: torch.device,
    precision: BasePrecision = "fp32",
    parts: Sequence[str] = PARTS,
    network_on: torch.device | None = None,
    *,
    merge: bool = True,
) -> Policy:
    """The base model of the study with the weights of `model` over it.

    Args:
        study: names the base model, holds the runs.
        model: "base" or an align run such as "runs/align-rwr".
        device: where the policy lives.
        precision: how weights are kept in memory; all but fp32 are of models that are not trained.
        parts: which of `PARTS` to load.
        network_on: where its network lies until training moves it; None = on the same device.
        merge: whether adapters are added to the weights; if not, those over weights that are kept
            in fewer bits, which might round them off, stay beside them, as they were trained.
    Raises: UserError: for an unknown or unfinished run, or a selection such as "base@best-of-16".
    """
    folder, *runs = model_folders(study, model)
    kind, dtype = family(folder), KEPT[precision]
    quantised = "network" in parts and precision in QUANTISED
    if quantised:
        policy = kind.load(folder, torch.device("cpu"), dtype=dtype, parts=parts)
    elif "network" not in parts or network_on in (None, device):
        policy = kind.load(folder, device, dtype=dtype, parts=parts)
    else:
        others = [part for part in parts if part != "network"]
        policy = kind.load(folder, device, dtype=dtype, parts=others)
        policy.network = kind.load(folder, network_on, dtype=dtype, parts=["network"]).network
    policy.name = f"{model} ({folder})" if model == "base" else model
    beside = [] if merge or precision == "fp32" else _adapters_at_the_end(policy, runs)
    if "network" in parts:
        for weights in runs[: len(runs) - len(beside)]:
            policy.load_weights(weights)
    if quantised:
        quantise(policy, precision, device)
    if "network" in parts and isinstance(policy, DiffusersPolicy):
        for weights in beside:
            policy.load_beside(weights)
    return policy


def _adapters_at_the_end(policy: Policy, runs: Sequence[Path]) -> list[Path]:
    """Those of the weights, the last first trained, that are adapters laid over all others."""
    last_first = takewhile(lambda folder: (folder / LORA_FILE).exists(), reversed(runs))
    return [*last_first][::-1] if isinstance(policy, DiffusersPolicy) else []


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
    run = study.find_run(model, "align")
    if not run.finished or "model" not in run.config or not run.weights.is_dir():
        raise UserError(
            f"{run.name} is not a finished run of align; finish it or choose another --model"
        )
    return [*weight_folders(study, run.config["model"]), run.weights]
