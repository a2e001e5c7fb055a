"""The flow-matching families on tiny folders, each beside its own pipeline of diffusers."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor

from sayso.base.plugins import load_plugin
from sayso.base.types import Sampler, Size
from sayso.base.weights import quiet_libraries
from sayso.families import Cond, Policy

FLOWS = ("sd3", "flux", "qwen_image", "z_image")
TEXTS = ["a red dog", "two blue cats sit on a mat"]
CPU = torch.device("cpu")
SQUARE = Size(32, 32)
T5_LENGTH = 48
"""What the tiny T5's tokenizer takes; the real ones take the pipeline's own limit."""


@dataclass(repr=False)
class Flow:
    """A family loaded from a folder, and diffusers' pipeline loaded from the same."""

    name: str
    folder: Path
    policy: Any
    pipeline: Any
    text: dict[str, Any] = field(default_factory=dict)

    def guided(self, sampler: Sampler) -> dict[str, Any]:
        """The pipeline's arguments for the sampler's guidance."""
        negative = {"negative_prompt": [sampler.negative_prompt] * len(TEXTS)}
        if self.name == "qwen_image":
            return {"true_cfg_scale": sampler.guidance_scale, **negative}
        scale = {"guidance_scale": sampler.guidance_scale}
        if self.name == "flux" and sampler.negative_prompt:
            return scale | negative | {"true_cfg_scale": sampler.true_cfg_scale}
        return scale if self.name == "flux" else scale | negative

    def draw(self, sampler: Sampler, seeds: list[int], output: str = "latent") -> Tensor:
        """The pipeline's pictures of `TEXTS`: their latents [b c h w], or pixels in [0, 1]."""
        made = self.pipeline(
            list(TEXTS), **self.text, **self.guided(sampler),
            width=sampler.image_size.width, height=sampler.image_size.height,
            num_inference_steps=sampler.num_inference_steps, output_type=output,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        ).images  # fmt: skip
        if output != "latent" or made.ndim == 4:
            return made
        width, height = sampler.image_size
        unpacked = self.pipeline._unpack_latents(
            made, height, width, self.pipeline.vae_scale_factor
        )
        return unpacked.squeeze(2) if unpacked.ndim == 5 else unpacked

    def ours(self, sampler: Sampler, seeds: list[int]) -> Tensor:
        cond, uncond = (self.policy.encode_prompts(t) for t in (TEXTS, [sampler.negative_prompt]))
        return self.policy.sample(cond, uncond, seeds, sampler)


def flow(name: str, folder: Path) -> Flow:
    """A tiny model of the family, twice."""
    kind = load_plugin("family", name, Policy)
    kind.tiny(folder)
    with quiet_libraries():
        pipeline: Any = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    text = {"max_sequence_length": T5_LENGTH} if name in ("sd3", "flux") else {}
    return Flow(name, folder, kind.load(folder, CPU), pipeline, text)


def rows(cond: Cond, i: int) -> Cond:
    """A text's condition alone, without what fills it up."""
    one = {key: value[i : i + 1] for key, value in cond.items()}
    if "mask" in one:
        n = int(one["mask"].sum())
        one = {key: value[:, :n] for key, value in one.items()}
    return one


def sampler(scale: float = 4.0, size: Size = SQUARE, negative: str = "") -> Sampler:
    return Sampler(5, scale, 0.0, size, negative)
