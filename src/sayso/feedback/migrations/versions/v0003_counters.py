"""Counters of votes, standing of checks, epochs of sessions; partial indices that are used."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    _indices()
    _sessions()
    _checks()
    _counters()
    op.execute("UPDATE schema_version SET version = 3")


def _indices() -> None:
    """Said as queries say it: SQLite uses a partial index only where it finds the same words."""
    false, true = ("false", "true") if op.get_bind().dialect.name == "postgresql" else ("0", "1")
    first = {
        "ratings": ["sample_id", "rater", "question"],
        "comparisons": ["prompt_id", "pair", "rater", "question"],
    }
    for table, columns in first.items():
        _partial(f"{table}_first", table, columns, f"supersedes IS NULL AND attention = {false}")
        check = f"supersedes IS NULL AND attention = {true}"
        _partial(f"{table}_check", table, ["item_id", "rater"], check)

    for_broken = sa.text(f"broken = {true}")
    op.create_index(
        "items_broken", "items", ["task"], sqlite_where=for_broken, postgresql_where=for_broken
    )


def _partial(name: str, table: str, columns: list[str], where: str) -> None:
    op.drop_index(name, table)
    words = sa.text(where)
    op.create_index(name, table, columns, unique=True, sqlite_where=words, postgresql_where=words)


def _sessions() -> None:
    op.add_column("raters", sa.Column("epoch", sa.Integer, nullable=False, server_default="0"))


def _checks() -> None:
    """Checks that were made by looser rules wait until an admin confirms them."""
    standing = sa.Column("standing", sa.Text, nullable=False, server_default=sa.text("''"))
    op.add_column("items", standing)
    shelved = "UPDATE items SET standing = 'proposed', open = :closed WHERE control = 'attention'"
    op.execute(sa.text(shelved).bindparams(sa.bindparam("closed", False, sa.Boolean)))


def _counters() -> None:
    zero = sa.text("0")
    for table in ("participants", "tasks"):
        op.add_column(table, sa.Column("answers", sa.Integer, nullable=False, server_default=zero))
    leaning = sa.Column("leaning", sa.Integer, nullable=False, server_default=zero)
    op.add_column("participants", leaning)
    share = sa.Column("check_share", sa.Double, nullable=False, server_default=zero)
    op.add_column("tasks", share)
    given = "SELECT count(*) FROM assignments a WHERE a.state = 'answered' AND a.task = "
    op.execute(f"UPDATE tasks SET answers = ({given} tasks.id), check_share = gold_share")
    op.execute(
        f"UPDATE participants SET answers = ({given} participants.task "
        "AND a.rater = participants.rater), leaning = (SELECT "
        "coalesce(sum(CASE WHEN a.swapped THEN 1 ELSE -1 END), 0) FROM assignments a JOIN items i "
        "ON i.id = a.item WHERE a.task = participants.task AND a.rater = participants.rater "
        "AND a.position >= 0 AND i.pair <> '')"
    )
