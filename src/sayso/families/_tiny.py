"""Random models of a few thousand weights in diffusers' layout, made from configs, for tests."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

SCHEDULERS = {"dpm": DPMSolverMultistepScheduler, "ddim": DDIMScheduler}
# diffusers types these narrower than it takes them
_PIPELINE: Any = StableDiffusionPipeline
_VAE: Any = AutoencoderKL
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


def tiny_stable_diffusion(
    folder: Path, scheduler: str = "dpm", prediction_type: str = "epsilon"
) -> Path:
    """Write the pipeline to `folder`: 32-pixel images, 16×16×4 latents, letters as tokens."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer(folder / "vocabulary")
    pipeline = _PIPELINE(
        vae=tiny_vae(), unet=tiny_unet(), text_encoder=tiny_clip_text(len(tokenizer)),
        tokenizer=tokenizer,
        scheduler=SCHEDULERS[scheduler](
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
            prediction_type=prediction_type, steps_offset=1,
            **({"clip_sample": False, "set_alpha_to_one": False} if scheduler == "ddim" else {}),
        ),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder


def tiny_unet(**changes: Any) -> UNet2DConditionModel:
    options: dict[str, Any] = {
        "sample_size": 16, "in_channels": 4, "out_channels": 4, "layers_per_block": 1,
        "block_out_channels": (32, 64), "norm_num_groups": 8, "cross_attention_dim": 32,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 2,
    }  # fmt: skip
    return UNet2DConditionModel(**options | changes)


def tiny_vae(**changes: Any) -> AutoencoderKL:
    """Autoencoder of 4 channels, two pixels for a latent."""
    options: dict[str, Any] = {
        "block_out_channels": (8, 8), "latent_channels": 4, "norm_num_groups": 4, "sample_size": 32,
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    }  # fmt: skip
    return _VAE(**options | changes)


def tiny_clip_text(vocabulary: int, kind: Any = CLIPTextModel, **changes: Any) -> Any:
    """Text encoder of 32 numbers a token and 40 tokens; `kind` may be one with a projection."""
    options: dict[str, Any] = {
        "vocab_size": vocabulary, "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 40,
        "projection_dim": 32, "bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1,
        "pad_token_id": vocabulary - 1,
    }  # fmt: skip
    return kind(CLIPTextConfig(**options | changes))


def tiny_tokenizer(folder: Path) -> CLIPTokenizer:
    """Letters and figures as tokens, 40 at most; its files go to `folder`."""
    folder.mkdir(parents=True)
    tokens = [c + end for end in ("", "</w>") for c in LETTERS]
    vocabulary = {t: i for i, t in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=40)
