"""Z-Image: states of Qwen3 under its chat template, one transformer over image and text."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sayso.base.errors import UserError
from sayso.families._conditions import Cond
from sayso.families._flow import ATTENTION, FlowPolicy, states_of_texts
from sayso.families._folder import refuse_few_steps
from sayso.families._tiny_flow import tiny_z_image

TURBO_SHIFT = 3.0
"""The static shift in the scheduler of Z-Image-Turbo; Z-Image has 6."""


class ZImage(FlowPolicy):
    """A folder that diffusers' ZImagePipeline loads, used without the pipeline.

    The sampler's `guidance_scale` is the pipeline's: 0 is no guidance, and s what is s + 1 in other
    families. The network counts time from noise to image and predicts image − noise.
    """

    pipelines = ("ZImagePipeline",)
    network_class = "ZImageTransformer2DModel"
    encoders: ClassVar = {"text_encoder": ("Qwen3Model", "Qwen3ForCausalLM")}
    tokenizers: ClassVar = {"tokenizer": "Qwen2Tokenizer"}
    lora_targets = ATTENTION
    no_guidance = 0.0

    @classmethod
    def tiny(cls, folder: Path) -> Path:
        return tiny_z_image(folder)

    @classmethod
    def read_scheduler(cls, path: Path, name: str) -> Any:
        scheduler = super().read_scheduler(path, name)
        if not scheduler.config.use_dynamic_shifting and scheduler.config.shift == TURBO_SHIFT:
            refuse_few_steps(path / "scheduler", "has the shift of Z-Image-Turbo, 3", "Z-Image")
        return scheduler

    def check_network(self, config: Any, where: Path) -> None:
        if config.siglip_feat_dim is not None:
            raise UserError(f"{where} takes images beside the text: it is Omni; give Z-Image")

    def strangers(self) -> dict[str, bool]:
        states = self.configs["text_encoder"].hidden_size
        taken = self.configs["transformer"].cap_feat_dim
        return {
            f"text_encoder gives {states} numbers a word, transformer takes {taken}": (
                states != taken
            )
        } | super().strangers()

    def most_tokens(self) -> int | None:
        return min(self.configs["transformer"].axes_lens[1:])

    # text

    @torch.no_grad()
    def encode_prompts(self, texts: Sequence[str]) -> Cond:
        return states_of_texts(self, texts, layer=-2)

    # network

    def combine(self, within: Tensor, without: Tensor, scale: float | Tensor) -> Tensor:
        return within + scale * (within - without)

    def predict(
        self, noisy: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], cond: Cond
    ) -> Float[Tensor, "b c h w"]:
        lengths: list[int] = cond["mask"].sum(1).tolist()
        texts = [s[:n] for s, n in zip(cond["states"].to(self.dtype), lengths, strict=True)]
        frames = [*noisy.to(self.dtype).unsqueeze(2)]
        return -torch.stack(self.network(frames, 1 - t, texts, return_dict=False)[0]).squeeze(2)
