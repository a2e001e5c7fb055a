"""Stable Diffusion XL: two CLIP text encoders side by side, and sizes as conditions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from sayso.base.files import JsonObject
from sayso.families._conditions import Cond
from sayso.families._tiny import tiny_clip_text, tiny_tokenizer, tiny_unet, tiny_vae
from sayso.families._unet import UNetPolicy

SIZES = 6
"""Numbers that say an image's sizes: height and width of the original, top and left of the crop,
height and width that are drawn."""


class StableDiffusionXL(UNetPolicy):
    """A folder that diffusers' StableDiffusionXLPipeline loads, used without the pipeline.

    Conditions are the states of both text encoders' last layer but one, joined, and the second's
    pooled state. Images are told to be uncropped originals of the size that is drawn.
    """

    pipelines = ("StableDiffusionXLPipeline",)
    encoders: ClassVar = {
        "text_encoder": ("CLIPTextModel",),
        "text_encoder_2": ("CLIPTextModelWithProjection",),
    }
    tokenizers: ClassVar = {"tokenizer": "CLIPTokenizer", "tokenizer_2": "CLIPTokenizer"}
    added_inputs = "text_time"

    def prepare(self, index: JsonObject) -> None:
        super().prepare(index)
        self.empty_is_zero: bool = index.get("force_zeros_for_empty_prompt", True)
        """Whether the model was trained with zeros where there is no prompt."""

    @classmethod
    def tiny(cls, folder: Path) -> Path:
        from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline
        from transformers import CLIPTextModelWithProjection

        torch.manual_seed(0)
        tokenizer = tiny_tokenizer(folder / "vocabulary")
        # diffusers types the scheduler narrower than it takes it
        build: Any = StableDiffusionXLPipeline
        pipeline = build(
            vae=tiny_vae(scaling_factor=0.13025),
            unet=tiny_unet(
                cross_attention_dim=32 + 48, addition_embed_type="text_time",
                addition_time_embed_dim=8, projection_class_embeddings_input_dim=SIZES * 8 + 24,
                use_linear_projection=True, transformer_layers_per_block=(1, 2),
            ),
            text_encoder=tiny_clip_text(len(tokenizer), num_hidden_layers=2),
            text_encoder_2=tiny_clip_text(
                len(tokenizer), CLIPTextModelWithProjection, hidden_size=48, projection_dim=24,
                num_hidden_layers=2, hidden_act="gelu",
            ),
            tokenizer=tokenizer, tokenizer_2=tokenizer,
            scheduler=EulerDiscreteScheduler(
                beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                timestep_spacing="leading", steps_offset=1,
            ),
            add_watermarker=False,
        )  # fmt: skip
        pipeline.save_pretrained(folder)
        return folder

    def strangers(self) -> dict[str, bool]:
        unet, second = self.configs["unet"], self.configs["text_encoder_2"]
        given = SIZES * unet.addition_time_embed_dim + second.projection_dim
        wanted = unet.projection_class_embeddings_input_dim
        said = f"text_encoder_2 and sizes give {given} numbers an image, unet takes {wanted}"
        return super().strangers() | {said: given != wanted}

    @torch.no_grad()
    def encode_prompts(self, texts: Sequence[str]) -> Cond:
        states, pooled = [], torch.empty(0)
        for part, tokenizer in zip(self.encoders, self.tokenizers, strict=True):
            ids = self.tokens(tokenizer, texts).input_ids
            encoded = self.text[part](ids, output_hidden_states=True)
            states.append(encoded.hidden_states[-2])
            pooled = encoded[0]
        cond = {"states": torch.cat(states, dim=-1), "pooled": pooled}
        if self.empty_is_zero:
            empty = torch.tensor([not text for text in texts], device=self.device)
            for value in cond.values():
                value[empty] = 0
        return cond

    def added(self, noisy: Tensor, cond: Cond) -> dict[str, Any]:
        h, w = (side * self.pixels_per_latent for side in noisy.shape[-2:])
        sizes = torch.tensor([h, w, 0, 0, h, w], dtype=torch.float32, device=noisy.device)
        pooled = cond["pooled"].to(noisy.dtype)
        return {
            "added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes.repeat(len(noisy), 1)}
        }
