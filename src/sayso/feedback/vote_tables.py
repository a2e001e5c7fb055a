"""The tables of the vote store, the same on SQLite and PostgreSQL.

The constraints alone keep the promise of one live vote per item, rater and question: the first
vote on an item is unique (partial index), a vote is superseded at most once (unique), and only by
one of the same rater on the same item and question (foreign key over all of them). Votes on
attention checks and reviewers' decisions stand beside the votes, each with a first one of its own.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Connection,
    Double,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    and_,
    false,
    inspect,
    select,
    true,
)

VERSION = 5
"""Format of the database; a newer one is refused, an older one migrated (`migrations/`)."""

RETRACTED = "retracted"
"""Value of a row that takes a vote back."""

metadata = MetaData()
_SEQ = BigInteger().with_variant(Integer, "sqlite")

schema_version = Table("schema_version", metadata, Column("version", Integer, nullable=False))


def _vote_table(name: str, item: list[Column[str]], *more: Column[object]) -> Table:
    """A table of votes on the item that the columns `item` identify."""
    key = [*(column.name for column in item), "rater", "question", "simulated"]
    table = Table(
        name,
        metadata,
        Column("seq", _SEQ, primary_key=True, autoincrement=True),
        Column("id", Text, nullable=False, unique=True),
        *item,
        *more,
        Column("rater", Text, nullable=False),
        Column("question", Text, nullable=False),
        Column("value", Text, nullable=False),
        Column("simulated", Boolean, nullable=False),
        Column("shown_at", Double, nullable=False),
        Column("answered_at", Double, nullable=False),
        Column("shown", JSON, nullable=False),
        Column("supersedes", Text, unique=True),
        # of votes through the rating app
        Column("task_id", Text),
        Column("item_id", Text),
        Column("body", Text),  # hash of the request, to tell a repetition from another vote
        Column("surplus", Boolean, nullable=False, server_default=false()),
        # as `shown` says, for queries and constraints
        Column("attention", Boolean, nullable=False, server_default=false()),
        Column("decision", Boolean, nullable=False, server_default=false()),
        UniqueConstraint("id", *key, name=f"{name}_identity"),
        ForeignKeyConstraint(
            ["supersedes", *key],
            [f"{name}.{column}" for column in ("id", *key)],
            name=f"{name}_supersedes",
        ),
        CheckConstraint("supersedes <> id", name=f"{name}_not_itself"),
        sqlite_autoincrement=True,
    )
    first = [table.c[column] for column in key if column != "simulated"]
    _first(table, "first", first, attention=False, decision=False)
    _first(table, "check", [table.c.item_id, table.c.rater], attention=True)
    _first(table, "decision", first, decision=True)
    decided = table.c.decision == true()
    Index(f"{name}_decided", table.c.item_id, sqlite_where=decided, postgresql_where=decided)
    Index(f"{name}_rater", table.c.rater)
    return table


def _first(table: Table, name: str, columns: list[Column[Any]], **flags: bool) -> None:
    """At most one first vote: written as queries are, or SQLite would not use the index."""
    wanted = [table.c[flag] == (true() if value else false()) for flag, value in flags.items()]
    first = and_(table.c.supersedes.is_(None), *wanted)
    Index(f"{table.name}_{name}", *columns, unique=True, sqlite_where=first, postgresql_where=first)


ratings = _vote_table(
    "ratings",
    [Column("sample_id", Text, nullable=False)],
    Column("reason", Text, nullable=False),
)
comparisons = _vote_table(
    "comparisons",
    [
        Column("prompt_id", Text, nullable=False),
        Column("pair", Text, nullable=False),  # hash of the two sets, whichever stood left
    ],
    Column("left_model", Text, nullable=False),
    Column("right_model", Text, nullable=False),
    Column("left_ids", JSON, nullable=False),
    Column("right_ids", JSON, nullable=False),
)

exclusions = Table(
    "exclusions",
    metadata,
    Column(
        "rater", Text, primary_key=True
    ),  # by name, for imported raters have no row of their own
    Column("author", Text, nullable=False),
    Column("created_at", Double, nullable=False),
)
"""Raters whose votes are kept and do not count."""

VOTE_TABLES: Mapping[str, Table] = {"rate": ratings, "compare": comparisons}
"""The table of the votes of each kind of task."""


def version(db: Connection) -> int:
    """The format of the database; 0 if it holds no votes yet."""
    if not inspect(db).has_table("schema_version"):
        return 0
    return int(db.execute(select(schema_version.c.version)).scalar_one())
