"""Policy: the image model being trained, seen the same way whatever its family.

A family encodes, decodes and predicts, and says what its schedule and its inference times are. All
else is written once: guidance and rollouts here; noise, targets, conversions and the stochastic
step in `_scheduled.py`, their formulas in `_schedule.py`; the reference in `_older_selves.py`.
"""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sayso.base.errors import UserError
from sayso.base.samplers import TimestepSampling, checked
from sayso.base.types import Sampler, Size
from sayso.families import _schedule
from sayso.families._conditions import Cond, for_rows, join
from sayso.families._older_selves import OlderSelves
from sayso.families._schedule import Noise, mean_squared_error, noise_of, per_row
from sayso.families._scheduled import Scheduled

PARTS = ("network", "text", "vae")
"""What a model is made of; a process that only trains needs neither text encoder nor VAE."""
PIXELS_AT_ONCE = 512 * 512
"""Pixels that the autoencoder codes at a time, however large the batch. Stable Diffusion's needs
3 KiB a pixel in fp32 to decode (0.75 GiB for a picture of 512 × 512; 48 GiB for 64 of them) and
2.5 KiB to encode, and one such picture keeps a device busy."""


class Policy(OlderSelves, Scheduled):
    """One family of models behind one surface; a file of `families/` implements it.

    `t` is in [0, 1], 0 = image, 1 = noise, for every family. `kind` says what `predict` returns:
    the noise (eps), v, or the velocity noise − image. `network` is the module that training
    changes, `network_kind` its name in messages; everything else is frozen. `pipelines` lists the
    diffusers pipeline classes (`_class_name` in model_index.json) that the family loads,
    `lora_targets` the layers that get adapters. `timestep_sampling` says which times `draw_t`
    draws. `no_guidance` is the guidance scale that is none, `told_guidance` whether the network is
    told that scale as a number. `name` says which model it is, in messages. `network_call` is the
    method that every pass of the network goes through; its first argument has a row for each
    prediction.
    """

    pipelines: tuple[str, ...] = ()
    network_kind: str = "network"
    network_call: str = "predict"
    lora_targets: tuple[str, ...] = ()
    timestep_sampling: TimestepSampling = "uniform"
    no_guidance: float = 1.0
    told_guidance: bool = False
    name: str = "the model"
    dtype: torch.dtype = torch.float32
    """Number format of the weights in memory."""

    # what a family gives

    @classmethod
    @abstractmethod
    def load(
        cls,
        path: Path,
        device: torch.device,
        weights: Path | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        parts: Sequence[str] = PARTS,
    ) -> "Policy":
        """Load a folder in diffusers' layout, and a run's weights over it.

        Args:
            path: the folder.
            device: where the model lives.
            weights: what `save_weights` wrote, laid over the network.
            dtype: number format of the weights in memory.
            parts: which of `PARTS` to load.
        Raises: UserError: if the folder cannot be used.
        """

    @classmethod
    @abstractmethod
    def tiny(cls, folder: Path) -> Path:
        """Write a model of this family with a few thousand random weights, for tests.

        Returns: a folder that `load` reads.
        """

    @classmethod
    def evaluations(cls, path: Path, num_inference_steps: int) -> int:  # noqa: ARG003
        """How often the network is asked for a picture drawn in so many steps, without guidance.

        Args:
            path: the model's folder; only its small files are read.
        """
        return num_inference_steps

    @abstractmethod
    def latent_shape(self, size: Size) -> tuple[int, int, int]:
        """(c, h, w) of the latents of an image of that size.

        Raises: UserError: if the model cannot draw that size.
        """

    def check_sampler(self, sampler: Sampler) -> None:
        """Check that the model draws so, and that every field of the sampler changes the picture.

        A family whose schedulers ignore fields refuses those beside.

        Raises: UserError: naming the field.
        """
        checked(sampler, self.no_guidance, true_cfg=self.told_guidance)
        self.latent_shape(sampler.image_size)

    @abstractmethod
    def check_prompts(self, texts: Sequence[str]) -> None:
        """Check that every text fits the tokenizer.

        Raises: UserError: naming a text that would be cut, and the limit.
        """

    def is_cut(self, text: str) -> bool:
        """Whether the tokenizer would cut the text."""
        try:
            self.check_prompts([text])
        except UserError:
            return True
        return False

    @abstractmethod
    def encode_prompts(self, texts: Sequence[str]) -> Cond:
        """The conditions of b texts, without gradient."""

    @abstractmethod
    def encode_images(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
        """Latents, scaled as the network sees them, of images in [0, 1]; without gradient."""

    @abstractmethod
    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        """Images in [0, 1] of scaled latents; differentiable where not clipped.

        What the autoencoder makes infinite or NaN is NaN in the image.
        """

    @abstractmethod
    def predict(
        self, noisy: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], cond: Cond
    ) -> Float[Tensor, "b c h w"]:
        """What the network predicts, without guidance.

        Sign and time of the network are the family's affair: here a velocity is noise − image, and
        t is in [0, 1].
        """

    @abstractmethod
    def grid(self, sampler: Sampler) -> Float[Tensor, " n"]:
        """The times at which the sampler predicts, falling, and 0 at the end; fp32, on the CPU."""

    @abstractmethod
    def sample(
        self, cond: Cond, uncond: Cond, seeds: Sequence[int], sampler: Sampler
    ) -> Float[Tensor, "b c h w"]:
        """Draw one image's final latents for each seed, without gradient.

        Args:
            cond: conditions of the b prompts.
            uncond: conditions of the negative prompt, first dimension 1.
            seeds: one per row, ≥ 0; a row's noise depends on its own seed only.
            sampler: steps, guidance, eta and size.
        """

    @abstractmethod
    def save_weights(self, folder: Path) -> None:
        """Write the network (or its adapters) as safetensors in diffusers' layout."""

    @abstractmethod
    def load_weights(self, folder: Path) -> None:
        """Put what `save_weights` wrote over the network; adapters are merged into it.

        Raises: UserError: if the folder holds no such weights.
        """

    @classmethod
    def guidance(cls, sampler: Sampler) -> float | None:
        """The scale of classifier-free guidance that `combine` takes; None = no guidance.

        With guidance the network is asked twice in every step.
        """
        return sampler.guidance_scale if sampler.guidance_scale > cls.no_guidance else None

    def with_sampler(self, cond: Cond, sampler: Sampler) -> Cond:  # noqa: ARG002
        """The condition with what the network is told of how images are drawn, if anything.

        Training tells it the same, so that it learns as it will draw.
        """
        return cond

    def combine(self, within: Tensor, without: Tensor, scale: float | Tensor) -> Tensor:
        """Classifier-free guidance; overridden by families whose guidance is another.

        Source: Ho and Salimans 2022, arXiv 2207.12598, Eq. 6, with scale = 1 + w.
        """
        return without + scale * (within - without)

    def draw_t(
        self, b: int, generator: torch.Generator, sampler: Sampler | None = None
    ) -> Float[Tensor, " b"]:
        """Times to train at, one for each row, as `timestep_sampling` says.

        They are spread evenly over the b rows: less noise in the loss, the same expectation.

        Args:
            sampler: how images are drawn; "grid" takes its times.
        """
        u = (torch.randperm(b, generator=generator) + torch.rand(b, generator=generator)) / b
        grid = self.grid(sampler or Sampler())[:-1] if self.timestep_sampling == "grid" else None
        return _schedule.training_times(u, self.timestep_sampling, grid)

    @abstractmethod
    def release(self, part: str) -> None:
        """Give back the memory of a part, one of `PARTS`; what needs it cannot be called."""

    def move(self, part: str, device: torch.device) -> None:
        """Take a part, one of `PARTS`, to a device, to make room on another."""

    def checkpoint_decoder(self) -> None:
        """Let a gradient through `decode` recompute parts of it instead of storing them."""

    # the same for all

    def portion(self, size: Size) -> int:
        """How many images of that size to encode or decode at a time, ≥ 1."""
        return max(1, PIXELS_AT_ONCE // size.pixels)

    def guided(
        self,
        noisy: Float[Tensor, "b c h w"],
        t: Float[Tensor, " b"],
        cond: Cond,
        uncond: Cond,
        scale: float | Tensor,
    ) -> Float[Tensor, "b c h w"]:
        """The prediction with guidance, both halves in one pass; `uncond` has a row for each."""
        both = join([uncond, cond])
        without, within = self.predict(torch.cat([noisy, noisy]), t.repeat(2), both).chunk(2)
        return self.combine(within, without, scale)

    def under(
        self,
        sampler: Sampler,
        noisy: Float[Tensor, "b c h w"],
        t: Float[Tensor, " b"],
        cond: Cond,
        uncond: Cond,
    ) -> Float[Tensor, "b c h w"]:
        """The prediction with the sampler's guidance, if any."""
        scale = self.guidance(sampler)
        if scale is None:
            return self.predict(noisy, t, cond)
        return self.guided(noisy, t, cond, uncond, scale)

    @torch.no_grad()
    def rollout(
        self,
        cond: Cond,
        uncond: Cond,
        seeds: Sequence[int],
        sampler: Sampler,
        *,
        form: Noise = "ancestral",
        noisy_steps: range | None = None,
        steps: int | None = None,
        starts: Sequence[int] | None = None,
    ) -> "Rollout":
        """Draw an image for each seed by `transition`, and keep the way that it took.

        With `sampler.eta` 0 the images are DDIM's. Start and steps of a row draw their noise from
        a generator of its own seed, so a row does not depend on the others.

        Args:
            cond: conditions of the b prompts.
            uncond: conditions of the negative prompt, first dimension 1.
            seeds: one per row, ≥ 0.
            sampler: steps, guidance, eta and size.
            form: see `_schedule.step_noise`.
            noisy_steps: which steps have the fresh noise of `sampler.eta`, in a row; the others are
                DDIM's; None = all but the last, which never has noise.
            steps: how many steps to make, from the first; None = all, to the image.
            starts: seeds of the noise that each row starts from; None = its own.
        """
        cond, uncond = (self.with_sampler(c, sampler) for c in (cond, uncond))
        shape, b, generators = self.latent_shape(sampler.image_size), len(seeds), _seeded(seeds)
        times, without = self.grid(sampler).to(self.device), for_rows(uncond, b)
        x = noise_of(generators, shape, self.device)
        if starts is not None:
            # in place of its own, which its generator has given, so that no step has it again
            x = noise_of(_seeded(starts), shape, self.device)
        way, means, log_probs = [x[None]], [x[None][:0]], [x.new_zeros(0, b)]
        noisy = range(len(times) - 2) if noisy_steps is None else noisy_steps
        for k in range(len(times) - 1 if steps is None else steps):
            t, s, eta = times[k].expand(b), times[k + 1].expand(b), sampler.eta * (k in noisy)
            prediction = self.under(sampler, x, t, cond, without)
            mean, std = self.transition(x, prediction, t, s, eta, form)
            x = mean
            if eta:
                x = mean + per_row(std, mean) * noise_of(generators, shape, self.device)
                means.append(mean[None])
            log_probs.append(_schedule.log_prob(x, mean, std)[None])
            way.append(x[None])
        whole, added = torch.cat(way), torch.cat(means)
        return Rollout(x, whole, added, times[: len(way)], torch.cat(log_probs))

    def denoising_error(
        self,
        latents: Float[Tensor, "b c h w"],
        cond: Cond,
        t: Float[Tensor, " b"],
        noise: Float[Tensor, "b c h w"],
    ) -> Float[Tensor, " b"]:
        """Mean squared error of the prediction per example: the stand-in for −log p.

        The mean runs over c, h and w, so a batch's mean equals diffusers' training loss.
        Source: Ho et al. 2020, arXiv 2006.11239, Eq. 14, with the target of the model.
        """
        prediction = self.predict(self.add_noise(latents, noise, t), t, cond)
        return mean_squared_error(prediction, self.target(latents, noise, t))

    def add_lora(self, rank: int, seed: int) -> None:
        """Freeze the network and add trainable low-rank adapters of that rank, ≥ 1, in fp32."""
        from sayso.families._lora import add_adapters

        add_adapters(self.network, self.lora_targets, rank, seed)


def _seeded(seeds: Sequence[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


class Rollout(NamedTuple):
    """Images drawn by `Policy.rollout`, and how: n steps, so n + 1 times.

    `way` has the latents at each of `times`, from noise to image; `log_prob[k]` is the
    log-probability of the step from `way[k]` to `way[k + 1]`. That of a step without noise, such
    as the last, means nothing. `mean[k]` is what such a step adds fresh noise to, for the steps
    that do.
    """

    latents: Float[Tensor, "b c h w"]
    way: Float[Tensor, "m b c h w"]
    mean: Float[Tensor, "l b c h w"]
    times: Float[Tensor, " m"]
    log_prob: Float[Tensor, "n b"]
