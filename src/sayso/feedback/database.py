"""The database of a study: SQLite or PostgreSQL, opened at first use, brought up to date. No torch.

One writer a process: writing transactions take turns (`writers.py`), take the database's write lock
at once, and are on disk when the block has ended.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, DataError, IntegrityError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import NullPool, QueuePool

from sayso.base.errors import UserError
from sayso.base.extras import install
from sayso.feedback import vote_tables as tables
from sayso.feedback.writers import MOST, NoTurn, Writers

BUSY_TIMEOUT_S = 10.0
_UNNOTICED_S = 0.1
"""Waiting that is not counted, so that hasty writers need no more statements."""
_ALLOWED = "sqlite:///PATH or postgresql://USER@HOST/NAME"


class StoreError(UserError):
    """The database cannot be used now: locked, full, read-only, damaged or not running."""


class ConflictError(UserError):
    """A row that the constraints of the tables refuse."""


class Database:
    """A database of votes; a SQLite file that does not exist is made by the first write.

    Args:
        url: "sqlite:///path", "postgresql://user@host/name", or the path of a SQLite file, whatever
            its name.
        busy_timeout_s: how long a writing transaction waits at most, in all, for other threads and
            other programs that write.
        keep_open: keep connections open between transactions, as a server wants; else nothing of
            the database stays open.
    Raises: UserError: for an address that is none.
    """

    def __init__(
        self, url: str | URL | Path, busy_timeout_s: float = BUSY_TIMEOUT_S, keep_open: bool = False
    ) -> None:
        self.url = _parse(url)
        self._busy_timeout_s = busy_timeout_s
        self._keep_open = keep_open
        # PostgreSQL's writers in other processes wait for locks on rows until the commit
        self._writers = Writers(self._begin, MOST if self.file is not None else 1)
        self._current = False

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only reads.

        Raises: StoreError: whatever the machine refuses.
        """
        with self._user_errors():
            self._bring_up_to_date()
            with self.engine.begin() as db:
                yield db

    @contextmanager
    def write(self, shares: bool = False) -> Iterator[Connection]:
        """A writing transaction: after the block it is committed and on disk, or undone.

        Args:
            shares: for short ones, of which many come at a time: they may be committed together.
        Raises:
            ConflictError: if the constraints refuse a row.
            StoreError: whatever the machine refuses.
        """
        with self._user_errors():
            self._bring_up_to_date()
            with self._writers.transaction(self._busy_timeout_s, shares) as db:
                yield db

    def _begin(self, left_s: float) -> Connection:
        """Begin to write, waiting for other programs for `left_s` seconds at most."""
        db = self.engine.execution_options(immediate=True, left_s=left_s).connect()
        try:
            db.begin()
        except BaseException:
            db.close()
            raise
        return db

    @property
    def file(self) -> Path | None:
        """SQLite's file."""
        return Path(str(self.url.database)) if self.url.get_backend_name() == "sqlite" else None

    @property
    def absent(self) -> bool:
        """Whether it is a SQLite file that nobody has made yet."""
        return self.file is not None and not self.file.exists()

    @property
    def name(self) -> str:
        """The file, or the address without its password."""
        return str(self.file or self.url.render_as_string(hide_password=True))

    @cached_property
    def engine(self) -> Engine:
        """SQLAlchemy's engine, with the settings that the promises need."""
        if self.file is None:
            engine = _postgresql(self.url, self._busy_timeout_s)
            event.listen(engine, "begin", self._begin_postgresql)
            return engine
        pool: dict[str, Any] = {"poolclass": NullPool}
        if self._keep_open:
            pool = {"poolclass": QueuePool, "pool_size": 8, "max_overflow": 56}
        threads = {"check_same_thread": False}
        engine = create_engine(self.url, connect_args=threads, **pool)
        event.listen(engine, "connect", self._configure)
        event.listen(engine, "begin", self._begin_sqlite)
        return engine

    def _configure(self, connection: Any, _record: object) -> None:
        # the driver must not begin transactions by itself: `_begin` does
        connection.isolation_level = None
        connection.execute(f"PRAGMA busy_timeout={_ms(self._busy_timeout_s)}")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")

    def _begin_sqlite(self, connection: Connection) -> None:
        if not connection.get_execution_options().get("immediate", False):
            connection.exec_driver_sql("BEGIN")
            return
        # a write lock taken at once can wait its turn; one taken later fails when two readers
        # upgrade
        left_s = self._shorter(connection)
        if left_s is None:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            return
        connection.exec_driver_sql(f"PRAGMA busy_timeout={_ms(left_s)}")
        try:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        finally:
            connection.exec_driver_sql(f"PRAGMA busy_timeout={_ms(self._busy_timeout_s)}")

    def _begin_postgresql(self, connection: Connection) -> None:
        left_s = self._shorter(connection)
        if left_s is not None:
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = {_ms(left_s)}")

    def _shorter(self, connection: Connection) -> float | None:
        """How long may still be waited, where much of the time has gone by."""
        left_s = connection.get_execution_options().get("left_s", self._busy_timeout_s)
        return left_s if left_s < self._busy_timeout_s - _UNNOTICED_S else None

    def _bring_up_to_date(self) -> None:
        """Make the tables, migrate older ones after a backup, refuse newer ones."""
        if self._current:
            if self.absent:  # SQLite would go on writing into a file that nobody can open any more
                self.close()
                raise StoreError(_explain(self.name, "it is gone"))
            return
        version = 0 if self.absent else self._version()
        if version > tables.VERSION:
            raise UserError(
                f"the votes in {self.name} have format {version}, but this sayso only reads up to "
                f"{tables.VERSION}; upgrade sayso"
            )
        if version < tables.VERSION:
            from sayso.feedback.migrations import upgrade

            with self.engine.execution_options(immediate=True).begin() as db:
                upgrade(db, self.file)
        self._current = True

    def _version(self) -> int:
        with self.engine.begin() as db:
            return tables.version(db)

    def close(self) -> None:
        """Give the connections back."""
        self.engine.dispose()

    @contextmanager
    def _user_errors(self) -> Iterator[None]:
        """What the machine refuses is for the user to mend, in one line."""
        try:
            yield
        except IntegrityError as error:
            raise ConflictError(
                f"a vote was refused by {self.name}: each rater has one live vote per item and "
                f"question, and a vote is superseded once ({_first_line(error)})"
            ) from None
        except (ProgrammingError, DataError):
            raise  # a bug of ours, not of the machine
        except DatabaseError as error:
            raise StoreError(_explain(self.name, _first_line(error))) from None
        except NoTurn:
            raise StoreError(_explain(self.name, "locked")) from None
        except PoolTimeout:
            raise StoreError(_explain(self.name, "busy")) from None


