"""Stage `weights`: a tuned model as other programs load it, with a model card."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sayso.base.errors import UserError
from sayso.base.files import new_folder
from sayso.base.progress import console
from sayso.base.records import check_choices
from sayso.study.run import Run
from sayso.study.study import Study

if TYPE_CHECKING:
    import torch

    from sayso.families._diffusers import DiffusersPolicy

Layout = Literal["pipeline", "lora", "kohya", "single-file"]
NumberFormat = Literal["fp32", "fp16", "bf16"]
WITH_ORIGINAL_NAMES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
"""Pipelines whose weights have names of before diffusers, by which other programs read one file."""


@dataclass(frozen=True)
class WeightsConfig:
    """Which model to write, how and where."""

    to: str = ""
    """Folder to write; it must not exist yet."""
    model: str = "runs/align-rwr"
    """The tuned model: a run of align."""
    layout: Layout = "pipeline"
    """pipeline: a folder that diffusers loads; lora: the adapters alone, for load_lora_weights;
    kohya: the adapters as kohya's scripts and most user interfaces name them; single-file: all of
    Stable Diffusion or SDXL in one .safetensors file."""
    number_format: NumberFormat = "fp32"
    """Of the weights in the files."""

    def check(self) -> None:
        """Raises: UserError: naming the first option that is not possible."""
        check_choices(self)
        if not self.to:
            raise UserError("say where to write: --to FOLDER")
        if Path(self.to).exists():
            raise UserError(f"{self.to} exists already; give --to another folder")


def weights(study: Study, config: WeightsConfig) -> Path:
    """Write the model with a card: prompts, ratings, agreement, metrics, images, licences.

    Returns: the folder.
    Raises: UserError: if the model is not a finished run of align, or has no such layout.
    """
    from sayso.reporting.model_card import write_card
    from sayso.study.identity import canonical_config

    config.check()
    config = canonical_config(study, config)
    run = _run(study, config)
    adapters = _adapters(run, config.layout) if config.layout in ("lora", "kohya") else None
    to = Path(config.to)
    with new_folder(to) as folder:
        if adapters is not None:
            _write_adapters(adapters, config, folder)
        else:
            _write_model(study, config, folder)
        write_card(study, run, folder, adapters=adapters is not None)
    console.print(f"{run.name} is in {to} ({config.layout})", soft_wrap=True)
    return to


def _run(study: Study, config: WeightsConfig) -> Run:
    from sayso.families._loading import weight_folders

    if config.model == "base":
        raise UserError("the base model is where the study has it from; give a run of align")
    weight_folders(study, config.model)
    return study.find_run(config.model, "align")


def _adapters(run: Run, layout: Layout) -> "dict[str, torch.Tensor]":
    """Those of the run by name. Raises: UserError: if it has none, or none of that layout."""
    from sayso.base.weights import read_tensors
    from sayso.families._lora import LORA_FILE, REMAKE

    if not (run.weights / LORA_FILE).is_file():
        raise UserError(
            f"{run.name} trained the whole network and has no adapters; give --layout pipeline or "
            "single-file"
        )
    tensors = read_tensors(run.weights / LORA_FILE, REMAKE)
    if layout == "kohya" and not all(name.startswith("unet.") for name in tensors):
        raise UserError(
            f"{run.name} is not of a U-Net, for which alone kohya's names are known; give --layout "
            "lora, which user interfaces read too"
        )
    if run.config["model"] != "base":
        raise UserError(
            f"the adapters of {run.name} belong on {run.config['model']}, not on the base model; "
            "give --layout pipeline or single-file"
        )
    return tensors


def _write_adapters(
    tensors: "dict[str, torch.Tensor]", config: WeightsConfig, folder: Path
) -> None:
    from diffusers.utils.state_dict_utils import (
        convert_all_state_dict_to_peft,
        convert_state_dict_to_kohya,
    )
    from safetensors.torch import save_file

    from sayso.families._lora import LORA_FILE

    if config.layout == "kohya":
        if any(".lora.down." in name for name in tensors):
            tensors = convert_all_state_dict_to_peft(tensors)
        tensors = convert_state_dict_to_kohya(tensors)
    kind = _dtype(config.number_format)
    narrowed = {name: value.to(kind).contiguous() for name, value in tensors.items()}
    save_file(narrowed, folder / LORA_FILE, {"format": "pt"})


def _write_model(study: Study, config: WeightsConfig, folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from sayso.families._diffusers import DiffusersPolicy
    from sayso.families._loading import load_policy

    policy = load_policy(study, config.model, torch.device("cpu"))
    if not isinstance(policy, DiffusersPolicy):
        raise UserError(f"the family of {policy.name} is not written as a pipeline of diffusers")
    kind = _dtype(config.number_format)
    if config.layout == "pipeline":
        policy.pipeline().to(kind).save_pretrained(folder)
        return
    named = _original_names(policy)
    save_file(
        {name: value.to(kind).contiguous() for name, value in named.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )


def _original_names(policy: "DiffusersPolicy") -> "dict[str, torch.Tensor]":
    from sayso.families._single_file_names import original_names

    if policy.pipelines[0] not in WITH_ORIGINAL_NAMES:
        raise UserError(
            f"{policy.pipelines[0]} is not written as one file; give --layout pipeline, or lora "
            "for adapters"
        )
    return original_names(policy.network, policy.vae, list(policy.text.values()))


def _dtype(name: NumberFormat) -> "torch.dtype":
    import torch

    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[name]
