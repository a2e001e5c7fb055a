"""Work of several raters: tasks, items, assignments, raters; votes say where they came from."""

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    _votes()
    _people()
    _tasks()
    op.execute("UPDATE schema_version SET version = 2")


def _votes() -> None:
    for table in ("ratings", "comparisons"):
        for name in ("task_id", "item_id", "body"):
            op.add_column(table, sa.Column(name, sa.Text))
        for name in ("surplus", "attention"):
            flag = sa.Column(name, sa.Boolean, nullable=False, server_default=sa.false())
            op.add_column(table, flag)
    _unique("ratings", ["sample_id", "rater", "question"])
    _unique("comparisons", ["prompt_id", "pair", "rater", "question"])


def _unique(table: str, first: list[str]) -> None:
    """A vote on an attention check may stand beside a vote on the same images."""
    alone = sa.text("supersedes IS NULL AND NOT attention")
    check = sa.text("supersedes IS NULL AND attention")
    op.drop_index(f"{table}_first", table)
    op.create_index(
        f"{table}_first", table, first, unique=True, sqlite_where=alone, postgresql_where=alone
    )
    op.create_index(
        f"{table}_check", table, ["item_id", "rater"], unique=True, sqlite_where=check,
        postgresql_where=check,
    )  # fmt: skip


def _people() -> None:
    store = op.create_table(
        "store",
        sa.Column("id", sa.Text, primary_key=True),
    )
    op.create_table(
        "raters",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, nullable=False, unique=True),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("simulated", sa.Boolean, nullable=False),
        sa.Column("active", sa.Boolean, nullable=False),
        sa.Column("link", sa.Text, unique=True),
        sa.Column("created_at", sa.Double, nullable=False),
    )
    op.create_table(
        "guidelines",
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("author", sa.Text, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
    )
    op.create_table(
        "acceptances",
        sa.Column("rater", sa.Text, sa.ForeignKey("raters.id"), nullable=False),
        sa.Column("version", sa.Integer, sa.ForeignKey("guidelines.version"), nullable=False),
        sa.Column("accepted_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("rater", "version"),
    )
    assert store is not None
    op.bulk_insert(store, [{"id": secrets.token_hex(8)}])


def _tasks() -> None:
    op.create_table(
        "tasks",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("images_per_page", sa.Integer, nullable=False),
        sa.Column("overlap", sa.Integer, nullable=False),
        sa.Column("seed", sa.Integer, nullable=False),
        sa.Column("gold_share", sa.Double, nullable=False),
        sa.Column("attention_share", sa.Double, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("n_items", sa.Integer, nullable=False),
        sa.Column("n_ranks", sa.Integer, nullable=False),
        sa.Column("wanted", sa.Integer, nullable=False),
        sa.Column("votes", sa.Integer, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
    )
    op.create_table(
        "items",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("task", sa.Text, sa.ForeignKey("tasks.id"), nullable=False),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("pair", sa.Text, nullable=False),
        sa.Column("control", sa.Text, nullable=False),
        sa.Column("rank", sa.Integer, nullable=False),
        sa.Column("slot", sa.Integer, nullable=False),
        sa.Column("page", sa.Text, nullable=False),
        sa.Column("question", sa.Text, nullable=False),
        sa.Column("prompt_id", sa.Text, nullable=False),
        sa.Column("prompt", sa.Text, nullable=False),
        sa.Column("samples", sa.JSON, nullable=False),
        sa.Column("images", sa.JSON, nullable=False),
        sa.Column("models", sa.JSON, nullable=False),
        sa.Column("expected", sa.Text, nullable=False),
        sa.Column("overlap", sa.Integer, nullable=False),
        sa.Column("votes", sa.Integer, nullable=False),
        sa.Column("open", sa.Boolean, nullable=False),
        sa.Column("broken", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.UniqueConstraint("task", "content"),
    )
    op.create_table(
        "participants",
        sa.Column("task", sa.Text, sa.ForeignKey("tasks.id"), nullable=False),
        sa.Column("rater", sa.Text, sa.ForeignKey("raters.id"), nullable=False),
        sa.Column("cursor", sa.Integer, nullable=False),
        sa.Column("handed_out", sa.Integer, nullable=False),
        sa.Column("seen_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("task", "rater"),
    )
    op.create_table(
        "assignments",
        sa.Column("item", sa.Text, sa.ForeignKey("items.id"), nullable=False),
        sa.Column("rater", sa.Text, sa.ForeignKey("raters.id"), nullable=False),
        sa.Column("task", sa.Text, sa.ForeignKey("tasks.id"), nullable=False),
        sa.Column("key", sa.Text, nullable=False, unique=True),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("until", sa.Double, nullable=False),
        sa.Column("swapped", sa.Boolean, nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("vote", sa.Text),
        sa.Column("surplus", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.PrimaryKeyConstraint("item", "rater"),
    )
    op.create_index("items_open", "items", ["task", "control", "open", "rank"])
    op.create_index("items_page", "items", ["page"])
    op.create_index("items_pair", "items", ["task", "pair"])
    op.create_index("assignments_rater", "assignments", ["task", "rater", "state"])
