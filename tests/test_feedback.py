"""The vote store: append-only, idempotent, one live vote, people and programs apart."""

import sqlite3
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import event

from sayso.base.errors import UserError
from sayso.base.types import Comparison, Rating
from sayso.feedback.store import Feedback
from sayso.votes.labels import RatingCounts


def rating(
    key: str, sample: str = "s1", rater: str = "ann", value: str = "good", **more: object
) -> Rating:
    fields = {"simulated": False, "shown_at": 1.0, "answered_at": 2.5, **more}
    return Rating(key, sample, rater, "alignment", value, **fields)  # type: ignore[arg-type]


def comparison(key: str, **more: object) -> Comparison:
    fields = {
        "prompt_id": "p", "left_ids": ("a", "b"), "right_ids": ("c", "d"), "left_model": "base",
        "right_model": "runs/align-rwr", "rater": "ann", "question": "alignment", "value": "left",
        "simulated": False, "shown_at": 1.0, "answered_at": 2.0,
    }  # fmt: skip
    return Comparison(id=key, **{**fields, **more})  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "feedback.db"


@pytest.fixture
def store(path: Path) -> Feedback:
    return Feedback(f"sqlite:///{path}")


def test_reading_makes_no_file(store: Feedback, path: Path):
    assert store.ratings() == []
    assert store.counts(simulated=True) == {}
    assert not path.exists()


def test_what_is_stored_comes_back(store: Feedback, path: Path):
    votes = [
        rating("r1", reason="blurred", value="skip", shown={"position": 2, "with": ["s2"]}),
        rating("r2", sample="s2"),
    ]
    assert store.add_ratings(votes) == 2
    assert store.add_comparisons([comparison("c1"), comparison("c2", question="fidelity")]) == 2
    fresh = Feedback(f"sqlite:///{path}")
    assert fresh.ratings() == votes
    assert [c.left_ids for c in fresh.comparisons()] == [("a", "b"), ("a", "b")]


def test_repeating_changes_nothing(store: Feedback):
    store.add_ratings([rating("r1")])
    assert store.add_ratings([rating("r1"), rating("r2", sample="s2"), rating("r1")]) == 1
    assert [r.id for r in store.ratings()] == ["r1", "r2"]


def test_same_id_with_another_body_is_refused(store: Feedback):
    store.add_ratings([rating("r1")])
    with pytest.raises(UserError, match="other content"):
        store.add_ratings([rating("r0", sample="s9"), rating("r1", value="bad")])
    assert [r.id for r in store.ratings()] == ["r1"]
    with pytest.raises(UserError, match="other content"):
        store.add_ratings([rating("r3", sample="s3"), rating("r3", sample="s4")])


def test_one_live_rating_per_image_rater_and_question(store: Feedback):
    store.add_ratings([rating("r1")])
    with pytest.raises(UserError, match="one live vote"):
        store.add_ratings([rating("r2", value="bad")])
    store.add_ratings([rating("r3", rater="bob"), replace(rating("r4"), question="fidelity")])
    assert len(store.ratings()) == 3


def test_superseding_keeps_the_old_row(store: Feedback, path: Path):
    store.add_ratings([rating("r1")])
    store.add_ratings([rating("r2", value="bad", supersedes="r1")])
    store.add_ratings([rating("r3", value="skip", supersedes="r2")])
    assert [r.id for r in store.ratings()] == ["r3"]
    assert sqlite3.connect(path).execute("select count(*) from ratings").fetchone() == (3,)


@pytest.mark.parametrize(
    "bad",
    [
        {"supersedes": "r1"},  # superseded already
        {"supersedes": "gone"},
        {"supersedes": "r9"},  # itself
        {"supersedes": "r2", "sample": "s2"},
        {"supersedes": "r2", "rater": "bob"},
        {"supersedes": "r2", "simulated": True},
    ],
)
def test_wrong_supersedes_are_refused(store: Feedback, bad: dict[str, object]):
    store.add_ratings([rating("r1"), rating("r2", value="bad", supersedes="r1")])
    with pytest.raises(UserError, match="refused"):
        store.add_ratings([rating("r9", **bad)])  # type: ignore[arg-type]
    assert [r.id for r in store.ratings()] == ["r2"]


def test_comparison_of_the_same_sets_counts_once_whoever_stands_left(store: Feedback):
    store.add_comparisons([comparison("c1")])
    swapped = comparison("c2", left_ids=("c", "d"), right_ids=("a", "b"))
    with pytest.raises(UserError, match="one live vote"):
        store.add_comparisons([swapped])
    store.add_comparisons([replace(swapped, supersedes="c1")])
    assert [c.id for c in store.comparisons()] == ["c2"]


def test_people_and_programs_are_never_merged(store: Feedback):
    store.add_ratings([rating("r1", rater="simulated-1", value="bad", simulated=True)])
    assert store.kind_in_use() is True
    store.add_ratings([rating("r2"), rating("r3", rater="bob", value="skip")])
    assert store.kind_in_use() is False
    assert store.counts(simulated=False) == {"s1": RatingCounts(1, 0, 1)}
    assert store.counts(simulated=True) == {"s1": RatingCounts(0, 1, 0)}
    assert [r.id for r in store.ratings(simulated=True)] == ["r1"]