def address(file: Path) -> URL:
    """The address of a SQLite file: a path is never pasted into one, for ? and % mean something."""
    return URL.create("sqlite", database=str(file))


def from_anywhere(url: str) -> str:
    """An address as it is stored: a SQLite file with its whole path.

    Raises: UserError: for an address that is none.
    """
    parsed = _parse(url)
    if parsed.get_backend_name() != "sqlite" or "uri" in parsed.query:
        return url
    whole = str(Path(str(parsed.database)).resolve())
    return parsed.set(database=whole).render_as_string(hide_password=False)


def _parse(url: str | URL | Path) -> URL:
    if isinstance(url, Path):
        return address(url)
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise UserError(f"{str(url)!r} is not a database address; give {_ALLOWED}") from None
    backend = parsed.get_backend_name()
    if backend not in ("sqlite", "postgresql"):
        raise UserError(f"database {parsed.drivername!r} is not supported; give {_ALLOWED}")
    if backend == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise UserError(f"{str(url)!r} names no file; give {_ALLOWED}")
    if backend == "sqlite" and isinstance(url, str) and "?" in url and not _options(parsed):
        raise UserError(f"{url!r} is cut off at its question mark; write %3F for it in a path")
    if parsed.drivername == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    return parsed


_SQLITE_OPTIONS = {
    "uri", "timeout", "isolation_level", "detect_types", "check_same_thread", "cached_statements",
}  # fmt: skip


def _options(url: URL) -> bool:
    """Whether what follows the question mark of an address is options of the driver."""
    return bool(url.query) and ("uri" in url.query or url.query.keys() <= _SQLITE_OPTIONS)


def _postgresql(url: URL, timeout_s: float) -> Engine:
    own = url.query.get("options", "")
    connect = {
        "connect_timeout": max(2, round(timeout_s)),
        "options": f"-c lock_timeout={_ms(timeout_s)} {own if isinstance(own, str) else ''}",
        # a server that went away without a word is noticed, too
        "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3,
        "tcp_user_timeout": max(2000, _ms(timeout_s)),
    }  # fmt: skip
    try:
        return create_engine(url, pool_pre_ping=True, pool_timeout=timeout_s, connect_args=connect)
    except ModuleNotFoundError:
        raise UserError(f"PostgreSQL needs psycopg; {install('postgresql')}") from None


def _ms(seconds: float) -> int:
    """Whole milliseconds, at least one: to PostgreSQL 0 is forever."""
    return max(1, round(seconds * 1000))


def _first_line(error: DatabaseError) -> str:
    return (str(error.orig).splitlines() or [type(error.orig).__name__])[0]


_REASONS: Mapping[str, str] = {
    "readonly": "is read-only; make it writable, or copy the study",
    "read-only": "is read-only; make it writable, or copy the study",
    "lock timeout": "is locked by another program; close it and run the command again",
    "locked": "is locked by another program; close it and run the command again",
    "busy": "is locked by another program; close it and run the command again",
    "full": "cannot grow because the disk is full; free some space and run the command again",
    "unable to open": "cannot be opened; check the folder and its permissions",
    "disk i/o": "cannot be read or written; check the disk and its permissions",
    "gone": "was deleted or moved; restore it and start again",
    "not a database": "is not a database; restore it",
    "malformed": "is damaged; restore it",
}


def _explain(name: str, message: str) -> str:
    for sign, reason in _REASONS.items():
        if sign in message.lower():
            return f"the vote store {name} {reason} ({message})"
    return (
        f"the vote store {name} cannot be used ({message}); check its address, and that the "
        "server runs"
    )
