"""The tiny autoencoder: 64×64 pixels to 8×8 latents with 16 channels of about unit variance."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny
from diffusers.models.unets.unet_2d_blocks import AutoencoderTinyBlock
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from sayso.tinyworld.pretraining import data
from sayso.tinyworld.pretraining.checkpoints import Checkpoint, learning_rate_factor

LATENT_CHANNELS = 16
_WIDTH = 32


@dataclass(frozen=True)
class AutoencoderPlan:
    """How the autoencoder is trained."""

    images: int = 16_000
    steps: int = 2_600
    batch_size: int = 32
    learning_rate: float = 2e-3


def build() -> Any:
    """Return an untrained autoencoder whose residual blocks start as the identity."""
    model = AutoencoderTiny(
        encoder_block_out_channels=(_WIDTH,) * 4,
        decoder_block_out_channels=(_WIDTH,) * 4,
        num_encoder_blocks=(0, 2, 3, 3),
        num_decoder_blocks=(3, 3, 2, 1),
        latent_channels=LATENT_CHANNELS,
    )
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in model.modules():
        if isinstance(module, AutoencoderTinyBlock):
            nn.init.zeros_(module.conv[-1].weight)
    return model.to(memory_format=torch.channels_last)


def loss(
    decoded: Float[Tensor, "b 3 h w"],
    pixels: Float[Tensor, "b 3 h w"],
    latents: Float[Tensor, "b c hl wl"],
) -> Float[Tensor, ""]:
    """Squared and absolute error, the same for edges, and a pull of the latents to mean 0, std 1.

    The edge term keeps outlines sharp that a squared error alone would blur.
    """
    edges = sum(F.l1_loss(decoded.diff(dim=d), pixels.diff(dim=d)) for d in (-1, -2))
    whitening = latents.mean((0, 2, 3)).square() + (latents.std((0, 2, 3)) - 1).square()
    error = 5 * F.mse_loss(decoded, pixels) + F.l1_loss(decoded, pixels)
    return error + 0.5 * edges + 0.01 * whitening.mean()


def psnr(model: Any, images: np.ndarray) -> float:
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
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=plan.learning_rate, betas=(0.9, 0.99), fused=True
    )
    checkpoint = Checkpoint(work / "autoencoder.pt", model=model, optimizer=optimizer)
    held_out, _ = next(data.chunks(seed + 1, 0, 1))
    text = ""
    for step in range(checkpoint.load(), plan.steps):
        rng = np.random.default_rng((seed, 1, step))
        batch = data.to_pixels(images[np.sort(rng.integers(len(images), size=plan.batch_size))])
        factor = learning_rate_factor(step, plan.steps, 100, 0.6)
        _step(model, optimizer, batch, plan.learning_rate * factor)
        if (step + 1) % 200 == 0:
            text = f"PSNR {psnr(model, held_out[:200]):.2f} dB"
        report(step + 1, text)
        checkpoint.maybe_save(step + 1)
    checkpoint.save(plan.steps)
    return model.eval()


def _step(model: Any, optimizer: Any, batch: Tensor, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    with torch.autocast("cpu", torch.bfloat16):
        latents = model.encode(batch).latents
        decoded = model.decode(latents).sample
    loss(decoded.float(), batch, latents.float()).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
