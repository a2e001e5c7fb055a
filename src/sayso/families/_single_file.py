"""Models in one .safetensors file, in the layout that they were published in: read by diffusers."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import load_file
from torch import Tensor

from sayso.base.errors import UserError
from sayso.base.files import read_json
from sayso.base.weights import quiet_libraries, readable, stored_format
from sayso.families._diffusers import DiffusersPolicy

VAE = ("first_stage_model.", "vae.")
NETWORK = ("model.diffusion_model.", *VAE)
"""What the names of weights begin with."""
QUANTISED = (".scale_weight", "scaled_fp8", ".weight_scale", ".absmax", ".quant_map", ".qweight")
"""How names of weights end that stand for others, compressed."""
CONFIGS = ("*.json", "*.txt", "*.model")
CPU = torch.device("cpu")


def template_of(file: Path) -> str:
    """The hub id of the model of diffusers that has the file's architecture.

    Raises: UserError: if the file holds no such model, or does not say enough.
    """
    from diffusers.loaders.single_file_utils import (
        fetch_diffusers_config,
        infer_diffusers_model_type,
    )

    with readable(file):
        tensors = load_file(file)
    if any("lora" in name for name in tensors):
        raise UserError(f"{file} is a LoRA; give it as --base-lora, beside a --base-model")
    architecture = infer_diffusers_model_type(tensors)
    if architecture == "v1" and not _any(tensors, NETWORK[:1]):
        raise UserError(
            f"{file} is no model of an architecture that diffusers knows; if it is one, give "
            "--base-config with a folder of the same architecture in diffusers' layout"
        )
    if architecture == "v2":
        raise UserError(
            f"{file} does not say whether it predicts noise, as Stable Diffusion 2-1-base does, or "
            "v, as 2-1 does; give --base-config with a folder of the right one"
        )
    return fetch_diffusers_config(tensors)["pretrained_model_name_or_path"]


def fetch_template(file: Path, name: str) -> Path:
    """The configs and tokenizers of a model on the hub, from the cache where they are there.

    Raises: UserError: if they are not there and cannot be fetched.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(CONFIGS)))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file} needs the configs and tokenizers of {name}, which are not on this machine and "
            f"could not be fetched ({type(error).__name__}); give --base-config with a folder of "
            "that model in diffusers' layout"
        ) from None


def read_single_file(kind: type[DiffusersPolicy], file: Path, template: Path) -> Any:
    """The pipeline of diffusers with the file's weights.

    Parts that the file lacks, such as text encoders, are the template's.

    Args:
        kind: the family.
        file: the weights.
        template: a folder in diffusers' layout with configs, tokenizers and scheduler.
    Raises: UserError: if the file is damaged, lacks weights, or is of another model.
    """
    with readable(file):
        tensors = load_file(file)
    _refuse_unreadable(file, tensors, template)
    pipeline_class: Any = getattr(diffusers, kind.pipelines[0])
    options = {"torch_dtype": stored_format(file), "local_files_only": True}
    if _any(tensors, VAE) and hasattr(pipeline_class, "from_single_file"):
        with _of_this_model(file), quiet_libraries():
            pipeline = pipeline_class.from_single_file(str(file), config=str(template), **options)
    else:
        policy = kind(template, CPU, None, ("text", "vae"))
        network_class: Any = getattr(diffusers, kind.network_class)
        with _of_this_model(file), quiet_libraries():
            policy.network = network_class.from_single_file(
                str(file), config=str(template), subfolder=kind.network_part, **options
            )
        pipeline = policy.pipeline()
    return pipeline


@contextmanager
def _of_this_model(file: Path) -> Iterator[None]:
    advice = "give a file, and a --base-config, of the same architecture"
    with readable(file, advice):
        try:
            yield
        except NotImplementedError:  # torch, of weights that were made without values and stayed so
            raise UserError(f"{file} lacks weights that the model needs; {advice}") from None


def _any(names: Iterable[str], prefixes: tuple[str, ...]) -> bool:
    return any(name.startswith(prefixes) for name in names)


def _refuse_unreadable(file: Path, tensors: dict[str, Tensor], template: Path) -> None:
    if any(name.endswith(QUANTISED) for name in tensors):
        raise UserError(
            f"{file} holds quantised weights, which cannot be trained; give the fp16 or bf16 file"
        )
    scheduler = read_json(template / "scheduler" / "scheduler_config.json")
    flagged, said = "v_pred" in tensors, scheduler.get("prediction_type", "epsilon")
    if flagged and said != "v_prediction":
        raise UserError(
            f"{file} says that it predicts v, but {template / 'scheduler'} says {said}; give "
            "--base-config with a scheduler of prediction_type v_prediction"
        )
