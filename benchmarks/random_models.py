"""Models of a published architecture with random weights, for the benchmarks."""

from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from sayso.families._published import Published, write_published


def random_folder(model: Published, folder: Path, device: torch.device) -> Path:
    """Write a pipeline with random weights in fp32, part after part; each is made on the device."""
    write_published(model, folder)
    for part, (library, kind, config) in model.parts.items():
        if "Tokenizer" in kind or "Scheduler" in kind:
            continue
        found: Any = getattr(diffusers if library == "diffusers" else transformers, kind)
        torch.manual_seed(0)
        with device:
            made = (
                found.from_config(config)
                if library == "diffusers"
                else found(found.config_class(**config))
            )
        made.save_pretrained(folder / part)
    return folder
