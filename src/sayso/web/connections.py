"""Connections to the server: how many there may be, and how long one may take to ask something."""

import asyncio
import logging
import resource
import time
from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from sayso.web.site import is_loopback

log = logging.getLogger("sayso.web")

_OTHER_FILES = 256
"""Kept for the database, pictures and whatever else is open."""
_SAID_EVERY_S = 60.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What is borne.

    Args:
        in_all: connections at a time.
        per_address: of one address; this machine's own, where a proxy may be, is not limited.
        head_s, body_s: until the head of a request is there, and then its body.
    """

    in_all: int
    per_address: int
    head_s: float = 10.0
    body_s: float = 60.0


def limits_of_this_machine() -> Limits:
    """As many connections as there may be open files, after raising the limit as far as allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    except (OSError, ValueError):  # some systems allow less than they say
        pass
    files = 8192 if soft == resource.RLIM_INFINITY else min(soft, 8192)
    in_all = max(files // 2, files - _OTHER_FILES)
    return Limits(in_all, per_address=max(16, in_all // 4))


class Door:
    """Who is connected. A new connection takes the place of the oldest idle one if need be."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._open: dict[GuardedProtocol, str] = {}  # in the order in which they came
        self._of: Counter[str] = Counter()
        self._closed, self._said_at = 0, float("-inf")

    def enter(self, new: "GuardedProtocol", address: str) -> None:
        """Let a connection in, and another out where there are too many."""
        self._open[new] = address
        self._of[address] += 1
        if self._of[address] > self.limits.per_address and not is_loopback(address):
            self._let_out(new, address)
        elif len(self._open) > self.limits.in_all:
            self._let_out(new, "")

    def _let_out(self, new: "GuardedProtocol", address: str) -> None:
        idle = (
            one
            for one, of in self._open.items()
            if one is not new and one.is_idle and address in ("", of)
        )
        next(idle, new).end("too many connections")

    def leave(self, one: "GuardedProtocol") -> None:
        """Forget a connection that is closed."""
        address = self._open.pop(one, None)
        if address is not None:
            self._of[address] -= 1
            self._of += Counter[str]()  # drops who has none

    def say(self, why: str) -> None:
        """One line a minute, however many are closed."""
        self._closed += 1
        if time.monotonic() - self._said_at >= _SAID_EVERY_S:
            log.warning("closed %d connections (%s)", self._closed, why)
            self._closed, self._said_at = 0, time.monotonic()


@cache
def _door_of_this_machine() -> Door:
    return Door(limits_of_this_machine())


class GuardedProtocol(H11Protocol):
    """uvicorn's, with a door: this machine's, or that of `guarded`."""

    door: Door | None = None
    _timer: asyncio.TimerHandle | None = None
    _ended = False

    @property
    def _door(self) -> Door:
        return self.door or _door_of_this_machine()

    @property
    def is_idle(self) -> bool:
        """Whether no request of it is being handled."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait(self._door.limits.head_s)
        self._door.enter(self, self.client[0] if self.client else "")

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        self._door.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        was_idle = self.is_idle
        super().data_received(data)
        if self.is_idle:
            if self._timer is None and was_idle:
                self._wait(self._door.limits.head_s)
        elif not self.cycle.more_body:
            self._stop()
        elif was_idle:
            self._stop()
            self._wait(self._door.limits.body_s)

    def _wait(self, seconds: float) -> None:
        self._timer = self.loop.call_later(seconds, self.end, "no complete request in time")

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def end(self, why: str) -> None:
        """Close the connection without a reply."""
        if not self._ended:
            self._ended = True
            self._stop()
            self._door.leave(self)
            self._door.say(why)
            self.transport.abort()


def guarded(limits: Limits) -> type[GuardedProtocol]:
    """The protocol of a server whose connections share these limits."""
    return type("Guarded", (GuardedProtocol,), {"door": Door(limits)})
