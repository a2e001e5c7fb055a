"""What flow-matching families have in common: the straight path, its shifted times, Euler's steps.

Noisy latents are (1 − t) · image + t · noise, and the network predicts the velocity noise − image.
"""

import copy
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from sayso.base.errors import UserError
from sayso.base.samplers import TimestepSampling
from sayso.base.types import Sampler, Size
from sayso.base.weights import quiet_libraries, readable
from sayso.families._conditions import Cond, for_rows
from sayso.families._diffusers import DiffusersPolicy
from sayso.families._schedule import Kind
from sayso.study.pipelines import PIPELINES, Reader

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
JOINT_ATTENTION = (*ATTENTION, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
"""Layers of attention over image and text together; the second four are the text's."""
CHANGED = {"stochastic_sampling": False, "invert_sigmas": False}
"""What a scheduler's file must say, if it says anything of it, for Euler's steps from noise."""


class FlowPolicy(DiffusersPolicy):
    """A transformer that predicts velocities, drawn with Euler's method.

    The times, shifted as the model's scheduler says, are computed by diffusers' scheduler, once and
    in fp32; the steps between them are made here.
    """

    kind: Kind = "velocity"
    network_kind = "transformer"
    network_part = "transformer"
    lora_targets = JOINT_ATTENTION
    timestep_sampling: TimestepSampling = "grid"
    patch = 2
    gives_sigmas: bool = True
    """Whether the family's pipeline gives the scheduler unshifted times from 1 down to 1 / n. If it
    does not, the scheduler shifts times that end at its own, shifted, least one: a static shift
    counts twice there."""

    @classmethod
    def read_scheduler(cls, path: Path, name: str) -> Any:
        where, wanted = path / "scheduler", FlowMatchEulerDiscreteScheduler.__name__
        if name != wanted:
            raise UserError(
                f"{where} is a {name}; sayso draws {cls.pipelines[0]} with {wanted}: name it in "
                f"{path / 'model_index.json'}"
            )
        with readable(where, "restore the folder"), quiet_libraries():
            scheduler: Any = FlowMatchEulerDiscreteScheduler.from_pretrained(
                path, subfolder="scheduler"
            )
        other = [name for name, value in CHANGED.items() if scheduler.config.get(name) != value]
        if other:
            raise UserError(
                f"{where} has {other[0]}, which sayso does not draw with; give the model's own file"
            )
        return scheduler

    def strangers(self) -> dict[str, bool]:
        made, taken = self.channels, self.packed_channels()
        return {
            f"vae makes latents of {made} channels, transformer takes {taken}": made != taken
        } | super().strangers()

    def packed_channels(self) -> int:
        """Channels of the latents that the network was made for."""
        return self.configs["transformer"].in_channels

    def most_tokens(self) -> int | None:
        """The most tokens along a side of an image that the network has places for; None = any."""
        return None

    def latent_shape(self, size: Size) -> tuple[int, int, int]:
        c, h, w = super().latent_shape(size)
        most = self.most_tokens()
        if most and max(h, w) > most * self.patch:
            raise UserError(
                f"image_size {size} is not possible with this model, which draws at most "
                f"{most * self.patch * self.pixels_per_latent} pixels a side"
            )
        return c, h, w

    # text

    @property
    def reader(self) -> Reader:
        """What sets how long a text may be: of several tokenizers the one that reads all of it."""
        readers = PIPELINES[self.pipelines[0]].readers
        return next(reader for reader in readers if reader.tokenizer in self.tokenizers_of)

    def limits(self) -> dict[str, int]:
        reader = self.reader
        return {reader.tokenizer: min(reader.most, super().limits()[reader.tokenizer])}

    def written(self, texts: Sequence[str]) -> list[str]:
        return self.reader.written(self.tokenizers_of[self.reader.tokenizer], texts)

    # times

    def alpha_sigma(
        self, t: Float[Tensor, " b"]
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        return 1 - t, t

    def grid(self, sampler: Sampler) -> Float[Tensor, " n"]:
        scheduler, n = copy.deepcopy(self.scheduler), sampler.num_inference_steps
        dynamic = scheduler.config.use_dynamic_shifting
        mu = {"mu": self._shift(sampler)} if dynamic else {}
        sigmas = {"sigmas": np.linspace(1.0, 1 / n, n)} if self.gives_sigmas else {}
        with np.errstate(invalid="ignore"):  # NaN is refused by `check_sampler`
            scheduler.set_timesteps(n, **sigmas, **mu)
        return scheduler.sigmas

    def draw_t(
        self, b: int, generator: torch.Generator, sampler: Sampler | None = None
    ) -> Float[Tensor, " b"]:
        """As `Policy.draw_t`; uniform and logit-normal times are shifted as inference shifts."""
        sampler = sampler or Sampler()
        t = super().draw_t(b, generator, sampler)
        scheduler = self.scheduler
        if self.timestep_sampling == "grid":
            return t
        if scheduler.config.use_dynamic_shifting:
            return scheduler.time_shift(self._shift(sampler), 1.0, t)
        return scheduler.shift * t / (1 + (scheduler.shift - 1) * t)

    def _shift(self, sampler: Sampler) -> float:
        """The logarithm of the shift for images of the sampler's size, linear in their tokens."""
        _, h, w = self.latent_shape(sampler.image_size)
        config, tokens = self.scheduler.config, h * w // self.patch**2
        slope = (config.max_shift - config.base_shift) / (
            config.max_image_seq_len - config.base_image_seq_len
        )
        return config.base_shift + slope * (tokens - config.base_image_seq_len)

    def check_sampler(self, sampler: Sampler) -> None:
        super().check_sampler(sampler)
        if sampler.eta:
            raise UserError(
                f"eta {sampler.eta} would change nothing: {self.name} is drawn with Euler's "
                "method, which adds no noise; give --eta 0"
            )
        times = self.grid(sampler)
        if not (times.diff() < 0).all():
            raise UserError(
                f"the model's scheduler has no {sampler.num_inference_steps} times; choose another "
                "--num-inference-steps"
            )

    # drawing

    @torch.no_grad()
    def sample(
        self, cond: Cond, uncond: Cond, seeds: Sequence[int], sampler: Sampler
    ) -> Float[Tensor, "b c h w"]:
        cond, uncond = (self.with_sampler(c, sampler) for c in (cond, uncond))
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        x, b = self.start_noise(generators, sampler), len(seeds)
        times, without = self.grid(sampler).to(self.device), for_rows(uncond, b)
        for t, s in pairwise(times):
            velocity = self.under(sampler, x, t.expand(b), cond, without)
            x = x + (s - t) * velocity.float()
        return x


def pack(latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b tokens channels"]:
    """Latents as a sequence, each token 2 × 2 of them, row by row."""
    return pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)


def unpack(
    tokens: Float[Tensor, "b tokens channels"], like: Float[Tensor, "b c h w"]
) -> Float[Tensor, "b c h w"]:
    """The latents that `pack` made a sequence of, of the height and width of `like`."""
    h, w = (side // 2 for side in like.shape[-2:])
    return pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (h, w)), 2)


def states_of_texts(policy: FlowPolicy, texts: Sequence[str], layer: int) -> Cond:
    """States of a language model of one of its layers: those of each text alone, filled up.

    Args:
        policy: its tokenizer, its text encoder and what they are given (`written`).
        layer: as Python counts, −1 the last.
    """
    tokenizer, limit = policy.tokenizers_of["tokenizer"], policy.limits()["tokenizer"]
    tokens = tokenizer(
        policy.written(texts), padding=True, padding_side="right", max_length=limit,
        truncation=True, return_tensors="pt",
    ).to(policy.device)  # fmt: skip
    encoder = policy.text["text_encoder"]
    # on the meta device nothing can look into a mask; without the head that says the next word
    given = {**tokens} if policy.device.type != "meta" else {"input_ids": tokens.input_ids}
    out = getattr(encoder, "model", encoder)(**given, output_hidden_states=True)
    mask = tokens.attention_mask.bool()
    states = out.hidden_states[layer].masked_fill(~mask.unsqueeze(-1), 0.0)
    return {"states": states, "mask": mask}


def trimmed(cond: Cond) -> tuple[Tensor, Tensor | None]:
    """States and mask without what all rows leave out; no mask if no row leaves anything out."""
    lengths = cond["mask"].sum(1)
    longest, shortest = int(lengths.max()), int(lengths.min())
    mask = cond["mask"][:, :longest] if shortest < longest else None
    return cond["states"][:, :longest], mask
