"""Stable Diffusion 1 and 2: one CLIP text encoder, eps or v prediction, zero-terminal-SNR too."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch

from sayso.families._conditions import Cond
from sayso.families._tiny import tiny_stable_diffusion
from sayso.families._unet import UNetPolicy


class StableDiffusion(UNetPolicy):
    """A folder that diffusers' StableDiffusionPipeline loads, used without the pipeline."""

    pipelines = ("StableDiffusionPipeline",)
    encoders: ClassVar = {"text_encoder": ("CLIPTextModel",)}
    tokenizers: ClassVar = {"tokenizer": "CLIPTokenizer"}

    @classmethod
    def tiny(cls, folder: Path) -> Path:
        return tiny_stable_diffusion(folder)

    @torch.no_grad()
    def encode_prompts(self, texts: Sequence[str]) -> Cond:
        tokens = self.tokens("tokenizer", texts)
        masked = getattr(self.configs["text_encoder"], "use_attention_mask", False)
        mask = tokens.attention_mask if masked else None
        return {"states": self.text["text_encoder"](tokens.input_ids, attention_mask=mask)[0]}
