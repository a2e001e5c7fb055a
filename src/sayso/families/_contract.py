"""Policy: the image model being trained, seen the same way whatever its family."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sayso.base.errors import UserError
from sayso.base.samplers import checked
from sayso.base.types import Sampler

Cond = dict[str, Tensor]
"""What the model is conditioned on, computed from a text; every tensor's first dimension is b."""


def mean_squared_error(
    prediction: Float[Tensor, " b *shape"], target: Float[Tensor, " b *shape"]
) -> Float[Tensor, " b"]:
    """Squared error averaged over all but the batch, in fp32: diffusers' `F.mse_loss` per row."""
    return (prediction.float() - target.float()).square().flatten(1).mean(1)


PIXELS_AT_ONCE = 512 * 512
"""Pixels that the autoencoder codes at a time, however large the batch. Stable Diffusion's needs
3 KiB a pixel in fp32 to decode (0.75 GiB for a picture of 512 × 512; 48 GiB for 64 of them) and
2.5 KiB to encode, and one such picture keeps a device busy."""


class Policy(ABC):
    """One family of models behind one surface; a file of `families/` implements it.

    `t` is in [0, 1], 0 = image, 1 = noise, for every family. `network` is the module that training
    changes, `network_kind` its name in messages; everything else is frozen. `pipelines` lists the
    diffusers pipeline classes (`_class_name` in model_index.json) that the family loads. `name`
    says which model it is, in messages.
    """

    pipelines: tuple[str, ...] = ()
    network_kind: str = "network"
    name: str = "the model"
    network: nn.Module
    device: torch.device

    @classmethod
    @abstractmethod
    def load(cls, path: Path, device: torch.device, weights: Path | None = None) -> "Policy":
        """Load a folder in diffusers' layout, and a run's weights over it.

        Raises: UserError: if the folder cannot be used.
        """

    @classmethod
    def evaluations(cls, path: Path, num_inference_steps: int) -> int:  # noqa: ARG003
        """How often the network is asked for a picture drawn in so many steps, without guidance.

        Args:
            path: the model's folder; only its small files are read.
        """
        return num_inference_steps

    @abstractmethod
    def latent_shape(self, image_size_px: int) -> tuple[int, int, int]:
        """(c, h, w) of the latents of a square image.

        Raises: UserError: if the model cannot draw that size.
        """

    def check_sampler(self, sampler: Sampler) -> None:
        """Check that the model draws so, and that every field of the sampler changes the picture.

        A family whose schedulers ignore fields refuses those beside.

        Raises: UserError: naming the field.
        """
        checked(sampler)
        self.latent_shape(sampler.image_size_px)

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
    def add_noise(
        self,
        latents: Float[Tensor, "b c h w"],
        noise: Float[Tensor, "b c h w"],
        t: Float[Tensor, " b"],
    ) -> Float[Tensor, "b c h w"]:
        """The noisy latents at t."""

    @abstractmethod
    def target(
        self,
        latents: Float[Tensor, "b c h w"],
        noise: Float[Tensor, "b c h w"],
        t: Float[Tensor, " b"],
    ) -> Float[Tensor, "b c h w"]:
        """What the network should predict: noise (eps), v or velocity."""

    @abstractmethod
    def predict(
        self, noisy: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], cond: Cond
    ) -> Float[Tensor, "b c h w"]:
        """The network's prediction, without guidance."""

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
    def add_lora(self, rank: int, seed: int) -> None:
        """Freeze the network and add trainable low-rank adapters of that rank, ≥ 1."""

    @abstractmethod
    def save_weights(self, folder: Path) -> None:
        """Write the network (or its adapters) as safetensors in diffusers' layout."""

    @abstractmethod
    def load_weights(self, folder: Path) -> None:
        """Put what `save_weights` wrote over the network; adapters are merged into it.

        Raises: UserError: if the folder holds no such weights.
        """

    def portion(self, image_size_px: int) -> int:
        """How many images of that size to encode or decode at a time, ≥ 1."""
        return max(1, PIXELS_AT_ONCE // image_size_px**2)

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

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that training changes, by name."""
        return {n: p for n, p in self.network.named_parameters() if p.requires_grad}


def take(cond: Cond, rows: Tensor | slice) -> Cond:
    """The chosen rows of a condition."""
    return {key: value[rows] for key, value in cond.items()}


def move(cond: Cond, device: torch.device) -> Cond:
    return {key: value.to(device, non_blocking=True) for key, value in cond.items()}
