"""Aspect-ratio buckets: sizes of about the same number of pixels that images are brought to."""

import math
from collections.abc import Sequence

from sayso.base.errors import UserError
from sayso.base.types import Size

MOST_RATIO = 2.0
"""The longest bucket's long side over its short one; longer images are cropped to that."""


def bucket_sizes(size: Size, step: int) -> tuple[Size, ...]:
    """The given size, then others of no more pixels whose sides are multiples of a step.

    For each short side there is the longest other side that keeps within the pixels, lying and
    standing, up to `MOST_RATIO`. With 1024 × 1024 and a step of 64 they are 1024 × 1024, 1088 ×
    960, 1152 × 896, 1216 × 832, 1344 × 768, and the last four standing.

    Args:
        step: in pixels, ≥ 1.
    Raises: UserError: if a side of the size is no multiple of the step.
    """
    if any(side % step for side in size):
        raise UserError(
            f"bucket_step {step} does not divide the image size {size}; give one that divides both "
            f"sides, such as {math.gcd(*size)}"
        )
    found = dict.fromkeys([size])
    for short in range(step, math.isqrt(size.pixels) + 1, step):
        long = size.pixels // short // step * step
        if long <= MOST_RATIO * short:
            found |= dict.fromkeys([Size(long, short), Size(short, long)])
    return tuple(found)


def nearest(picture: Size, sizes: Sequence[Size]) -> Size:
    """The size whose shape is nearest to the picture's: the least difference of log(width/height).

    Of equally near ones the first.
    """
    shape = math.log(picture.width / picture.height)
    return min(sizes, key=lambda size: abs(math.log(size.width / size.height) - shape))


def recorded(sizes: Sequence[Size]) -> object:
    """Sizes as hashes have them: one alone as before there were several."""
    return sizes[0].recorded if len(sizes) == 1 else [size.recorded for size in sizes]
