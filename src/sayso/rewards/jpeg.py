"""JPEG size: a toy reward that shows whether training moves at all."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sayso.base.errors import UserError
from sayso.data.clip import to_picture
from sayso.rewards import Reward


@dataclass
class Jpeg(Reward):
    """How small, or how large, an image is as a JPEG file; the prompt does not count.

    Source: Black et al. 2023, arXiv 2305.13301, Sec. 6.1, who use kilobytes; here bytes per pixel,
        so that the numbers are alike for all sizes.
    """

    differentiable: ClassVar[bool] = False

    prefer: Literal["small", "large"] = "small"
    """Which files score higher: small ones (the score is minus the size) or large ones."""
    quality: int = 95
    """Quality of the JPEG encoder, from 1 to 100."""

    def __post_init__(self) -> None:
        if self.prefer not in ("small", "large"):
            raise UserError(f"prefer {self.prefer!r}; choose small or large")
        if not 1 <= self.quality <= 100:
            raise UserError(f"quality {self.quality} is not from 1 to 100; 95 is usual")

    def score(
        self,
        images: Float[Tensor, "b 3 h w"],
        prompts: Sequence[str],  # noqa: ARG002 (any prompt)
    ) -> Float[Tensor, " b"]:
        """Bytes per pixel of each image, with a minus where small ones are preferred."""
        sign = -1 if self.prefer == "small" else 1
        sizes = [sign * self._bytes(image) / image[0].numel() for image in images]
        return torch.tensor(sizes, device=images.device)

    def _bytes(self, image: Float[Tensor, "3 h w"]) -> int:
        file = io.BytesIO()
        to_picture(image).save(file, "JPEG", quality=self.quality)
        return file.tell()
