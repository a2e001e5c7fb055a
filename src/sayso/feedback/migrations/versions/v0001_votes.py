"""Ratings and comparisons: the tables of sayso 0.1 as they were before any migration."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_SEQ = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def _vote_table(name: str, item: list[sa.Column[Any]], *more: sa.Column[Any]) -> None:
    key = [*(column.name for column in item), "rater", "question", "simulated"]
    op.create_table(
        name,
        sa.Column("seq", _SEQ, primary_key=True, autoincrement=True),
        sa.Column("id", sa.Text, nullable=False, unique=True),
        *item,
        *more,
        sa.Column("rater", sa.Text, nullable=False),
        sa.Column("question", sa.Text, nullable=False),
        sa.Column("value", sa.Text, nullable=False),
        sa.Column("simulated", sa.Boolean, nullable=False),
        sa.Column("shown_at", sa.Double, nullable=False),
        sa.Column("answered_at", sa.Double, nullable=False),
        sa.Column("shown", sa.JSON, nullable=False),
        sa.Column("supersedes", sa.Text, unique=True),
        sa.UniqueConstraint("id", *key, name=f"{name}_identity"),
        sa.ForeignKeyConstraint(
            ["supersedes", *key],
            [f"{name}.{column}" for column in ("id", *key)],
            name=f"{name}_supersedes",
        ),
        sa.CheckConstraint("supersedes <> id", name=f"{name}_not_itself"),
        sqlite_autoincrement=True,
    )
    first = [column for column in key if column != "simulated"]
    alone = sa.text("supersedes IS NULL")
    op.create_index(
        f"{name}_first", name, first, unique=True, sqlite_where=alone, postgresql_where=alone
    )


def upgrade() -> None:
    version = op.create_table("schema_version", sa.Column("version", sa.Integer, nullable=False))
    assert version is not None
    _vote_table(
        "ratings",
        [sa.Column("sample_id", sa.Text, nullable=False)],
        sa.Column("reason", sa.Text, nullable=False),
    )
    _vote_table(
        "comparisons",
        [
            sa.Column("prompt_id", sa.Text, nullable=False),
            sa.Column("pair", sa.Text, nullable=False),
        ],
        sa.Column("left_model", sa.Text, nullable=False),
        sa.Column("right_model", sa.Text, nullable=False),
        sa.Column("left_ids", sa.JSON, nullable=False),
        sa.Column("right_ids", sa.JSON, nullable=False),
    )
    op.bulk_insert(version, [{"version": 1}])
