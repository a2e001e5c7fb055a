"""What a sampler's numbers may be, for whoever takes them from a user."""

from sayso.errors import UserError
from sayso.types import Sampler


def check_sampler(sampler: Sampler) -> None:
    """Raises: UserError: naming the first number that is out of range."""
    size = sampler.image_size_px
    bad = {
        "num_inference_steps": (sampler.num_inference_steps >= 1, "1 or more"),
        "guidance_scale": (0 <= sampler.guidance_scale < float("inf"), "0 or more"),
        "eta": (0 <= sampler.eta <= 1, "from 0 to 1"),
        "image_size_px": (size >= 8 and size % 8 == 0, "a multiple of 8"),
    }
    for name, (right, allowed) in bad.items():
        if not right:
            raise UserError(f"{name} {getattr(sampler, name)} is not possible; give {allowed}")
