"""Qwen-Image: states of Qwen2.5-VL under a fixed instruction, a transformer on packed latents."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sayso.base.errors import UserError
from sayso.base.files import JsonObject
from sayso.families._conditions import Cond
from sayso.families._flow import (
    FlowPolicy,
    pack,
    states_of_texts,
    trimmed,
    unpack,
)
from sayso.families._folder import refuse_few_steps
from sayso.families._tiny_flow import tiny_qwen_image
from sayso.study.pipelines import INSTRUCTION_TOKENS

OTHER_MODELS = ("zero_cond_t", "use_additional_t_cond", "use_layer3d_rope")
"""Set in the transformers of Qwen-Image-Edit and Qwen-Image-Layered."""


IDLE = ("txt_norm2", "txt_mlp", "attn.add_q_proj", "attn.norm_added_q", "attn.to_add_out")
"""Parts of a block that only its text after it depends on."""


class QwenImage(FlowPolicy):
    """A folder that diffusers' QwenImagePipeline loads, used without the pipeline.

    The sampler's `guidance_scale` is the pipeline's `true_cfg_scale`.
    """

    pipelines = ("QwenImagePipeline",)
    network_class = "QwenImageTransformer2DModel"
    encoders: ClassVar = {"text_encoder": ("Qwen2_5_VLForConditionalGeneration",)}
    tokenizers: ClassVar = {"tokenizer": "Qwen2Tokenizer"}

    @classmethod
    def tiny(cls, folder: Path) -> Path:
        return tiny_qwen_image(folder)

    def check_network(self, config: Any, where: Path) -> None:
        found = [name for name in OTHER_MODELS if config.get(name)]
        if found:
            raise UserError(f"{where} has {found[0]}: it is for editing or layers; give Qwen-Image")
        if config.guidance_embeds:
            refuse_few_steps(where, "has guidance_embeds", "Qwen-Image")

    def strangers(self) -> dict[str, bool]:
        states = self.configs["text_encoder"].text_config.hidden_size
        taken = self.configs["transformer"].joint_attention_dim
        return {
            f"text_encoder gives {states} numbers a word, transformer takes {taken}": (
                states != taken
            )
        } | super().strangers()

    def packed_channels(self) -> int:
        return super().packed_channels() // 4

    def prepare(self, index: JsonObject) -> None:
        super().prepare(index)
        self._freeze_idle()

    def add_lora(self, rank: int, seed: int) -> None:
        super().add_lora(rank, seed)
        self._freeze_idle()

    def _freeze_idle(self) -> None:
        """Freeze what makes the last block's text, which nothing reads: it has no gradient."""
        network: Any = self.network
        if network is not None:
            last = network.transformer_blocks[-1]
            for name, parameter in last.named_parameters():
                if name.startswith(IDLE):
                    parameter.requires_grad_(False)

    # images: the autoencoder is one of films, of which an image is the first frame

    def vae_factor(self) -> int:
        return 2 ** len(self.configs["vae"].temperal_downsample)

    def vae_encode(self, pixels: Float[Tensor, "b 3 H W"]) -> Tensor:
        return self.vae.encode(pixels.unsqueeze(2)).latent_dist.mode().squeeze(2)

    def vae_decode(self, latents: Float[Tensor, "b c h w"]) -> Tensor:
        return self.vae.decode(latents.unsqueeze(2)).sample.squeeze(2)

    # text

    @torch.no_grad()
    def encode_prompts(self, texts: Sequence[str]) -> Cond:
        cond = states_of_texts(self, texts, layer=-1)
        return {key: value[:, INSTRUCTION_TOKENS:] for key, value in cond.items()}

    # network

    def combine(self, within: Tensor, without: Tensor, scale: float | Tensor) -> Tensor:
        """Guidance that leaves each token as long as it was without: the pipeline's."""
        one, guided = pack(within), pack(super().combine(within, without, scale))
        length, now = (x.norm(dim=-1, keepdim=True) for x in (one, guided))
        return unpack(guided * (length / now.clamp(min=torch.finfo(now.dtype).tiny)), within)

    def predict(
        self, noisy: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], cond: Cond
    ) -> Float[Tensor, "b c h w"]:
        states, mask = trimmed(cond)
        h, w = (side // 2 for side in noisy.shape[-2:])
        velocity = self.network(
            pack(noisy.to(self.dtype)),
            timestep=t,
            encoder_hidden_states=states.to(self.dtype),
            encoder_hidden_states_mask=mask,
            img_shapes=[[(1, h, w)]] * len(noisy),
            return_dict=False,
        )[0]
        return unpack(velocity, noisy)
