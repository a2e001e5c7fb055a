"""Losses that make what earned a better reward likelier, and stop before it goes too far."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def clipped_policy_loss(
    ratio: Float[Tensor, " b"], advantage: Float[Tensor, " b"], clip_range: float
) -> Float[Tensor, " b"]:
    """The loss whose gradient makes what led to better images likelier, and stops at the clip.

    L = max(−A·ρ, −A·clip(ρ, 1 − c, 1 + c)): what became likelier (or less likely) by more than c,
    in the direction that its advantage asks for, has no gradient; in the other it has.

    Args:
        ratio: ρ, probability under the policy over that when it was drawn.
        advantage: A, above 0 for images better than the others of their prompt.
        clip_range: c, > 0.
    Source: Schulman et al. 2017, arXiv 1707.06347, Eq. 7; Black et al. 2023, arXiv 2305.13301.
    """
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return torch.maximum(-advantage * ratio, -advantage * clipped)


def was_clipped(
    ratio: Float[Tensor, " b"], advantage: Float[Tensor, " b"], clip_range: float
) -> Bool[Tensor, " b"]:
    """Which rows have no gradient in `clipped_policy_loss`: beyond the clip as A asks for."""
    likelier, less_likely = ratio > 1 + clip_range, ratio < 1 - clip_range
    return torch.where(advantage > 0, likelier, less_likely & (advantage < 0))


def trusted_policy_loss(
    ratio: Float[Tensor, " b"],
    advantage: Float[Tensor, " b"],
    divergence: Float[Tensor, " b"],
    limit: float,
) -> Float[Tensor, " b"]:
    """−A·ρ, and 0 for steps that have gone far enough the way of their advantage.

    That is where the divergence from the step that was drawn is at the limit or above, and ρ > 1
    with A > 0 or ρ < 1 with A < 0. A step that went the other way has its gradient, however far.

    Args:
        ratio, advantage: as in `clipped_policy_loss`.
        divergence: see `step_divergence`, of the policy's step and of that drawn.
        limit: > 0.
    Source: Flow-DPPO 2026, arXiv 2606.11025.
    """
    return torch.where(went_far(ratio, advantage, divergence, limit), 0.0, -advantage * ratio)


def went_far(
    ratio: Float[Tensor, " b"],
    advantage: Float[Tensor, " b"],
    divergence: Float[Tensor, " b"],
    limit: float,
) -> Bool[Tensor, " b"]:
    """Which steps have gone far enough the way of their advantage."""
    return (divergence >= limit) & (advantage * (ratio - 1) > 0)
