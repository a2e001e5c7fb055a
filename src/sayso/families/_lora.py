"""Low-rank adapters: of a run of align, for diffusers and back; of others, on top of a base."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch

from sayso.base.devices import is_out_of_memory
from sayso.base.errors import UserError
from sayso.base.weights import (
    UNREADABLE,
    quiet_libraries,
    read_tensors,
    readable,
    reason_of,
    refuse_differences,
)

LORA_FILE = "pytorch_lora_weights.safetensors"
REMAKE = "make the run again: sayso align under another --name"
OF_THIS_MODEL = "give one that was trained on this model"
DORA = "dora_scale"
ON_TOP = "on_top"
"""The name of a LoRA's adapters while they are added to a base."""
OLDER = {".lora.down.weight": ".lora_A.weight", ".lora.up.weight": ".lora_B.weight"}
"""diffusers' names for the halves of a U-Net's adapters → peft's."""


def add_adapters(network: Any, targets: Sequence[str], rank: int, seed: int) -> None:
    """Freeze the network and put trainable adapters, in fp32, around its layers `targets`."""
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig

    network.requires_grad_(False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=[*targets]))
    cast_training_params(network)


def save_lora(network: Any, part: str, pipeline: str, folder: Path) -> None:
    """Write the adapters as `pipeline.load_lora_weights` reads them.

    Args:
        network: with adapters, not wrapped.
        part: its subfolder in the model's folder; the names of the weights begin with it.
        pipeline: the pipeline's class in diffusers.
        folder: where `LORA_FILE` goes.
    """
    from diffusers.utils.state_dict_utils import convert_state_dict_to_diffusers
    from peft import get_peft_model_state_dict

    layers = get_peft_model_state_dict(network)
    if part == "unet":  # as diffusers' own scripts write them
        layers = convert_state_dict_to_diffusers(layers)
    save = getattr(diffusers, pipeline).save_lora_weights
    save(str(folder), **{f"{part}_lora_layers": layers})


def merge_lora(network: Any, part: str, targets: Sequence[str], file: Path) -> None:
    """Add the adapters that `save_lora` wrote to the network's own weights.

    Raises: UserError: as `load_lora`.
    """
    load_lora(network, part, targets, file)
    network.fuse_lora()
    network.unload_lora()


def load_lora(network: Any, part: str, targets: Sequence[str], file: Path) -> None:
    """Put the adapters that `save_lora` wrote beside the network's own weights, in fp32.

    Others that are there stay and go on to count.

    Raises: UserError: if they are not exactly those of the network's layers `targets`.
    """
    names = read_tensors(file, REMAKE).keys()
    halves = OLDER.keys() if part == "unet" else OLDER.values()
    wanted = {
        f"{part}.{name}{half}"
        for name, _ in network.named_modules()
        if name.endswith(tuple(f".{target}" for target in targets))
        for half in halves
    }
    refuse_differences(file, wanted - names, names - wanted, advice=REMAKE)
    own = f"lora_{len(getattr(network, 'peft_config', {}))}"
    with readable(file, REMAKE):
        network.load_lora_adapter(file, prefix=part, adapter_name=own)
    network.set_adapters([*network.peft_config])
    for name, parameter in network.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()


def add_lora(pipeline: Any, file: Path, base: str) -> None:
    """Add a LoRA to the weights of a pipeline of diffusers.

    Args:
        pipeline: with its network and text encoders; they are changed in place.
        file: in the layout of diffusers, peft or kohya, or another that the pipeline converts.
        base: the model's name, for errors.
    Raises: UserError: if it is no LoRA of this model, down to the last weight.
    """
    from peft import get_peft_model_state_dict

    wrong = f"{file} is no LoRA of {base}"
    _refuse_dropped(file, read_tensors(file))
    where = {"pretrained_model_name_or_path_or_dict": str(file.parent), "weight_name": file.name}
    unet = getattr(pipeline, "unet", None)
    with quiet_libraries():
        try:
            found = pipeline.lora_state_dict(
                **where, **({"unet_config": unet.config} if unet else {})
            )
            pipeline.load_lora_weights(**where, adapter_name=ON_TOP)
        except UNREADABLE as error:
            if is_out_of_memory(error):
                raise
            raise UserError(f"{wrong} ({reason_of(error)}); {OF_THIS_MODEL}") from None
    names = found[0] if isinstance(found, tuple) else found
    given = sum(not name.endswith("alpha") for name in names)
    modules = [m for m in pipeline.components.values() if getattr(m, "peft_config", None)]
    taken = sum(len(get_peft_model_state_dict(module, adapter_name=ON_TOP)) for module in modules)
    if not taken or taken != given:
        raise UserError(
            f"{wrong}: {taken} of its {given} weights are of layers of the model; {OF_THIS_MODEL}"
        )
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()


def _refuse_dropped(file: Path, names: Collection[str]) -> None:
    """Refuse weights that diffusers would leave out without an error."""
    if any(name.endswith(DORA) for name in names):
        raise UserError(
            f"{file} is a DoRA, whose magnitudes would be lost; merge it into the model first"
        )
