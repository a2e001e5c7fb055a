"""The writers of one process: they take turns, and short ones share a way to the disk.

Waiting for the disk takes longer than what a vote does. So whoever waits meanwhile goes on in the
same transaction, each behind a savepoint of its own, and all return after the one commit.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

MOST = 20
"""Writers who share a transaction, so that the first of them need not wait for long."""


class NoTurn(Exception):  # noqa: N818 - the others are at fault
    """The turn did not come in time."""


@dataclass(eq=False)
class _Shared:
    """A transaction: how many writers it has had, and how it ended."""

    db: Connection
    writers: int = 1
    over: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None


@dataclass(eq=False)
class _Place:
    """One who waits in line, and the transaction to go on in when the turn has come."""

    shares: bool
    called: threading.Event = field(default_factory=threading.Event)
    joins: _Shared | None = None


class Writers:
    """Who writes, and who waits for it.

    Args:
        begin: begins a transaction that waits for other programs for so many seconds at most.
        most: writers who share a transaction; 1: each has its own.
    """

    def __init__(self, begin: Callable[[float], Connection], most: int = MOST) -> None:
        self._begin, self._most = begin, most
        self._mutex = threading.Lock()
        self._busy = False
        self._line: deque[_Place] = deque()

    @contextmanager
    def transaction(self, timeout_s: float, shares: bool) -> Iterator[Connection]:
        """A transaction that is committed after the block, or what the block did is undone.

        Args:
            timeout_s: how long to wait in all, for other threads and other programs.
            shares: whether others may go on in the same transaction; for short ones, which let
                errors of the database through.
        Raises: NoTurn: if the other threads take too long.
        """
        began = time.monotonic()
        shared = self._come(timeout_s, shares)
        if shared is not None:
            with self._joined(shared):
                yield shared.db
            return
        try:
            shared = _Shared(self._begin(timeout_s - (time.monotonic() - began)))
        except BaseException:
            self._call()
            raise
        try:
            yield shared.db
        except BaseException:
            try:
                shared.db.close()  # undoes everything
            finally:
                self._call()
            raise
        self._end(shared, shares)

    @contextmanager
    def _joined(self, shared: _Shared) -> Iterator[None]:
        """A part of a transaction that others have begun: undone alone if the block fails."""
        try:
            with _failing_together(shared):
                part = shared.db.begin_nested()
            try:
                yield
            except BaseException as error:
                try:
                    part.rollback()
                except BaseException as failure:  # a full disk has undone everything by itself
                    shared.error = error if isinstance(error, OperationalError) else failure
                raise
            with _failing_together(shared):
                part.commit()
        finally:  # one that was refused waits too: what it has seen may come to nothing
            self._end(shared, shares=True)

    def _come(self, timeout_s: float, shares: bool) -> _Shared | None:
        """Wait for the turn: the transaction to go on in; None to begin one."""
        with self._mutex:
            if not self._busy:
                self._busy = True
                return None
            place = _Place(shares)
            self._line.append(place)
        if not place.called.wait(timeout_s):
            with self._mutex:
                if place in self._line:
                    self._line.remove(place)
                    raise NoTurn
        return place.joins

    def _call(self, shared: _Shared | None = None) -> bool:
        """Give the turn to who is next, in the open transaction if it has one: whether it has."""
        with self._mutex:
            if shared is not None:
                if not self._line or not self._line[0].shares or shared.writers >= self._most:
                    return False
                shared.writers += 1
            elif not self._line:
                self._busy = False
                return False
            place = self._line.popleft()
            place.joins = shared
            place.called.set()
            return True

    def _end(self, shared: _Shared, shares: bool) -> None:
        """Commit, or let the next writer go on and wait until one has committed."""
        if shared.error is None and shares and self._call(shared):
            shared.over.wait()
        else:
            self._commit(shared)
        if shared.error is not None:
            raise shared.error

    def _commit(self, shared: _Shared) -> None:
        try:
            with suppress(BaseException), _failing_together(shared):
                if shared.error is None:
                    shared.db.commit()
            with suppress(BaseException):
                if shared.error is not None:
                    shared.db.invalidate()  # nobody knows what it still holds
                shared.db.close()
        finally:
            self._call()
            shared.over.set()


@contextmanager
def _failing_together(shared: _Shared) -> Iterator[None]:
    """A step whose failure is that of all who share the transaction."""
    try:
        yield
    except BaseException as error:
        shared.error = shared.error or error
        raise
