"""The tiny autoencoder: 64×64 pixels to 8×8 latents with 32 channels.

Its encoder starts as the principal components of 8×8-pixel patches, so training starts from good
latents whose coarse channels vary most; the residual blocks start as the identity.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny
from diffusers.models.unets.unet_2d_blocks import AutoencoderTinyBlock
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from sayso.tinyworld.factory import data
from sayso.tinyworld.factory.checkpoints import Checkpoint, learning_rate_factor
from sayso.tinyworld.factory.optimizers import Pair

LATENT_CHANNELS = 32
_WIDTH = 48  # the 4×4×3 pixel values of a patch just fit
_PATCH = 8
_STD = 0.33  # of fresh latents: diffusers' decoder bends values towards ±3


@dataclass(frozen=True)
class AutoencoderPlan:
    """How the autoencoder is trained."""

    images: int = 16_000
    steps: int = 2_400
    batch_size: int = 32
    muon_lr: float = 0.015
    adam_lr: float = 2e-3
    hardening_steps: int = 300
    latent_noise: float = 0.2


def build() -> Any:
    """Return an untrained autoencoder whose residual blocks start as the identity."""
    model = AutoencoderTiny(
        encoder_block_out_channels=(_WIDTH,) * 4,
        decoder_block_out_channels=(_WIDTH,) * 4,
        num_encoder_blocks=(0, 0, 3, 0),
        num_decoder_blocks=(3, 3, 2, 0),
        latent_channels=LATENT_CHANNELS,
    )
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in model.modules():
        if isinstance(module, AutoencoderTinyBlock):
            branch: Any = module.conv
            nn.init.zeros_(branch[-1].weight)
    whole: Any = model
    return whole.to(memory_format=torch.channels_last)


@torch.no_grad()
def start_from_components(model: Any, images: UInt8[np.ndarray, "n 64 64 3"]) -> None:
    """Set the encoder's convolutions so that it computes principal components of patches.

    Channel k varies as the fourth root of its component's variance: between whitening, which
    would make fine detail as loud as the layout, and plain projection, which would hide it.
    """
    n = 64 // _PATCH
    patches = images.astype(np.float32).reshape(-1, n, _PATCH, n, _PATCH, 3) / 255
    patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(-1, _PATCH * _PATCH * 3)
    mean = patches.mean(0)
    variance, vectors = np.linalg.eigh(np.cov((patches - mean).T))
    variance, vectors = variance[::-1][:LATENT_CHANNELS], vectors[:, ::-1][:, :LATENT_CHANNELS]
    std = variance**0.25 / np.sqrt(np.mean(variance**0.5)) * _STD
    projection = (vectors / np.sqrt(variance) * std).T
    convolutions: list[Any] = [
        layer for layer in model.encoder.layers if isinstance(layer, nn.Conv2d)
    ]
    first, half, quarter, eighth, last = convolutions
    first.weight[:3] = torch.eye(3, LATENT_CHANNELS)[:, :3, None, None] * _centre(3)
    _gather(half, 1)
    _gather(quarter, 2)
    kernel = torch.tensor(projection.copy(), dtype=torch.float32)
    kernel = kernel.view(LATENT_CHANNELS, _PATCH, _PATCH, 3)
    eighth.weight.zero_()
    for y, x in np.ndindex(2, 2):
        part = kernel[:, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4].reshape(LATENT_CHANNELS, 48)
        eighth.weight[:LATENT_CHANNELS, :, 1 + y, 1 + x] = part
    last.weight.copy_(torch.eye(LATENT_CHANNELS, _WIDTH)[:, :, None, None] * _centre(3))
    last.bias.copy_(torch.tensor(-projection @ mean))


def _centre(size: int) -> Tensor:
    kernel = torch.zeros(size, size)
    kernel[size // 2, size // 2] = 1
    return kernel


def _gather(conv: nn.Conv2d, side: int) -> None:
    """Make a stride-2 convolution move 2×2 neighbours of side×side pixel blocks into channels."""
    conv.weight[: 12 * side * side] = 0
    for y, x, row, column, colour in np.ndindex(2, 2, side, side, 3):
        source = (row * side + column) * 3 + colour
        target = ((y * side + row) * 2 * side + x * side + column) * 3 + colour
        conv.weight[target, source, 1 + y, 1 + x] = 1


def loss(decoded: Float[Tensor, "b 3 h w"], pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, ""]:
    """Squared and absolute error, and the absolute error of the edges.

    The edge term keeps outlines sharp that a squared error alone would blur.
    """
    edges = [F.l1_loss(decoded.diff(dim=d), pixels.diff(dim=d)) for d in (-1, -2)]
    return 5 * F.mse_loss(decoded, pixels) + F.l1_loss(decoded, pixels) + 0.5 * sum(edges)


def psnr(model: Any, images: UInt8[np.ndarray, "b 64 64 3"]) -> float:
    """Return the mean peak signal-to-noise ratio in dB of 8-bit reconstructions."""
    pixels = data.to_pixels(images)
    with torch.no_grad():
        decoded = model.decode(model.encode(pixels).latents).sample.clamp(-1, 1)
    levels = (decoded.add(1).mul(127.5).round() - pixels.add(1).mul(127.5)).square()
    return float((10 * torch.log10(255**2 / levels.mean((1, 2, 3)))).mean())


def train(work: Path, seed: int, plan: AutoencoderPlan, report: Any) -> Any:
    """Train or continue; returns the autoencoder. `report(step, text)` is called each step."""
    images, _ = data.scenes(work, seed, plan.images)
    torch.manual_seed(seed)
    model = build()
    start_from_components(model, images[:3000])
    optimizer = Pair(model, plan.muon_lr, plan.adam_lr)
    checkpoint = Checkpoint(work / "autoencoder.pt", model=model, optimizer=optimizer)
    held_out, _ = next(data.chunks(seed + 1, 0, 1))
    text = ""
    for step in range(checkpoint.load(), plan.steps):
        rng = np.random.default_rng((seed, 1, step))
        batch = data.to_pixels(images[np.sort(rng.integers(len(images), size=plan.batch_size))])
        with torch.autocast("cpu", torch.bfloat16):
            decoded = model.decode(model.encode(batch).latents).sample
        loss(decoded.float(), batch).backward()
        optimizer.step(learning_rate_factor(step, plan.steps, 100, 0.6))
        if (step + 1) % 200 == 0:
            text = f"PSNR {psnr(model, held_out[:200]):.2f} dB"
        report(step + 1, text)
        checkpoint.maybe_save(step + 1)
    checkpoint.save(plan.steps)
    return model.eval()


def harden(model: Any, work: Path, seed: int, plan: AutoencoderPlan, report: Any) -> None:
    """Teach the decoder, with the encoder frozen, to draw clean pictures from noisy latents.

    A denoiser's latents are never quite right; a decoder that met only perfect ones turns their
    errors into ragged outlines. Half of each batch stays clean.
    """
    images, _ = data.scenes(work, seed, plan.images)
    optimizer = Pair(model.decoder, plan.muon_lr, plan.adam_lr)
    unit = 1 / model.config.scaling_factor
    for step in range(plan.hardening_steps):
        rng = np.random.default_rng((seed, 4, step))
        batch = images[np.sort(rng.integers(len(images), size=plan.batch_size))]
        latents = encode(model, batch)
        noise = torch.from_numpy(rng.standard_normal(latents.shape, np.float32)) * unit
        level = rng.random(len(batch)) * plan.latent_noise * (rng.random(len(batch)) < 0.5)
        noise *= torch.from_numpy(level.astype(np.float32))[:, None, None, None]
        with torch.autocast("cpu", torch.bfloat16):
            decoded = model.decode(latents + noise).sample
        loss(decoded.float(), data.to_pixels(batch)).backward()
        optimizer.step(0.3 * learning_rate_factor(step, plan.hardening_steps, 20, 0.9))
        report(step + 1, "")


@torch.no_grad()
def encode(model: Any, images: UInt8[np.ndarray, "b 64 64 3"]) -> Float[Tensor, "b c 8 8"]:
    """Return unscaled latents in fp32."""
    with torch.autocast("cpu", torch.bfloat16):
        return model.encode(data.to_pixels(images)).latents.float()


@torch.no_grad()
def balance(model: Any, images: UInt8[np.ndarray, "b 64 64 3"]) -> None:
    """Bring the channels' deviations closer, to their square roots; the decoder takes it back.

    The first channel, the brightness, is several times louder than the others after training and
    would rule the denoiser's loss. Also sets `scaling_factor` to give unit variance overall.
    """
    std = encode(model, images).std((0, 2, 3))
    factor = (std * _STD).sqrt() / std * 0.65
    last, first = model.encoder.layers[-1], model.decoder.layers[0]
    last.weight.mul_(factor[:, None, None, None])
    last.bias.mul_(factor)
    first.weight.div_(factor[:, None, None])
    model.register_to_config(scaling_factor=round(1 / float(encode(model, images).std()), 4))
