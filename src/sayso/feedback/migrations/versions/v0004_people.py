"""Decisions beside the votes, excluded raters, the audit of what admins and reviewers did."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_FIRST = {
    "ratings": ["sample_id", "rater", "question"],
    "comparisons": ["prompt_id", "pair", "rater", "question"],
}


def upgrade() -> None:
    for table, first in _FIRST.items():
        op.add_column(
            table, sa.Column("decision", sa.Boolean, nullable=False, server_default=sa.false())
        )
        _flag_decisions(table)
        op.drop_index(f"{table}_first", table)
        op.drop_index(f"{table}_check", table)
        alone = "supersedes IS NULL AND"
        _partial(
            f"{table}_first", table, first, f"{alone} attention = {{no}} AND decision = {{no}}"
        )
        _partial(f"{table}_check", table, ["item_id", "rater"], f"{alone} attention = {{yes}}")
        _partial(f"{table}_decision", table, first, f"{alone} decision = {{yes}}")
        _partial(f"{table}_decided", table, ["item_id"], "decision = {yes}", unique=False)
        op.create_index(f"{table}_rater", table, ["rater"])
    _give_back_places()
    _admins()
    op.execute("UPDATE schema_version SET version = 4")


def _partial(name: str, table: str, columns: list[str], which: str, unique: bool = True) -> None:
    """A partial index, in each dialect's words for true and false."""
    op.create_index(
        name, table, columns, unique=unique,
        sqlite_where=sa.text(which.format(no=0, yes=1)),
        postgresql_where=sa.text(which.format(no="false", yes="true")),
    )  # fmt: skip


def _flag_decisions(table: str) -> None:
    votes = sa.table(table, sa.column("shown", sa.JSON), sa.column("decision", sa.Boolean))
    decided = votes.c.shown["adjudication"].as_boolean() == sa.true()
    op.execute(sa.update(votes).where(decided).values(decision=True))


def _give_back_places() -> None:
    """A decision held a place among the raters, in its own task and in those opened later."""
    for table in _FIRST:
        op.execute(
            "UPDATE assignments SET state = 'refused', until = 0, vote = NULL, surplus = false "
            f"WHERE vote IN (SELECT id FROM {table} WHERE decision)"
        )
    op.execute("UPDATE tasks SET source = ''")  # their counters are set anew when they are opened


def _admins() -> None:
    op.create_table(
        "exclusions",
        sa.Column("rater", sa.Text, primary_key=True),
        sa.Column("author", sa.Text, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
    )
