"""Databases as older versions left them."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, create_engine

import sayso.feedback.migrations
from sayso.base.types import Rating
from sayso.feedback.database import address

OLD = Rating("old", "s1", "ann", "alignment", "good", False, 1.0, 2.0)


def migrate_to(version: str, db: Connection) -> None:
    """Run the scripts up to a version."""
    config = Config()
    config.set_main_option("script_location", str(Path(sayso.feedback.migrations.__file__).parent))
    config.attributes["connection"] = db
    command.upgrade(config, version)


def old_store(path: Path) -> None:
    """A database as version 1 left it: no record of migrations, a vote in it."""
    engine = create_engine(address(path))
    with engine.begin() as db:
        migrate_to("0001", db)
        db.exec_driver_sql("drop table alembic_version")
        db.exec_driver_sql(
            "insert into ratings (id, sample_id, reason, rater, question, value, simulated, "
            "shown_at, answered_at, shown) values "
            "('old', 's1', '', 'ann', 'alignment', 'good', 0, 1, 2, '{}')"
        )
    engine.dispose()
