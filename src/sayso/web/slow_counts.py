"""Numbers that may take seconds to count: a slow count stands for a minute."""

import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")

SLOW_S = 0.2
"""A faster count is made anew for every page."""
KEPT_S = 60.0
"""How long a slow count stands."""


@dataclass(frozen=True, slots=True)
class Count(Generic[T]):
    """A value, when it was counted (seconds since the epoch), and whether that was slow."""

    value: T
    at: float
    is_slow: bool


class SlowCounts:
    """The newest count of each kind."""

    def __init__(self) -> None:
        self._locks: dict[Hashable, threading.Lock] = {}
        self._kept: dict[Hashable, tuple[Count[Any], float]] = {}

    def get(self, what: Hashable, make: Callable[[], T]) -> Count[T]:
        """The count of `what`: the last one while it stands, else what `make` counts now."""
        with self._locks.setdefault(what, threading.Lock()):
            if what in self._kept:
                last, until = self._kept[what]
                if time.monotonic() < until:
                    return last
            started = time.monotonic()
            value = make()
            ended = time.monotonic()
            count = Count(value, time.time(), ended - started > SLOW_S)
            self._kept[what] = count, ended + KEPT_S if count.is_slow else ended
            return count
