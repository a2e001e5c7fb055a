"""With 100,000 votes in the database no request of raters reads a table from end to end."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_up import fill
from postgresql import running_server
from rating_studies import BASE, TUNED, Rater, RatingApp, items_of, make_study
from sqlalchemy import event, text

from sayso.web.work.tasks import TaskOptions

VOTES = 100_000
BIG = ("ratings", "comparisons", "items", "assignments", "participants")
MOST_STEPS = 8_000
"""Instructions of SQLite's machine for one statement: some ten rows take hundreds, a table of
100,000 rows millions."""

Statement = tuple[str, Any]


def full_store(folder: Path, kind: str, url: str = "", votes: int = VOTES) -> RatingApp:
    models = (BASE, TUNED) if kind == "compare" else (BASE,)
    study = make_study(folder, 8, 12, models)
    gold = {} if kind == "compare" else {s.id: "good" for s in study.samples()[:4]}
    options = TaskOptions(
        kind=kind, right=TUNED, set_size=2, overlap=3, attention_share=0.2, gold=gold,  # type: ignore[arg-type]
        gold_share=0.1 if gold else 0.0, per_prompt=8,
    )  # fmt: skip
    app = RatingApp(study, options, url, names=("ann", "boss"))
    with app.site.write() as db:
        fill(db, app.site.task, votes, raters=5)
        if url:
            db.exec_driver_sql("analyze")
    return app


def work_of_a_rater(app: RatingApp) -> None:
    """Every request that a rater's page makes."""
    rater = app.client()
    held: list[dict[str, Any]] = []
    for _ in range(8):
        held += rater.pages(3, tuple(page["page_id"] for page in held))
        page = held.pop(0)
        look(rater, page)
        item = items_of(page)[0]
        value = "left" if page["kind"] == "compare" else "good"
        body = rater.body(item, value, question=page["question"])
        for _ in range(2):  # sent again, too
            assert rater.post("/api/votes", body).status_code == 200
        back = rater.body(item, "retracted", question=page["question"], supersedes=body["id"])
        assert rater.post("/api/votes", back).status_code == 200
        again = rater.body(item, value, question=page["question"], supersedes=back["id"])
        assert rater.post("/api/votes", again).status_code == 200
    rater.post("/api/release", {"page_ids": [page["page_id"] for page in held]})
    rater.pages(2)
    rater.http.get("/")
    rater.session()
    rater.http.get("/healthz")
    rater.http.post("/out", data={"csrf": rater.token})


def look(rater: Rater, page: dict[str, Any]) -> None:
    pictures = [item["image"] for item in page["items"]] if "items" in page else page["left"]
    for image in pictures:
        assert rater.http.get(image["url"]).status_code == 200


def statements(app: RatingApp) -> Iterator[Statement]:
    """Each statement that the work sends to the database, once, with its values."""
    seen: dict[str, Any] = {}

    def note(_conn: Any, _cursor: Any, statement: str, values: Any, *_: Any) -> None:
        seen.setdefault(statement, values)

    event.listen(app.site.database.engine, "before_cursor_execute", note)
    work_of_a_rater(app)
    event.remove(app.site.database.engine, "before_cursor_execute", note)
    planned = ("SELECT", "UPDATE", "INSERT", "DELETE", "WITH")
    yield from ((s, v) for s, v in seen.items() if s.lstrip().startswith(planned))


def steps(db: sqlite3.Connection, statement: str, values: Any) -> int:
    """How many instructions SQLite's machine needs, in tens."""
    count = 0

    def tick() -> int:
        nonlocal count
        count += 10
        return 0

    db.set_progress_handler(tick, 10)
    db.execute("savepoint here")
    try:
        if isinstance(values, list):
            db.executemany(statement, values)
        else:
            db.execute(statement, values).fetchall()
    except sqlite3.IntegrityError:
        pass  # a row that stands there by now: it was looked up
    finally:
        db.execute("rollback to here")
        db.set_progress_handler(None, 0)
    return count


@pytest.mark.parametrize("kind", ["rate", "compare"])
def test_no_request_reads_a_whole_table(tmp_path: Path, kind: str):
    app = full_store(tmp_path, kind)
    found = list(statements(app))
    assert len(found) > 20
    db = sqlite3.connect(tmp_path / "study" / "feedback.db", isolation_level=None)
    slow: list[tuple[object, str]] = []
    for statement, values in found:
        many = values[0] if isinstance(values, list) else values
        plan = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {statement}", many)]
        if any(step.startswith("SCAN ") and step.split()[1] in (*BIG, "other") for step in plan):
            slow.append((plan, statement))
        if (n := steps(db, statement, values)) > MOST_STEPS:
            slow.append((n, statement))
    db.close()
    assert not slow, slow


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    with running_server() as url:
        yield url


@pytest.mark.parametrize("kind", ["rate", "compare"])
def test_no_request_reads_a_whole_table_of_postgresql(tmp_path: Path, kind: str, postgresql: str):
    app = full_store(tmp_path, kind, postgresql, votes=30_000)
    found = list(statements(app))
    assert len(found) > 20
    slow: list[tuple[str, str]] = []
    with app.site.database.engine.begin() as db:
        large = [t for t in BIG if (db.scalar(text(f"select count(*) from {t}")) or 0) > 1000]
        for statement, values in found:
            many = values[0] if isinstance(values, list) else values
            plan = db.exec_driver_sql(f"EXPLAIN {statement}", many).scalars().all()
            slow += [(s, statement) for s in plan if any(f"Seq Scan on {t}" in s for t in large)]
        db.exec_driver_sql("drop schema public cascade")
        db.exec_driver_sql("create schema public")
    app.site.database.close()
    assert len(large) == 3
    assert not slow, slow


def test_the_store_is_as_full_as_it_says(tmp_path: Path):
    app = full_store(tmp_path, "rate")
    assert app.table("select count(*) from ratings") == [(VOTES // 3 * 3,)]
    per_item = "select count(distinct rater) n, count(*) m from assignments group by item"
    assert app.table(f"select distinct n, m from ({per_item}) c") == [(3, 3)]
