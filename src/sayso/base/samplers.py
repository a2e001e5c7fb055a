"""What a sampler may say, whatever the model: every field in range, and none without effect."""

from dataclasses import replace

from sayso.base.errors import UserError
from sayso.base.types import Sampler


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
        "image_size_px": (
            sampler.image_size_px >= 8 and sampler.image_size_px % 8 == 0, "a multiple of 8"),
    }  # fmt: skip
    for name, (right, allowed) in ranges.items():
        if not right:
            raise UserError(f"{name} {getattr(sampler, name)} is not allowed; give {allowed}")
    negative = " ".join(sampler.negative_prompt.split())
    if negative and sampler.guidance_scale == 1:
        raise UserError(
            f"negative_prompt {negative!r} would have no effect, because guidance_scale 1 means "
            "no guidance; give a larger --guidance-scale, or no negative prompt"
        )
    return replace(
        sampler,
        guidance_scale=float(sampler.guidance_scale),
        # and no negative zero
        eta=float(sampler.eta) + 0.0,
        negative_prompt=negative,
    )
