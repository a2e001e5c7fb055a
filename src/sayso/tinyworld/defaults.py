"""What a study of the tiny world takes for granted: sampler, caption noise, number of prompts."""

from collections.abc import Mapping

from sayso.base.types import Sampler, Size
from sayso.tinyworld.scenes import CaptionNoise

SAMPLER = Sampler(num_inference_steps=6, guidance_scale=3.0, eta=0.0, image_size=Size(64, 64))

CAPTION_NOISE = CaptionNoise(
    omit_count=0.35,
    wrong_count=0.57,
    omit_colour=0.2,
    wrong_colour=0.42,
    omit_background=0.2,
    wrong_background=0.4,
)
"""How careless the captions were that the shipped denoiser learned from last."""

PROMPTS: Mapping[str, int] = {"train": 160, "seen": 32, "unseen": 32}
"""Prompts per split: few enough for a demo of minutes, enough for every value of every slot."""
