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
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

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
    tokenizer = clip_tokenizer(folder / "vocabulary")
    pipeline = _PIPELINE(
        vae=_vae(), unet=tiny_unet(), text_encoder=clip_text(len(tokenizer)),
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


def _vae() -> AutoencoderKL:
    return _VAE(
        block_out_channels=(8, 8), latent_channels=4, norm_num_groups=4, sample_size=32,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip


def clip_text(vocabulary: int, layers: int = 1, *, projected: bool = False) -> Any:
    """A CLIP text encoder, with or without the projection of its pooled state."""
    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    return kind(CLIPTextConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=64, num_hidden_layers=layers,
        num_attention_heads=2, max_position_embeddings=40, projection_dim=32,
        bos_token_id=vocabulary - 2, eos_token_id=vocabulary - 1, pad_token_id=vocabulary - 1,
    ))  # fmt: skip


def clip_tokenizer(folder: Path) -> CLIPTokenizer:
    folder.mkdir(parents=True)
    tokens = [c + end for end in ("", "</w>") for c in LETTERS]
    vocabulary = {t: i for i, t in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=40)
