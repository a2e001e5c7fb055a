"""The one reader of pictures: upright, RGB with 8 bits a channel, as a viewer on white shows them.

What cannot be shown so without a guess is refused by name.
"""

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps

_DAMAGED = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError,
    struct.error, zlib.error,
)  # fmt: skip
"""What Pillow's decoders raise for files that are no pictures, or not whole."""
_PLAIN = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"}
_STILLS = {"MPO"}
"""Formats whose further frames are no animation but other views that a camera put there."""


class UnreadablePicture(ValueError):  # noqa: N818 - it is a finding about a file
    """A picture that is damaged, too large, or of a kind that cannot be shown; says which."""


def read_picture(source: Path | bytes) -> Image.Image:
    """The picture of a file or of its content, decoded whole.

    Its EXIF orientation is applied, transparent parts stand on white, the colours of a profile in
    the file become sRGB, and 16-bit grey is scaled to 8 bits.

    Raises:
        UnreadablePicture: if it is damaged, an animation, of float or 32-bit values, in a colour
            space without RGB, or larger than Pillow opens.
        FileNotFoundError: if there is no such file.
    """
    content = source.read_bytes() if isinstance(source, Path) else source
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content)) as image:
                _refuse_frames(image)
                upright = ImageOps.exif_transpose(image)
                upright.format = image.format
                return to_rgb(upright)
    except UnreadablePicture:
        raise
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise UnreadablePicture(f"more than {most} million pixels; make it smaller") from None
    except Image.UnidentifiedImageError:
        raise UnreadablePicture("no picture that Pillow knows") from None
    except _DAMAGED as error:
        raise UnreadablePicture(str(error).partition("\n")[0] or type(error).__name__) from None


def _refuse_frames(image: Image.Image) -> None:
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format not in _STILLS:
        raise UnreadablePicture(f"{frames} frames; give a single picture")


def to_rgb(image: Image.Image) -> Image.Image:
    """A picture in memory as RGB: alpha over white, 16-bit grey scaled, profiles applied.

    Raises: UnreadablePicture: for a mode that cannot be shown without a guess.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        grey = np.rint(np.asarray(image, np.float32) / 257).clip(0, 255)
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode not in _PLAIN:
        raise UnreadablePicture(f"values of mode {image.mode}; save it with 8 bits a channel")
    if image.has_transparency_data:
        upper = image.convert("RGBA")
        white = Image.new("RGBA", upper.size, "white")
        return _in_srgb(Image.alpha_composite(white, upper).convert("RGB"), image)
    return _in_srgb(image, image)


def _in_srgb(image: Image.Image, origin: Image.Image) -> Image.Image:
    """The colours of the profile in the file, if any, in sRGB; a broken profile says nothing."""
    content = origin.info.get("icc_profile")
    if not content or image.mode not in ("RGB", "CMYK"):
        return image.convert("RGB")
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(content))
        if "sRGB" in ImageCms.getProfileDescription(profile):
            return image.convert("RGB")
        srgb = ImageCms.createProfile("sRGB")
        shown = ImageCms.profileToProfile(image, profile, srgb, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        shown = None
    return shown or image.convert("RGB")
