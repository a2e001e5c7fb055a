"""Random models of a few thousand weights, and changes to their files."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sayso.families._tiny import LETTERS, tiny_unet
from sayso.families._tiny import tiny_stable_diffusion as tiny_pipeline

__all__ = ["LETTERS", "TEXT", "UNET", "VAE", "edit", "spoiled", "tiny_pipeline", "tiny_unet"]

UNET, VAE, TEXT = (
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
)
"""Where a folder keeps the weights of its parts."""
Tensors = dict[str, Tensor]


def edit(file: Path, change: Callable[[Tensors], Tensors]) -> None:
    """Change the tensors of a safetensors file."""
    save_file(change(load_file(file)), file, {"format": "pt"})


def spoiled(name: str, value: float) -> Callable[[Tensors], Tensors]:
    """A change that fills one tensor with a number."""
    return lambda tensors: tensors | {name: torch.full_like(tensors[name], value)}
