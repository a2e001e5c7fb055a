"""Pipelines of diffusers in one file, under the names that the original code gave the weights."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from sayso.families._single_file_names import original_names


def write_single_file(pipeline: Any, file: Path, half: bool = False) -> Path:
    """Write a pipeline of Stable Diffusion or Stable Diffusion XL as it was published.

    Args:
        half: fp16 in place of fp32.
    """
    second = getattr(pipeline, "text_encoder_2", None)
    encoders = [pipeline.text_encoder, *([second] if second else [])]
    weights = original_names(pipeline.unet, pipeline.vae, encoders)
    kind = torch.float16 if half else torch.float32
    save_file({name: value.to(kind).contiguous() for name, value in weights.items()}, file)
    return file
