"""Numbers that take long to count: kept until the time that they took is paid back."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

SHARE_OF_TIME = 0.05
"""Of the server's time a page may take at most, however often it is asked for."""
FREE_S = 0.2
"""A count that takes less is made for whoever asks."""


@dataclass(frozen=True, slots=True)
class Count(Generic[T]):
    """A value and how long it stands.

    Attributes:
        mark: what it was counted from; the same mark gives the same value.
        at: when it was counted, in seconds since the epoch.
        until: it stands until then whatever happens, in seconds of `time.monotonic`.
        kept: whether counting takes so long that it is not done for whoever asks.
    """

    value: T
    mark: object
    at: float
    until: float
    kept: bool

    def is_stale(self, mark: object) -> bool:
        """Whether to count anew for `mark`; for None whenever the time is paid back."""
        return (mark is None or mark != self.mark) and time.monotonic() >= self.until


class Counter(Generic[T]):
    """Counts anew when something has changed, and not so often that the server does little else.

    Args:
        clock: seconds since the epoch.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._turn = threading.Lock()
        self._last: Count[T] | None = None

    def count(self, make: Callable[[], T], mark: object = None) -> Count[T]:
        """The newest count; the last one while a new one would cost too much or is being made."""
        last = self._last
        if last is not None and not last.is_stale(mark):
            return last
        if not self._turn.acquire(blocking=last is None):
            assert last is not None
            return last
        try:
            last = self._last  # perhaps made while this one waited
            if last is None or last.is_stale(mark):
                last = self._last = self._made(make, mark)
            return last
        finally:
            self._turn.release()

    def _made(self, make: Callable[[], T], mark: object) -> Count[T]:
        at, started = self._clock(), time.monotonic()
        value = make()
        ended = time.monotonic()
        kept = ended - started > FREE_S
        until = ended + ((ended - started) / SHARE_OF_TIME if kept else 0.0)
        return Count(value, mark, at, until, kept)
