"""Pictures read and decoded by this process, or by several beside it."""

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageOps

from sayso.base.errors import UserError
from sayso.base.pictures import UnreadablePicture, read_picture
from sayso.base.types import Size
from sayso.data.pretraining_images._buckets import nearest

PORTION = 8
"""Pictures that a process is given at a time."""
AHEAD = 3
"""Portions for each process that are given out before the first is waited for."""


class Span(NamedTuple):
    """A part of a file."""

    path: Path
    start: int
    size: int


Content = Path | Span | bytes
"""Where a picture is, or what it is."""


def decoded(
    contents: Iterable[Content], sizes: Sequence[Size], workers: int
) -> Iterator[Image.Image | str]:
    """Each picture, its middle as `fitted` takes it, or why it cannot be read; in their order.

    Args:
        contents: taken one by one, a little ahead of what is used.
        sizes: what they are brought to, each to the one whose shape is nearest.
        workers: processes that decode; 0 = this one.
    Raises: UserError: if one of the processes was killed.
    """
    if not workers:
        yield from (_decode(content, sizes) for content in contents)
        return
    try:
        yield from _by_others(iter(contents), sizes, workers)
    except BrokenProcessPool:
        raise UserError(
            "a process that decodes pre-training images was killed, perhaps because memory ran "
            f"out; run the command again with fewer --workers than {workers} to resume"
        ) from None


def _by_others(
    contents: Iterator[Content], sizes: Sequence[Size], workers: int
) -> Iterator[Image.Image | str]:
    waiting = deque[Future[list[Image.Image | str]]]()
    pool = ProcessPoolExecutor(workers, _context(), _begin)
    try:
        while portion := list(islice(contents, PORTION)):
            waiting.append(pool.submit(_decode_all, portion, sizes))
            if len(waiting) > AHEAD * workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _context() -> BaseContext:
    """Forked where that works: they need nothing but Pillow, and a script needs no guard."""
    return multiprocessing.get_context("fork" if sys.platform == "linux" else None)


def _begin() -> None:
    """A process that decodes ends with the one that began it, which alone hears Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent:
            wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _decode_all(contents: list[Content], sizes: Sequence[Size]) -> list[Image.Image | str]:
    return [_decode(content, sizes) for content in contents]


def _decode(content: Content, sizes: Sequence[Size]) -> Image.Image | str:
    try:
        picture = read_picture(_part(content) if isinstance(content, Span) else content)
        return fitted(picture, nearest(Size(*picture.size), sizes))
    except FileNotFoundError:
        return "is missing"
    except (UnreadablePicture, OSError) as reason:
        return f"cannot be read: {reason}"


def _part(span: Span) -> bytes:
    with span.path.open("rb") as file:
        file.seek(span.start)
        return file.read(span.size)


def fitted(picture: Image.Image, size: Size) -> Image.Image:
    """The middle of the picture, as much of it as the size's shape holds."""
    return ImageOps.fit(picture, size, Image.Resampling.LANCZOS)
