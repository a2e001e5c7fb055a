"""Pictures as raters get them: plain RGB, nothing that tells where they come from."""

import hashlib
import io
import os
import threading
from collections import OrderedDict
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from anyio import CapacityLimiter
from PIL import Image

from sayso.base.pictures import UnreadablePicture, picture_size, read_picture

STEPS = (256, 384, 512, 768, 1024, 1536, 2048)
"""Longest sides in pixels in which pictures are served; whoever asks for more gets the original."""
SMALL_PX = 256
"""Pictures up to this size are served as they are: there is nothing to gain."""
CACHED_BYTES = 128 * 2**20
"""What a server process keeps of pictures made ready, at most."""

_QUALITY = 95


class BrokenPicture(Exception):  # noqa: N818 - it is a finding, not a failure
    """A picture that is gone or not whole."""


class Served(NamedTuple):
    """A picture as it goes over the line."""

    content: bytes
    media_type: str


def plain(content: bytes) -> Image.Image:
    """The pixels of a picture as `sayso.base.pictures` reads them; no metadata.

    Raises: BrokenPicture: if it is not whole, or cannot be shown without a guess.
    """
    try:
        rgb = read_picture(content)
    except UnreadablePicture as error:
        raise BrokenPicture(str(error)) from None
    return Image.frombytes("RGB", rgb.size, rgb.tobytes())


def as_png(content: bytes) -> Served:
    """The original pixels, whoever wrote the file: the bytes depend on nothing else.

    Raises: BrokenPicture: if it is not whole.
    """
    target = io.BytesIO()
    plain(content).save(target, "PNG", compress_level=1)
    return Served(target.getvalue(), "image/png")


def as_shown(content: bytes, shown_px: int) -> Served:
    """A picture for a frame whose longest side has `shown_px` pixels of the screen; 0 is any.

    A visually lossless WebP no larger than the next of `STEPS`, where that has fewer bytes than the
    file; else the original pixels. Small pictures keep theirs.

    Raises: BrokenPicture: if it is not whole.
    """
    step = step_of(shown_px)
    image = plain(content) if step else None
    if image is None or max(image.size) <= SMALL_PX:
        return as_png(content)
    image.thumbnail((step, step), Image.Resampling.LANCZOS)
    target = io.BytesIO()
    image.save(target, "WEBP", quality=_QUALITY, method=0)
    webp = Served(target.getvalue(), "image/webp")
    return webp if len(webp.content) < len(content) else as_png(content)


def step_of(shown_px: int) -> int:
    """The smallest of `STEPS` that is large enough; 0 stands for the original."""
    return next((step for step in STEPS if step >= shown_px), 0) if shown_px > 0 else 0


class Pictures:
    """Pictures made ready once; the least used leave when they take more than `most_bytes`.

    `makers` lets half of the processors make them ready at a time.
    """

    def __init__(self, most_bytes: int = CACHED_BYTES) -> None:
        self.makers = CapacityLimiter(max(1, (os.cpu_count() or 1) // 2))
        self._most = most_bytes
        self._kept: OrderedDict[tuple[bytes, int], Served] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def ready(self, content: bytes, shown_px: int) -> Served | None:
        """What `make` made of this content for this step, if it is still there."""
        with self._lock:
            found = self._kept.get(_key(content, shown_px))
            if found is not None:
                self._kept.move_to_end(_key(content, shown_px))
            return found

    def make(self, content: bytes, shown_px: int) -> Served:
        """As `as_shown`, and kept."""
        found = self.ready(content, shown_px)
        if found is not None:  # somebody else asked for it meanwhile
            return found
        made = as_shown(content, shown_px)
        with self._lock:
            if self._kept.setdefault(_key(content, shown_px), made) is made:
                self._bytes += len(made.content)
            while self._bytes > self._most:
                self._bytes -= len(self._kept.popitem(last=False)[1].content)
        return made


def _key(content: bytes, shown_px: int) -> tuple[bytes, int]:
    return hashlib.blake2b(content, digest_size=16).digest(), step_of(shown_px)


def read(path: Path) -> bytes:
    """The bytes of a picture's file.

    Raises: BrokenPicture: if it is gone or cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise BrokenPicture(str(error)) from None


def size_of(path: Path) -> tuple[int, int]:
    """Width and height in pixels as shown.

    Raises: BrokenPicture: if the file is gone, no picture, or too large for Pillow.
    """
    try:
        return _size(path, path.stat().st_mtime_ns)
    except (OSError, UnreadablePicture) as error:
        raise BrokenPicture(str(error)) from None


@lru_cache(maxsize=20_000)
def _size(path: Path, _modified: int) -> tuple[int, int]:
    return picture_size(path)
