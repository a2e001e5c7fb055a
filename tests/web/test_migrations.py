"""Databases of older versions are backed up and brought up to date; their votes stay."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from threading import Thread

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from old_stores import OLD, migrate_to, old_store
from rating_studies import RatingApp, make_study
from sqlalchemy import create_engine

from sayso.base.types import Rating
from sayso.feedback import vote_tables, work_tables
from sayso.feedback.database import Database, StoreError
from sayso.feedback.store import Feedback


def test_scripts_make_the_tables_that_the_code_declares(tmp_path: Path):
    with Database(f"sqlite:///{tmp_path / 'f.db'}").read() as db:
        assert compare_metadata(MigrationContext.configure(db), work_tables.metadata) == []
        assert vote_tables.version(db) == vote_tables.VERSION


def test_an_old_store_is_backed_up_and_migrated(tmp_path: Path):
    path = tmp_path / "feedback.db"
    old_store(path)
    store = Feedback(f"sqlite:///{path}")
    assert store.ratings() == [OLD]
    assert store.add_ratings([Rating("new", "s2", "ann", "alignment", "bad", False, 1.0, 2.0)]) == 1
    with closing(sqlite3.connect(tmp_path / "feedback.db.backup-1")) as backup:
        assert backup.execute("select id from ratings").fetchall() == [("old",)]
        assert backup.execute("select version from schema_version").fetchall() == [(1,)]
        assert backup.execute("pragma integrity_check").fetchone() == ("ok",)
    assert sorted(p.name for p in tmp_path.glob("*backup*")) == ["feedback.db.backup-1"]


def test_a_new_store_needs_no_backup(tmp_path: Path):
    Feedback(f"sqlite:///{tmp_path / 'f.db'}").add_ratings([OLD])
    assert not list(tmp_path.glob("*backup*"))


def test_a_migration_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "feedback.db"
    old_store(path)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("create table tasks (unexpected text)")
    with pytest.raises(StoreError, match="tasks"):
        Feedback(f"sqlite:///{path}").ratings()
    with closing(sqlite3.connect(path)) as db, db:
        assert db.execute("select version from schema_version").fetchall() == [(1,)]
        tables = {row[0] for row in db.execute("select name from sqlite_master")}
        assert "raters" not in tables
        db.execute("drop table tasks")
    assert Feedback(f"sqlite:///{path}").ratings() == [OLD]


def test_many_programs_migrate_at_once(tmp_path: Path):
    path = tmp_path / "feedback.db"
    old_store(path)
    found: list[object] = []
    threads = [
        Thread(target=lambda: found.append(Feedback(f"sqlite:///{path}").ratings()))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[OLD]] * 4


def test_an_old_vote_counts_in_a_task(tmp_path: Path):
    study = make_study(tmp_path)
    path = study.path / "feedback.db"
    old_store(path)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("update ratings set sample_id = ?", [study.samples()[0].id])
    app = RatingApp(study)
    assert app.client().work() == 11
    shutil.rmtree(tmp_path / "study" / "images")
    assert len(study.feedback.counts(simulated=False)) == 12


WORK_OF_VERSION_2 = """
insert into raters values ('r', 'ann', 'rater', 0, 1, 'hash', 1);
insert into tasks values ('t', 'task', 'compare', 1, 2, 5, 0.0, 0.1, 'open', '', 2, 3, 4, 1, 1);
insert into items values
('i', 't', 'alignment:i', 'p', '', 0, 0, 'a', 'alignment', 'x', 'x', '[]', '[]', '[]', '', 2, 1, 1, 0),
('j', 't', 'alignment:j', 'q', '', 1, 0, 'b', 'alignment', 'x', 'x', '[]', '[]', '[]', '', 2, 0, 1, 0),
('k', 't', 'attention:k', 'k', 'attention', 2, 0, 'c', 'alignment', 'x', 'x', '[]', '[]', '[]', 'left', 0, 1, 1, 0);
insert into participants values ('t', 'r', 0, 3, 1);
insert into assignments values
('i', 'r', 't', 'one', 'answered', 0, 1, 0, 'v', 0), ('j', 'r', 't', 'two', 'leased', 9, 1, 1, null, 0),
('k', 'r', 't', 'three', 'answered', 0, 1, 2, 'w', 0);
"""  # noqa: E501


def test_work_of_version_2_gets_counters_and_its_checks_wait(tmp_path: Path):
    """Its checks were made by looser rules; they are asked again when an admin confirms them."""
    path = tmp_path / "feedback.db"
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as db:
        migrate_to("0002", db)
    engine.dispose()
    with closing(sqlite3.connect(path)) as db:
        db.executescript(WORK_OF_VERSION_2)
    with Database(f"sqlite:///{path}").read() as db:
        assert db.exec_driver_sql("select answers from tasks").all() == [(2,)]
        assert db.exec_driver_sql("select answers, leaning from participants").all() == [(2, 3)]
        checks = "select id, standing, open from items order by id"
        assert db.exec_driver_sql(checks).all() == [
            ("i", "", 1),
            ("j", "", 1),
            ("k", "proposed", 0),
        ]
        assert db.exec_driver_sql("select epoch from raters").all() == [(0,)]
        indices = "select sql from sqlite_master where name = 'ratings_first'"
        assert "attention = 0" in db.exec_driver_sql(indices).scalar_one()
    assert (tmp_path / "feedback.db.backup-2").exists()
