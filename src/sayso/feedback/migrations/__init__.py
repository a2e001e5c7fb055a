"""Bring the tables of a database to this version: Alembic's scripts, shipped with the package."""

import sqlite3
from contextlib import closing
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, inspect, text

from sayso.base import files
from sayso.feedback import vote_tables as tables

FIRST = "0001"
"""Revision of databases from before the scripts."""

_LOCK = 0x5A750  # any number that only this package locks


def upgrade(db: Connection, file: Path | None) -> None:
    """Migrate in the open writing transaction, all or nothing; harmless if it was done meanwhile.

    A SQLite database with votes is copied to `<file>.backup-<old version>` before. Who runs
    PostgreSQL makes backups with its tools.

    Args:
        db: holds the write lock.
        file: SQLite's file; None for PostgreSQL.
    """
    if file is None:
        db.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    old = tables.version(db)
    if old >= tables.VERSION:
        return
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = db
    if old and file is not None:
        back_up(file, file.with_name(f"{file.name}.backup-{old}"))
    if old and not inspect(db).has_table("alembic_version"):
        command.stamp(config, FIRST)
    command.upgrade(config, "head")


def back_up(file: Path, copy: Path) -> None:
    """Copy a SQLite database as it is committed, whole or not at all."""
    # a relative path that begins with "file:" would be taken for an address
    source_path = file.absolute()
    with files.new_file(copy.absolute()) as temporary:
        temporary.unlink(missing_ok=True)
        with (
            closing(sqlite3.connect(source_path)) as source,
            closing(sqlite3.connect(temporary)) as target,
        ):
            source.backup(target)
