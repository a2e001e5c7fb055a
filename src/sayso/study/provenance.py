"""What a run was computed with: the device, and hash and licence of every model that was loaded."""

import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from sayso.base.files import JsonObject, read_json
from sayso.base.hashes import MADE_OF, weight_hashes

VARIABLES = (
    "ACCELERATE_", "ATEN_", "CUBLAS_", "CUDA_", "DNNL_", "KMP_", "MKL_", "NVIDIA_TF32", "OMP_",
    "ONEDNN_", "PYTORCH_", "TORCH_",
)  # fmt: skip
"""Beginnings of the variables of the environment that can change how a machine rounds."""

if TYPE_CHECKING:
    from accelerate import Accelerator


def computed_on(accelerator: "Accelerator") -> JsonObject:
    """The device, its number format and the number of processes and of processors."""
    import torch

    device = accelerator.device
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else f"{device} {platform.machine()}",
        "processors": os.cpu_count(),
        "platform": platform.platform(),
        "mixed_precision": accelerator.mixed_precision,
        "processes": accelerator.num_processes,
        **rounding(),
    }


def rounding() -> JsonObject:
    """What decides the last bits of a result on one machine."""
    import torch

    return {
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "variables": {n: v for n, v in sorted(os.environ.items()) if n.startswith(VARIABLES)},
    }


def loaded(folders: Iterable[Path]) -> list[JsonObject]:
    """Folder, licence and the SHA-256 of each safetensors file of every model folder.

    Of one that sayso made of a single file or with a LoRA, what it was made of too.
    """
    return [
        {"folder": str(folder), "licence": licence(folder), "sha256": weight_hashes(folder)}
        | ({"made_of": read_json(folder / MADE_OF)} if (folder / MADE_OF).is_file() else {})
        for folder in folders
    ]


def licence(folder: Path) -> str | None:
    """The licence that the folder's model card (README.md) names; None if it names none."""
    from huggingface_hub import ModelCard

    card = folder / "README.md"
    if not card.is_file():
        return None
    try:
        named = ModelCard.load(card).data.to_dict().get("license")
    except Exception:  # a card is free text, and its header fails in as many ways as YAML
        return None
    return named if isinstance(named, str) else None
