"""Pictures as raters get them: the same pixels, nothing that tells where they come from."""

import io
import struct
import zlib
from functools import lru_cache
from pathlib import Path

from PIL import Image

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PIXELS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
_UNREADABLE = (
    OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip
"""What Pillow raises for files that are no pictures, or larger than any that it opens."""


class BrokenPicture(Exception):  # noqa: N818 - it is a finding, not a failure
    """A picture that is gone or not whole."""


def bare_png(content: bytes) -> bytes:
    """A picture as PNG without any metadata, pixels unchanged.

    Of a PNG only the chunks that hold pixels are kept; other formats are decoded and written anew.

    Raises: BrokenPicture: if it is not whole.
    """
    if content.startswith(_SIGNATURE):
        return _stripped(content)
    try:
        with Image.open(io.BytesIO(content)) as image:
            plain = image.convert("RGB")
    except _UNREADABLE as error:
        raise BrokenPicture(str(error)) from None
    target = io.BytesIO()
    Image.frombytes("RGB", plain.size, plain.tobytes()).save(target, "PNG", compress_level=1)
    return target.getvalue()


def _stripped(content: bytes) -> bytes:
    parts, kinds, place = [_SIGNATURE], set[bytes](), len(_SIGNATURE)
    while True:
        if len(content) < place + 12:
            raise BrokenPicture("the file is cut off")
        (length,) = struct.unpack_from(">I", content, place)
        end = place + 12 + length
        kind = content[place + 4 : place + 8]
        (checksum,) = struct.unpack_from(">I", content[end - 4 : end].ljust(4, b"\0"))
        if end > len(content) or zlib.crc32(content[place + 4 : end - 4]) != checksum:
            raise BrokenPicture("the file is damaged")
        kinds.add(kind)
        if kind in _PIXELS:
            parts.append(content[place:end])
        if kind == b"IEND":
            if b"IDAT" not in kinds:
                raise BrokenPicture("the file has no pixels")
            return b"".join(parts)
        place = end


def read_bare(path: Path) -> bytes:
    """The picture of a file; see `bare_png`.

    Raises: BrokenPicture: if it is gone or not whole.
    """
    try:
        return bare_png(path.read_bytes())
    except OSError as error:
        raise BrokenPicture(str(error)) from None


def size_of(path: Path) -> tuple[int, int]:
    """Width and height in pixels, from the head of the file.

    Raises: BrokenPicture: if the file is gone, no picture, or too large for Pillow.
    """
    try:
        modified = path.stat().st_mtime_ns
        return _size(path, modified)
    except _UNREADABLE as error:
        raise BrokenPicture(str(error)) from None


@lru_cache(maxsize=20_000)
def _size(path: Path, _modified: int) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size
