"""The one reader of pictures: upright, RGB with 8 bits a channel, as a viewer on white shows them.

What cannot be shown so without a guess is refused by name.
"""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
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
_ORIENTATION, _SIDEWAYS = 0x0112, range(5, 9)


class UnreadablePicture(ValueError):  # noqa: N818 - it is a finding about a file
    """A picture that is damaged, too large, or of a kind that cannot be shown; says which."""


def read_picture(source: Path | bytes) -> Image.Image:
    """The picture of a file or of its content, decoded whole.

    Its EXIF orientation is applied, transparent parts stand on white, the colours of a profile in
    the file become sRGB, and 16-bit grey is scaled to 8 bits. Damaged metadata means none.

    Raises:
        UnreadablePicture: if it is damaged, an animation, of float or 32-bit values, in a colour
            space without RGB, or larger than Pillow opens.
        FileNotFoundError: if there is no such file.
    """
    content = verified(source)
    with _unreadable(), Image.open(io.BytesIO(content)) as image:
        _refuse_frames(image)
        upright = ImageOps.exif_transpose(image) if _orientation(image) != 1 else image
        upright.format = image.format
        return to_rgb(upright)


def verified(source: Path | bytes) -> bytes:
    """The content of a file, after its checksums, which decoding leaves out.

    Raises: as `read_picture`, for what can be seen without decoding.
    """
    content = source.read_bytes() if isinstance(source, Path) else source
    with _unreadable(), Image.open(io.BytesIO(content)) as image:
        image.verify()
    return content


def picture_size(source: Path | bytes) -> tuple[int, int]:
    """Width and height in pixels as shown, from the head of the file.

    Raises: as `verified`.
    """
    with (
        source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as file,
        _unreadable(),
        Image.open(file) as image,
    ):
        width, height = image.size
        return (height, width) if _orientation(image) in _SIDEWAYS else (width, height)


@contextmanager
def _unreadable() -> Iterator[None]:
    """Whatever Pillow raises within is one exception, which says what is the matter."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    except UnreadablePicture:
        raise
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise UnreadablePicture(f"more than {most} million pixels; make it smaller") from None
    except Image.UnidentifiedImageError:
        raise UnreadablePicture("not an image that Pillow can read") from None
    except _DAMAGED as error:
        raise UnreadablePicture(str(error).partition("\n")[0] or type(error).__name__) from None


def _orientation(image: Image.Image) -> int:
    """How the picture lies, as its file says; 1 is upright, and what damaged metadata means."""
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # Pillow would decode all of it to look for more
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except (SyntaxError, ValueError, TypeError, struct.error):
        return 1


def _refuse_frames(image: Image.Image) -> None:
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format not in _STILLS:
        raise UnreadablePicture(f"{frames} frames; give a single image")


def to_rgb(image: Image.Image) -> Image.Image:
    """A picture in memory as RGB: alpha over white, 16-bit grey scaled, profiles applied.

    Raises: UnreadablePicture: for a mode that cannot be shown without a guess.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        grey = np.rint(np.asarray(image, np.float32) / 257).clip(0, 255)
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode not in _PLAIN:
        raise UnreadablePicture(f"values of mode {image.mode}; save it with 8 bits per channel")
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
