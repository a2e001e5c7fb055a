"""The vote store on a real PostgreSQL server, started for the test on a free port and stopped."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from postgresql import running_server

from sayso.base.errors import UserError
from sayso.base.types import Rating
from sayso.feedback.store import Feedback


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """URL of a server of our own."""
    with running_server() as url:
        yield url


def vote(number: int) -> Rating:
    return Rating(f"id-{number}", f"s{number}", "ann", "alignment", "good", False, 1.0, 2.0)


def test_stored_once_and_superseded(server: str) -> None:
    store = Feedback(server)
    votes = [vote(i) for i in range(5)]
    assert store.add_ratings(votes) == 5
    assert store.add_ratings(votes) == 0
    changed = replace(votes[0], id="id-9", value="bad", supersedes="id-0")
    assert store.add_ratings([changed]) == 1
    live = {rating.sample_id: rating.value for rating in Feedback(server).ratings()}
    assert live == {"s0": "bad", **{f"s{i}": "good" for i in range(1, 5)}}


def test_all_votes_are_read_in_chunks(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sayso.feedback.store._STREAM_CHUNK", 2)
    store = Feedback(server)
    votes = [replace(vote(i), rater="streamed") for i in range(30, 35)]
    votes = [replace(v, id=f"stream-{v.id}", sample_id=f"stream-{v.sample_id}") for v in votes]
    later = replace(votes[0], id="stream-later", value="bad", supersedes=votes[0].id)
    store.add_ratings([*votes, later])
    mine = [(v, live) for v, live, _ in store.stream(simulated=False) if v.rater == "streamed"]
    assert mine == [(v, v is not votes[0]) for v in [*votes, later]]


def test_same_id_other_body_is_refused(server: str) -> None:
    store = Feedback(server)
    store.add_ratings([vote(20)])
    with pytest.raises(UserError, match="id-20"):
        store.add_ratings([replace(vote(20), value="bad")])
