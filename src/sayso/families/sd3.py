"""Stable Diffusion 3 and 3.5: two CLIP text encoders and a T5, a joint transformer on latents."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from sayso.base.samplers import TimestepSampling
from sayso.families._conditions import Cond
from sayso.families._flow import FlowPolicy
from sayso.families._tiny_flow import tiny_sd3

NO_T5_TOKENS = 256
"""Zeros in place of the states of a T5, as many as the pipeline has."""


class StableDiffusion3(FlowPolicy):
    """A folder that diffusers' StableDiffusion3Pipeline loads, used without the pipeline.

    Its T5 may be missing; the states of its tokens are zeros then, as in the pipeline.
    """

    pipelines = ("StableDiffusion3Pipeline",)
    network_class = "SD3Transformer2DModel"
    encoders: ClassVar = {
        "text_encoder": ("CLIPTextModelWithProjection",),
        "text_encoder_2": ("CLIPTextModelWithProjection",),
        "text_encoder_3": ("T5EncoderModel",),
    }
    tokenizers: ClassVar = {
        "tokenizer": "CLIPTokenizer", "tokenizer_2": "CLIPTokenizer", "tokenizer_3": "T5Tokenizer"
    }  # fmt: skip
    optional = ("text_encoder_3",)
    timestep_sampling: TimestepSampling = "logit_normal"
    gives_sigmas = False

    @classmethod
    def tiny(cls, folder: Path) -> Path:
        return tiny_sd3(folder)

    def strangers(self) -> dict[str, bool]:
        network, configs = self.configs["transformer"], self.configs
        clips = ("text_encoder", "text_encoder_2")
        pooled = sum(configs[part].projection_dim for part in clips)
        wide = sum(configs[part].hidden_size for part in clips)
        states = network.joint_attention_dim
        t5 = configs["text_encoder_3"].d_model if "text_encoder_3" in configs else states
        return {
            f"text encoders give {pooled} pooled numbers, transformer takes "
            f"{network.pooled_projection_dim}": pooled != network.pooled_projection_dim,
            f"text encoders give {max(wide, t5)} numbers a word, transformer takes {states}": (
                t5 != states or wide > states
            ),
        } | super().strangers()

    def most_tokens(self) -> int | None:
        return self.configs["transformer"].pos_embed_max_size

    # text

    @torch.no_grad()
    def encode_prompts(self, texts: Sequence[str]) -> Cond:
        clips = [self._clip(number, texts) for number in ("", "_2")]
        states, pooled = (torch.cat(part, dim=-1) for part in zip(*clips, strict=True))
        t5 = self._t5(texts)
        states = pad(states, (0, t5.shape[-1] - states.shape[-1]))
        return {"states": torch.cat([states, t5.to(states.dtype)], dim=1), "pooled": pooled}

    def _clip(self, number: str, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """States before the last layer, and the projected pooled state."""
        length = self.tokenizers_of["tokenizer"].model_max_length
        ids = self.tokens(f"tokenizer{number}", texts, length).input_ids
        out = self.text[f"text_encoder{number}"](ids, output_hidden_states=True)
        return out.hidden_states[-2], out[0]

    def _t5(self, texts: Sequence[str]) -> Tensor:
        if "tokenizer_3" not in self.tokenizers_of:
            width = self.configs["transformer"].joint_attention_dim
            return torch.zeros(len(texts), NO_T5_TOKENS, width, device=self.device)
        return self.text["text_encoder_3"](self.tokens("tokenizer_3", texts).input_ids)[0]

    # network

    def predict(
        self, noisy: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], cond: Cond
    ) -> Float[Tensor, "b c h w"]:
        return self.network(
            noisy.to(self.dtype),
            timestep=t * 1000,
            encoder_hidden_states=cond["states"].to(self.dtype),
            pooled_projections=cond["pooled"].to(self.dtype),
            return_dict=False,
        )[0]
