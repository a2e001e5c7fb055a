"""Low-rank adapters of a run of align: written for diffusers, merged into the network."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers

from sayso.base.weights import read_tensors, readable, refuse_differences

LORA_FILE = "pytorch_lora_weights.safetensors"
REMAKE = "make the run anew: sayso align under another --name"
OLDER = {".lora.down.weight": ".lora_A.weight", ".lora.up.weight": ".lora_B.weight"}
"""diffusers' names for the halves of a U-Net's adapters → peft's."""


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
    with readable(file, REMAKE):
        network.load_lora_adapter(file, prefix=part)
    network.fuse_lora()
    network.unload_lora()
