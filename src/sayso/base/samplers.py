"""What a sampler may say, whatever the model: every field in range, and none without effect."""

import re
from dataclasses import replace

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


def checked(sampler: Sampler) -> Sampler:
    """The sampler in its one form: what draws the same picture is written the same way.

    Numbers become floats and white space in the negative prompt single spaces, as a tokenizer
    reads them; a field is either refused here or by the model (`Policy.check_sampler`) if it would
    change nothing.

    Raises: UserError: naming the first field that is out of range or has no effect.
    """
    ranges = {
        "num_inference_steps": (sampler.num_inference_steps >= 1, "1 or more"),
        "guidance_scale": (
            1 <= sampler.guidance_scale < float("inf"), "1 (no guidance) or more"),
        "eta": (0 <= sampler.eta <= 1, "from 0 to 1"),
        "image_size": (
            all(8 <= side <= LARGEST_PX and side % 8 == 0 for side in sampler.image_size),
            f"width and height from 8 to {LARGEST_PX}, each a multiple of 8"),
    }  # fmt: skip
    for name, (right, allowed) in ranges.items():
        if not right:
            raise UserError(f"{name} {getattr(sampler, name)} is not possible; give {allowed}")
    negative = " ".join(sampler.negative_prompt.split())
    if negative and sampler.guidance_scale == 1:
        raise UserError(
            f"negative_prompt {negative!r} would change nothing: guidance_scale 1 is no guidance; "
            "give a larger --guidance-scale, or no negative prompt"
        )
    return replace(
        sampler,
        guidance_scale=float(sampler.guidance_scale),
        # and no negative zero
        eta=float(sampler.eta) + 0.0,
        negative_prompt=negative,
    )
