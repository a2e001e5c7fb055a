"""What a CLIP folder's preprocessor file asks for, as differentiable tensor operations."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from sayso.base import files
from sayso.base.errors import UserError

MODES = {2: "bilinear", 3: "bicubic"}
"""Pillow's numbers for the two resampling filters that CLIP folders use."""


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What a CLIP folder's preprocessor file asks for, as tensor operations.

    `size_px` is the shortest edge (int) or height and width; None leaves the picture's size. The
    same steps as transformers' image processor, on floats: without its rounding to 8 bits, unless
    `rounds` asks for it and the pictures do not ask for gradients, which would be 0.
    """

    size_px: int | tuple[int, int] | None
    crop_px: tuple[int, int] | None
    mode: str
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    rounds: bool = False

    def __call__(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h2 w2"]:
        """Resize, crop and normalise pictures in [0, 1]; differentiable."""
        images = self._cropped(self._resized(self._rounded(images))) * self.scale
        mean, std = (images.new_tensor(v)[:, None, None] for v in (self.mean, self.std))
        return (images - mean) / std

    def _resized(self, images: Tensor) -> Tensor:
        size = _output_size(self.size_px, images.shape[-2], images.shape[-1])
        if size == tuple(images.shape[-2:]):
            return images
        # Pillow resizes the rows first, and rounds before it turns to the columns
        steps = ((images.shape[-2], size[1]), size) if self._in_8_bits(images) else (size,)
        for step in steps:
            images = F.interpolate(images, step, mode=self.mode, antialias=True)
            images = self._rounded(images.clamp(0, 1))
        return images

    def _rounded(self, images: Tensor) -> Tensor:
        return (images * 255).round() / 255 if self._in_8_bits(images) else images

    def _in_8_bits(self, images: Tensor) -> bool:
        return self.rounds and not images.requires_grad

    def _cropped(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        crop_h, crop_w = self.crop_px or (height, width)
        if crop_h > height or crop_w > width:
            raise UserError(
                f"the CLIP preprocessor crops {crop_h}×{crop_w} pixels out of {height}×{width}; "
                "fix size or crop_size in its preprocessor_config.json"
            )
        top, left = (height - crop_h) // 2, (width - crop_w) // 2
        return images[..., top : top + crop_h, left : left + crop_w]


def _output_size(size_px: int | tuple[int, int] | None, height: int, width: int) -> tuple[int, int]:
    if size_px is None:
        return height, width
    if isinstance(size_px, tuple):
        return size_px
    short = min(height, width)
    return int(size_px * height / short), int(size_px * width / short)


def read_preprocessing(folder: Path) -> Preprocessing:
    """The preprocessing of a CLIP folder.

    A field that is not there has transformers' default for CLIP.

    Raises: UserError: if the folder has no preprocessor file, it asks for another filter than
        bilinear or bicubic, or a field is not what CLIP's preprocessing has.
    """
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    row = _preprocessor_row(folder)
    resample = row.get("resample", 3)
    if resample not in MODES:
        raise UserError(f"{folder} resizes with filter {resample}; use 2 (bilinear) or 3 (bicubic)")
    normalizes = row.get("do_normalize", True)
    return Preprocessing(
        size_px=_size(folder, row) if row.get("do_resize", True) else None,
        crop_px=_pair(folder, row, "crop_size") if row.get("do_center_crop", True) else None,
        mode=MODES[resample],
        scale=255 * row.get("rescale_factor", 1 / 255) if row.get("do_rescale", True) else 255.0,
        mean=_channels(folder, row, "image_mean", OPENAI_CLIP_MEAN)
        if normalizes
        else (0.0, 0.0, 0.0),
        std=_channels(folder, row, "image_std", OPENAI_CLIP_STD) if normalizes else (1.0, 1.0, 1.0),
    )


def _preprocessor_row(folder: Path) -> files.JsonObject:
    if (folder / "preprocessor_config.json").is_file():
        return files.read_json(folder / "preprocessor_config.json")
    if (folder / "processor_config.json").is_file():
        row = files.read_json(folder / "processor_config.json").get("image_processor")
        if isinstance(row, dict):
            return row
    raise UserError(f"{folder} has no preprocessor_config.json; give a whole CLIP folder")


def _size(folder: Path, row: files.JsonObject) -> int | tuple[int, int]:
    value = row.get("size", 224)
    if isinstance(value, dict) and "shortest_edge" in value:
        value = value["shortest_edge"]
    return value if _is_size(value) else _pair(folder, row, "size")


def _pair(folder: Path, row: files.JsonObject, key: str) -> tuple[int, int]:
    value = row.get(key, 224)
    sides = (value.get("height"), value.get("width")) if isinstance(value, dict) else (value, value)
    height, width = sides
    if not (_is_size(height) and _is_size(width)):
        raise _odd(folder, key, value, "a number of pixels, or height and width")
    return height, width


def _is_size(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and value > 0


def _channels(
    folder: Path, row: files.JsonObject, key: str, usual: Sequence[float]
) -> tuple[float, ...]:
    value = row.get(key, usual)
    if not (isinstance(value, list | tuple) and len(value) == 3):
        raise _odd(folder, key, value, "three numbers")
    if not all(isinstance(v, int | float) for v in value) or (key == "image_std" and 0 in value):
        raise _odd(folder, key, value, "three numbers")
    return tuple(value)


def _odd(folder: Path, key: str, value: object, allowed: str) -> UserError:
    return UserError(
        f"{folder} has {key} {value!r} in its preprocessor file; sayso reads {allowed}"
    )
