"""What a sampler may say, whatever the model: every field in range, and none without effect."""

import re
from dataclasses import replace
from typing import Literal

from sayso.base.devices import BASE_PRECISIONS
from sayso.base.errors import UserError
from sayso.base.types import Sampler, Size

LARGEST_PX = 16_384


def parse_size(text: str) -> Size:
    """A size as typed: width x height such as 1024x768, or one number for a square.

    Raises: UserError: for anything else.
    """
    found = re.fullmatch(r"(\d{1,9})(?:[x×](\d{1,9}))?", text.strip().lower())
    if not found:
        raise UserError(
            f"image_size {text!r} is not a size; give width x height such as 1024x768, or one "
            "number for a square"
        )
    width, height = found.groups()
    return Size(int(width), int(height or width))


TimestepSampling = Literal["uniform", "logit_normal", "grid"]
"""Times that a model is trained at: uniform; the sigmoid of a standard normal, as Stable Diffusion
3 was (Esser et al. 2024, arXiv 2403.03206, Eq. 19); or those at which the sampler predicts, each
as often as the others."""


def checked(sampler: Sampler, no_guidance: float = 1.0, *, true_cfg: bool = True) -> Sampler:
    """The sampler in its one form: what draws the same picture is written the same way.

    Numbers become floats and white space in the negative prompt single spaces, as a tokenizer
    reads them; a field is either refused here or by the model (`Policy.check_sampler`) if it would
    change nothing.

    Args:
        no_guidance: the guidance scale of the model that is none, and the least.
        true_cfg: whether the model has use for a `true_cfg_scale`.
    Raises: UserError: naming the first field that is out of range or has no effect.
    """
    _check_ranges(sampler, no_guidance)
    negative = " ".join(sampler.negative_prompt.split())
    sampler = replace(sampler, negative_prompt=negative)
    _refuse_idle(sampler, no_guidance, true_cfg=true_cfg)
    return replace(
        sampler,
        guidance_scale=float(sampler.guidance_scale),
        true_cfg_scale=float(sampler.true_cfg_scale),
        # and no negative zero
        eta=float(sampler.eta) + 0.0,
    )


def _check_ranges(sampler: Sampler, no_guidance: float) -> None:
    ranges = {
        "num_inference_steps": (sampler.num_inference_steps >= 1, "1 or more"),
        "guidance_scale": (
            no_guidance <= sampler.guidance_scale < float("inf"),
            f"{no_guidance:g} (no guidance) or more"),
        "true_cfg_scale": (
            1 <= sampler.true_cfg_scale < float("inf"), "1 (none) or more"),
        "eta": (0 <= sampler.eta <= 1, "from 0 to 1"),
        "image_size": (
            all(8 <= side <= LARGEST_PX and side % 8 == 0 for side in sampler.image_size),
            f"width and height from 8 to {LARGEST_PX}, each a multiple of 8"),
        "base_precision": (
            sampler.base_precision in BASE_PRECISIONS, " or ".join(BASE_PRECISIONS)),
    }  # fmt: skip
    for name, (right, allowed) in ranges.items():
        if not right:
            raise UserError(f"{name} {getattr(sampler, name)} is not allowed; give {allowed}")


def _refuse_idle(sampler: Sampler, no_guidance: float, *, true_cfg: bool) -> None:
    """Refuse what would change nothing."""
    negative = sampler.negative_prompt
    if sampler.true_cfg_scale > 1 and not true_cfg:
        raise UserError(
            f"true_cfg_scale {sampler.true_cfg_scale:g} is for models with an embedded "
            "guidance_scale, and this one is not; use --guidance-scale alone"
        )
    if sampler.true_cfg_scale > 1 and not negative:
        raise UserError(
            f"true_cfg_scale {sampler.true_cfg_scale:g} would have no effect without a negative "
            "prompt; give --negative-prompt, or omit it"
        )
    if negative and sampler.guidance_scale == no_guidance and sampler.true_cfg_scale == 1:
        raise UserError(
            f"negative_prompt {negative!r} would have no effect, because guidance_scale "
            f"{no_guidance:g} means no guidance; raise --guidance-scale or omit the negative prompt"
        )
