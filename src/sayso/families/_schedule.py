"""Mathematics of diffusion that every family shares: pure functions of alpha, sigma and tensors.

A noisy latent is `x_t = alpha_t · image + sigma_t · noise`. A network predicts one of three things:
the noise (eps), `v = alpha · noise − sigma · image`, or the velocity `noise − image`. alpha and
sigma have a number per row; all else is [b c h w].
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sayso.base.samplers import TimestepSampling

Kind = Literal["eps", "v", "velocity"]
Noise = Literal["ancestral", "cps", "flow_grpo", "dance"]
VARIANCE_PRESERVING: tuple[Noise, ...] = ("ancestral", "cps")
LATEST = 1 - 1e-6
"""The latest t that is drawn for training if t is not one of a grid: t = 1 is pure noise."""
LEAST_STD = 1e-3
"""A step with less noise than this has its log-probability computed as if it had as much."""


def training_times(
    u: Float[Tensor, " b"], how: TimestepSampling, grid: Float[Tensor, " n"] | None = None
) -> Float[Tensor, " b"]:
    """The times at the quantiles u, in [0, 1), of a distribution; "grid" is that of `grid`."""
    if grid is not None:
        return grid[(u * len(grid)).long().clamp(max=len(grid) - 1)]
    t = torch.special.ndtri(u.double()).sigmoid().float() if how == "logit_normal" else u
    return t.clamp(max=LATEST)


def per_row(values: Float[Tensor, " b"], like: Float[Tensor, "b c h w"]) -> Tensor:
    """`values` with the dimensions of `like`, so that both can be multiplied."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def add_noise(
    latents: Float[Tensor, "b c h w"],
    noise: Float[Tensor, "b c h w"],
    alpha: Float[Tensor, " b"],
    sigma: Float[Tensor, " b"],
) -> Float[Tensor, "b c h w"]:
    """The noisy latents `alpha · latents + sigma · noise`."""
    return per_row(alpha, latents) * latents + per_row(sigma, latents) * noise


def target(
    kind: Kind,
    latents: Float[Tensor, "b c h w"],
    noise: Float[Tensor, "b c h w"],
    alpha: Float[Tensor, " b"],
    sigma: Float[Tensor, " b"],
) -> Float[Tensor, "b c h w"]:
    """What a network of this kind should predict."""
    match kind:
        case "eps":
            return noise
        case "v":
            return per_row(alpha, latents) * noise - per_row(sigma, latents) * latents
        case "velocity":
            return noise - latents


def to_image(
    kind: Kind,
    noisy: Float[Tensor, "b c h w"],
    prediction: Float[Tensor, "b c h w"],
    alpha: Float[Tensor, " b"],
    sigma: Float[Tensor, " b"],
) -> Float[Tensor, "b c h w"]:
    """The latents of the image that a prediction means.

    Of eps it is a division by alpha, which magnifies errors near t = 1. v assumes
    alpha² + sigma² = 1.
    """
    a, s = per_row(alpha, noisy), per_row(sigma, noisy)
    match kind:
        case "eps":
            return (noisy - s * prediction) / a
        case "v":
            return a * noisy - s * prediction
        case "velocity":
            return (noisy - s * prediction) / (a + s)


def to_noise(
    kind: Kind,
    noisy: Float[Tensor, "b c h w"],
    prediction: Float[Tensor, "b c h w"],
    alpha: Float[Tensor, " b"],
    sigma: Float[Tensor, " b"],
) -> Float[Tensor, "b c h w"]:
    """The noise that a prediction means; with `to_image` it makes up `noisy` again."""
    a, s = per_row(alpha, noisy), per_row(sigma, noisy)
    match kind:
        case "eps":
            return prediction
        case "v":
            return s * noisy + a * prediction
        case "velocity":
            return (noisy + a * prediction) / (a + s)