def test_majority():
    assert RatingCounts(2, 1, 5).value == "good"
    assert RatingCounts(0, 1, 0).value == "bad"
    assert RatingCounts(1, 1, 0).value == "skip"


@settings(deadline=None, max_examples=15)  # a slow disk is no failure
@given(st.lists(st.sampled_from(["good", "bad", "skip"]), min_size=1, max_size=8))
def test_the_last_of_a_chain_is_live(tmp_path_factory: pytest.TempPathFactory, values: list[str]):
    store = Feedback(f"sqlite:///{tmp_path_factory.mktemp('chain') / 'f.db'}")
    for i, value in enumerate(values):
        before = f"r{i - 1}" if i else None
        store.add_ratings([rating(f"r{i}", value=value, supersedes=before)])
    assert [r.value for r in store.ratings()] == [values[-1]]


@pytest.mark.parametrize("bad", [{"value": "great"}, {"rater": ""}])
def test_values_are_checked(store: Feedback, path: Path, bad: dict[str, str]):
    vote = rating("r1")
    for name, value in bad.items():  # past the checks of types that only run in tests
        object.__setattr__(vote, name, value)
    with pytest.raises(UserError, match="r1"):
        store.add_ratings([vote])
    assert not path.exists()


def test_settings_of_sqlite(store: Feedback):
    store.add_ratings([rating("r1")])
    with store._engine.connect() as db:
        settings = [
            db.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        ]
    assert settings == ["wal", 2, 1, 10_000]


def test_many_writers_lose_nothing(path: Path):
    def write(rater: str) -> None:
        store = Feedback(f"sqlite:///{path}")
        for i in range(10):
            store.add_ratings([rating(f"{rater}-{i}", sample=f"s{i}", rater=rater)])

    threads = [Thread(target=write, args=(f"rater-{k}",)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Feedback(f"sqlite:///{path}").ratings()) == 40


# what the machine refuses


def one_line(error: pytest.ExceptionInfo[UserError], path: Path) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert str(path) in text
    return text


def test_newer_store_is_refused(store: Feedback, path: Path):
    store.add_ratings([rating("r1")])
    with sqlite3.connect(path) as db:
        db.execute("update schema_version set version = 99")
    with pytest.raises(UserError, match="upgrade") as error:
        Feedback(f"sqlite:///{path}").ratings()
    assert "99" in one_line(error, path)


def test_locked_store(store: Feedback, path: Path):
    store.add_ratings([rating("r1")])
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    hasty = Feedback(f"sqlite:///{path}", busy_timeout_s=0.05)
    with pytest.raises(UserError, match="locked by another program") as error:
        hasty.add_ratings([rating("r2", sample="s2")])
    one_line(error, path)
    assert len(hasty.ratings()) == 1  # reading goes on meanwhile
    other.execute("ROLLBACK")
    assert hasty.add_ratings([rating("r2", sample="s2")]) == 1


@pytest.fixture
def limited(store: Feedback) -> tuple[Feedback, list[str]]:
    """A store with votes whose later connections run the given commands first."""
    commands: list[str] = []
    store.add_ratings([rating("r1")])

    def restrict(connection: sqlite3.Connection, _record: object) -> None:
        for command in commands:
            connection.execute(command)

    event.listen(store._engine, "connect", restrict)
    return store, commands


@pytest.mark.parametrize(
    ("command", "says"),
    [("PRAGMA query_only=ON", "read-only"), ("PRAGMA max_page_count=1", "disk is full")],
)
def test_refusals_are_one_line(
    limited: tuple[Feedback, list[str]], path: Path, command: str, says: str
):
    store, commands = limited
    commands.append(command)
    votes = [rating(f"r{i}", sample=f"sample-{i}", reason="x" * 500) for i in range(2, 400)]
    with pytest.raises(UserError, match=says) as error:
        store.add_ratings(votes)
    one_line(error, path)
    commands.clear()
    assert [r.id for r in store.ratings()] == ["r1"]


def test_no_database(path: Path):
    path.write_text("this is no database, whatever its name says")
    with pytest.raises(UserError, match="not a database") as error:
        Feedback(f"sqlite:///{path}").ratings()
    one_line(error, path)


@pytest.mark.parametrize("url", ["feedback.db", "mysql://me@here/votes", "sqlite://"])
def test_bad_addresses(url: str):
    with pytest.raises(UserError, match="sqlite:///PATH"):
        Feedback(url)


def test_postgresql_that_does_not_respond_hides_the_password():
    pytest.importorskip("psycopg")
    store = Feedback("postgresql://me:secret@127.0.0.1:1/votes")
    with pytest.raises(UserError, match="check its address") as error:
        store.ratings()
    assert "secret" not in str(error.value)
