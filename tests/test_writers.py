"""Short writers share a transaction: one commit for all, and none fails for another's fault."""

import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Event

import pytest
from sqlalchemy import Connection, event
from sqlalchemy.exc import OperationalError

from sayso.feedback.database import ConflictError, Database, StoreError
from sayso.feedback.writers import MOST

Write = Callable[[Connection], None]


def put(n: int) -> Write:
    return lambda db: db.exec_driver_sql("insert into numbers values (?)", (n,)) and None


class Store:
    """A database with a table of numbers, and threads that write into it."""

    def __init__(self, folder: Path, timeout_s: float = 10.0) -> None:
        self.path = folder / "numbers.db"
        self.database = Database(self.path, timeout_s, keep_open=True)
        self._pool = ThreadPoolExecutor(40)
        self.commits: list[list[int]] = []
        with self.database.write() as db:
            db.exec_driver_sql("create table numbers (n integer primary key)")
        event.listen(self.database.engine, "commit", lambda _: self.commits.append(self.seen()))

    def seen(self) -> list[int]:
        """What another connection sees."""
        with closing(sqlite3.connect(self.path)) as db:
            return [n for (n,) in db.execute("select n from numbers order by n")]

    def start(self, write: Write, shares: bool = True) -> "Future[list[int]]":
        """Write in a thread: what another connection sees as soon as that has returned."""

        def work() -> list[int]:
            with self.database.write(shares) as db:
                write(db)
            return self.seen()

        return self._pool.submit(work)

    @contextmanager
    def held(self, first: Write, shares: bool = True):
        """One writer is at work in the block, then done; it is `Future` of the block."""
        begun, may_end = Event(), Event()

        def work(db: Connection) -> None:
            first(db)
            begun.set()
            assert may_end.wait(20)

        future = self.start(work, shares)
        assert begun.wait(20)
        yield future
        may_end.set()

    def wait_for(self, n: int) -> None:
        """Until so many stand in line."""
        end = time.monotonic() + 20
        while len(self.database._writers._line) < n:
            assert time.monotonic() < end
            time.sleep(0.002)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def test_who_waits_shares_the_commit_and_returns_after_it(store: Store):
    with store.held(put(0)) as first:
        others = [store.start(put(n)) for n in range(1, 9)]
        store.wait_for(8)
        assert store.seen() == []
    assert {tuple(one.result()) for one in (first, *others)} == {tuple(range(9))}
    assert store.commits == [[]]  # the one commit, before which nobody saw anything


def test_a_writer_that_fails_is_undone_alone(store: Store):
    def fail(db: Connection) -> None:
        put(77)(db)
        raise KeyError("mine")

    with store.held(put(0)):
        before, failing, doubled = store.start(put(1)), store.start(fail), store.start(put(0))
        store.wait_for(3)
        after = store.start(put(2))
        store.wait_for(4)
    with pytest.raises(KeyError, match="mine"):
        failing.result()
    with pytest.raises(ConflictError):
        doubled.result()
    assert before.result() == after.result() == [0, 1, 2]


def test_a_first_writer_that_fails_leaves_nothing_and_the_next_begins(store: Store):
    def fail(_: Connection) -> None:
        raise KeyError("mine")

    with store.held(put(5)) as first:
        failing = store.start(fail, shares=False)
        store.wait_for(1)
        after = store.start(put(6))
        store.wait_for(2)
    # its commit may be seen with the next one
    assert first.result()[0] == 5
    with pytest.raises(KeyError):
        failing.result()
    assert after.result() == [5, 6]


def test_when_the_commit_fails_all_are_refused_and_the_next_goes_on(store: Store):
    def refuse(_: Connection) -> None:
        raise OperationalError("commit", {}, sqlite3.OperationalError("disk I/O error"))

    with store.held(put(0)) as first:
        others = [store.start(put(n)) for n in (1, 1, 2)]  # one would be refused anyway
        store.wait_for(3)
        event.listen(store.database.engine, "commit", refuse)
    for one in (first, *others):
        with pytest.raises(StoreError, match="disk"):
            one.result()
    event.remove(store.database.engine, "commit", refuse)
    assert store.start(put(3)).result() == [3]


def test_a_transaction_that_the_machine_has_undone_is_nobodys(store: Store):
    """SQLite rolls back by itself when the disk is full; what comes then must not be lost."""

    def full(db: Connection) -> None:
        db.connection.driver_connection.execute("ROLLBACK")  # type: ignore[union-attr]
        raise KeyError("mine")

    with store.held(put(0)) as first:
        undone = store.start(full)
        store.wait_for(1)
        after = store.start(put(1))
        store.wait_for(2)
    for one in (first, undone):
        with pytest.raises(StoreError):
            one.result()
    assert after.result() == [1]


def test_a_long_writer_has_its_own_transaction(store: Store):
    with store.held(put(0)) as first:
        long = store.start(put(1), shares=False)
        store.wait_for(1)
        short = store.start(put(2))
        store.wait_for(2)
    assert (first.result(), long.result(), short.result())[2] == [0, 1, 2]
    assert store.commits == [[], [0], [0, 1]]


def test_not_more_than_some_share(store: Store):
    with store.held(put(0)):
        others = [store.start(put(n)) for n in range(1, MOST + 5)]
        store.wait_for(MOST + 4)
    assert max(one.result()[-1] for one in others) == MOST + 4
    assert store.commits[0] == []
    assert len(store.commits[1]) == MOST
    assert len(store.commits) == 2


def test_who_gives_up_waiting_is_in_nobodys_way(tmp_path: Path):
    store = Store(tmp_path, timeout_s=0.3)
    with store.held(put(0)) as first:
        with pytest.raises(StoreError, match="locked"):
            store.start(put(1)).result()
        after = store.start(put(2))
        store.wait_for(1)
    assert first.result()[0] == 0
    assert after.result() == [0, 2]
