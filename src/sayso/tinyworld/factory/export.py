"""Writes trained parts as the folders that diffusers and transformers load unchanged."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

from sayso.tinyworld.factory import clip
from sayso.tinyworld.factory.denoiser import NOISE_SCHEDULE, Denoiser
from sayso.tinyworld.factory.tokens import build_tokenizer
from sayso.tinyworld.scenes import VOCABULARY


def save_pipeline(folder: Path, vae: Any, denoiser: Denoiser) -> None:
    """Write the Stable Diffusion folder in fp16 safetensors."""
    build: Any = StableDiffusionPipeline
    pipeline = build(
        vae=vae,
        text_encoder=denoiser.text_encoder,
        tokenizer=build_tokenizer(VOCABULARY),
        unet=denoiser.unet,
        scheduler=DPMSolverMultistepScheduler(**NOISE_SCHEDULE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(dtype=torch.float16)
    pipeline.save_pretrained(folder, safe_serialization=True)
    _forget_origin(folder / "vae" / "config.json")


def _forget_origin(file: Path) -> None:
    """Remove the folder that diffusers noted the part was loaded from."""
    config = json.loads(file.read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def save_clip(folder: Path, model: Any) -> None:
    """Write the CLIP folder in fp16 safetensors, with tokenizer and image preprocessing."""
    model.half().save_pretrained(folder)
    build_tokenizer(VOCABULARY).save_pretrained(folder)
    clip.build_processor().save_pretrained(folder)