def step_noise(
    form: Noise,
    eta: float,
    now: tuple[Float[Tensor, " b"], Float[Tensor, " b"]],
    then: tuple[Float[Tensor, " b"], Float[Tensor, " b"]],
    elapsed: Float[Tensor, " b"],
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """How much fresh noise a step from t to s < t adds, and how much of the old one it keeps.

    The next latents are `alpha_s · image + kept · noise + std · fresh`. "ancestral" is DDIM's step
    with eta (with eta 1 that of DDPM, the posterior of the next latents), carried over to
    every schedule; "cps" is the same for a share sin(eta · π/2) of sigma_s. Both keep
    kept² + std² = sigma_s². "flow_grpo" and "dance" are the Euler steps of these papers, which
    leave some noise in the image.

    Args:
        form: how std follows from eta.
        eta: strength of the fresh noise, ≥ 0; 0 = none, and all forms are DDIM, or Euler for flow.
        now, then: alpha and sigma at t and at s.
        elapsed: t − s.
    Returns: std and kept, each [b].
    Source: Song et al. 2020, arXiv 2010.02502, Eq. 16 (ancestral); arXiv 2509.05952 (cps); Liu et
        al. 2025, arXiv 2505.05470, Eq. 9 (flow_grpo); arXiv 2505.07818 (dance).
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = now, then
    match form:
        case "ancestral":
            left = 1 - (alpha_t * sigma_s / (alpha_s * sigma_t)).square()
            std = eta * sigma_s * left.clamp(min=0).sqrt()
        case "cps":
            std = sigma_s * math.sin(eta * math.pi / 2)
        case "flow_grpo":
            # at t = 1 alpha is 0: the paper takes the next time inside the root
            ratio = torch.where(alpha_t > 0, sigma_t / alpha_t, sigma_s / alpha_s)
            std = eta * (ratio * elapsed).sqrt()
        case "dance":
            std = eta * elapsed.sqrt()
    if form in VARIANCE_PRESERVING:
        return std, (sigma_s.square() - std.square()).clamp(min=0).sqrt()
    return std, sigma_s - std.square() / (2 * sigma_t)


def log_prob(
    value: Float[Tensor, "b c h w"], mean: Float[Tensor, "b c h w"], std: Float[Tensor, " b"]
) -> Float[Tensor, " b"]:
    """Log density of a Gaussian step, averaged over c, h and w, in fp32.

    The mean and not the sum, as in DDPO's code: the clip ranges of policy gradients belong to it.
    """
    s = per_row(std.float().clamp(min=LEAST_STD), value)
    density = -(value.float() - mean.float()).square() / (2 * s.square()) - s.log()
    return density.flatten(1).mean(1) - math.log(2 * math.pi) / 2


def step_divergence(
    mean: Float[Tensor, "b c h w"], other: Float[Tensor, "b c h w"], std: Float[Tensor, " b"]
) -> Float[Tensor, " b"]:
    """KL divergence between two Gaussian steps of one std, averaged over c, h and w, in fp32.

    It is (mean − other)² / (2 std²).
    """
    s = per_row(std.float().clamp(min=LEAST_STD), mean)
    return ((mean.float() - other.float()).square() / (2 * s.square())).flatten(1).mean(1)


def noise_of(
    generators: Sequence[torch.Generator], shape: tuple[int, ...], device: torch.device
) -> Tensor:
    """Noise [b, *shape], each row from a generator of its own, drawn on the CPU as pipelines do."""
    return torch.stack([torch.randn(shape, generator=g) for g in generators]).to(device)


def mean_squared_error(
    prediction: Float[Tensor, " b *shape"], target: Float[Tensor, " b *shape"]
) -> Float[Tensor, " b"]:
    """Squared error averaged over all but the batch, in fp32: diffusers' `F.mse_loss` per row."""
    return (prediction.float() - target.float()).square().flatten(1).mean(1)


def root_mean_square(x: Float[Tensor, " b *shape"]) -> Float[Tensor, " b"]:
    """How large the numbers of each row are, in fp32; its gradient is finite at 0 too."""
    # the root of 0 has an infinite slope
    return x.float().square().flatten(1).mean(1).clamp(min=1e-12).sqrt()
