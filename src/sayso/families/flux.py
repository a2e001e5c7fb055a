"""FLUX.1 dev: T5 states and CLIP's pooled state, and a transformer that is told its guidance."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sayso.base.errors import UserError
from sayso.base.types import Sampler
from sayso.families._conditions import Cond
from sayso.families._flow import FlowPolicy, pack, unpack
from sayso.families._folder import refuse_few_steps
from sayso.families._tiny_flow import tiny_flux

GUIDANCE = 3.5
"""The guidance scale that the network is told where no sampler says another: diffusers' default."""


class Flux(FlowPolicy):
    """A folder that diffusers' FluxPipeline loads, used without the pipeline.

    The network is told a guidance scale, with which it was distilled: one evaluation a step. It is
    the sampler's `guidance_scale`, while drawing as well as while training. With a negative prompt
    and a `true_cfg_scale` it is guided as other models are, besides.
    """

    pipelines = ("FluxPipeline",)
    network_class = "FluxTransformer2DModel"
    told_guidance = True
    encoders: ClassVar = {"text_encoder": ("CLIPTextModel",), "text_encoder_2": ("T5EncoderModel",)}
    tokenizers: ClassVar = {"tokenizer": "CLIPTokenizer", "tokenizer_2": "T5Tokenizer"}

    @classmethod
    def tiny(cls, folder: Path) -> Path:
        return tiny_flux(folder)

    def check_network(self, config: Any, where: Path) -> None:
        taken, made = config.in_channels, config.out_channels or config.in_channels
        if taken != made:
            raise UserError(
                f"{where} takes {taken} channels and gives {made}: it is for inpainting or "
                "editing; give FLUX.1 dev"
            )
        if not config.guidance_embeds:
            refuse_few_steps(
                where, "has no guidance_embeds, like FLUX.1 schnell", "FLUX.1 dev, or a LoRA on it"
            )

    def strangers(self) -> dict[str, bool]:
        network = self.configs["transformer"]
        pooled = self.configs["text_encoder"].hidden_size
        states = self.configs["text_encoder_2"].d_model
        return {
            f"text_encoder gives {pooled} pooled numbers, transformer takes "
            f"{network.pooled_projection_dim}": pooled != network.pooled_projection_dim,
            f"text_encoder_2 gives {states} numbers a word, transformer takes "
            f"{network.joint_attention_dim}": states != network.joint_attention_dim,
        } | super().strangers()

    def packed_channels(self) -> int:
        return super().packed_channels() // 4

    # text

    @torch.no_grad()
    def encode_prompts(self, texts: Sequence[str]) -> Cond:
        length = self.tokenizers_of["tokenizer"].model_max_length
        clip = self.tokens("tokenizer", texts, length).input_ids
        t5 = self.tokens("tokenizer_2", texts).input_ids
        return {
            "states": self.text["text_encoder_2"](t5)[0],
            "pooled": self.text["text_encoder"](clip).pooler_output,
        }

    # network

    @classmethod
    def guidance(cls, sampler: Sampler) -> float | None:
        return sampler.true_cfg_scale if sampler.true_cfg_scale > 1 else None

    def with_sampler(self, cond: Cond, sampler: Sampler) -> Cond:
        told = cond["pooled"].new_full((len(cond["pooled"]),), sampler.guidance_scale)
        return {**cond, "guidance": told}

    def check_sampler(self, sampler: Sampler) -> None:
        super().check_sampler(sampler)
        if sampler.negative_prompt and sampler.true_cfg_scale == 1:
            raise UserError(
                f"negative_prompt {sampler.negative_prompt!r} would change nothing: {self.name} "
                "is told its guidance scale; give a --true-cfg-scale above 1, at twice the time, "
                "or no negative prompt"
            )

    def predict(
        self, noisy: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], cond: Cond
    ) -> Float[Tensor, "b c h w"]:
        states = cond["states"].to(self.dtype)
        velocity = self.network(
            pack(noisy.to(self.dtype)),
            timestep=t,
            guidance=cond.get("guidance", torch.full_like(t, GUIDANCE)),
            encoder_hidden_states=states,
            pooled_projections=cond["pooled"].to(self.dtype),
            txt_ids=states.new_zeros(states.shape[1], 3),
            img_ids=_places(noisy),
            return_dict=False,
        )[0]
        return unpack(velocity, noisy)


def _places(latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "tokens 3"]:
    """Of each token: 0, its row and its column."""
    h, w = (torch.arange(side // 2, device=latents.device) for side in latents.shape[-2:])
    row, column = torch.meshgrid(h, w, indexing="ij")
    return torch.stack([torch.zeros_like(row), row, column], dim=-1).flatten(0, 1).float()
