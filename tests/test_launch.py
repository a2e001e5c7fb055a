"""Processes of a launch say each thing once; one that is gone is told from a bug."""

from datetime import timedelta

import pytest
from torch.distributed import DistBackendError, DistNetworkError, TCPStore

from sayso.base.launch import ENDED, is_launched, is_lost, is_talking, may_say


def test_the_first_of_several_talks() -> None:
    assert not is_launched({})
    assert not is_launched({"WORLD_SIZE": "1"})
    assert is_launched({"WORLD_SIZE": "2"})
    assert is_talking({})
    assert is_talking({"WORLD_SIZE": "2", "RANK": "0"})
    assert not is_talking({"WORLD_SIZE": "2", "RANK": "1"})
    assert is_talking({"WORLD_SIZE": "1", "RANK": "1"})


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> TCPStore:
    """Of a launch that this process is one of, as torchrun tells it."""
    made = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    told = {
        "WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(made.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0",
    }  # fmt: skip
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    return made


@pytest.mark.usefixtures("store")
def test_a_line_is_said_once_in_a_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert may_say("the disk is full")
    assert not may_say("the disk is full")
    assert may_say("another line")
    assert not may_say(ENDED), "one has said why"
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert may_say(ENDED)
    assert not may_say(ENDED)
    assert may_say("the disk is full")


def test_without_a_store_each_says_what_it_has_to_say(
    store: TCPStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")
    assert may_say("a line")
    assert may_say("a line")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setattr("sayso.base.launch.PATIENCE", timedelta(milliseconds=200))
    monkeypatch.setenv("MASTER_PORT", "1")
    assert may_say("a line")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert may_say("a line")
    assert may_say("a line")


def test_a_lost_process_is_told_from_a_bug() -> None:
    closed = "[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:29631"
    assert is_lost(RuntimeError(closed))
    assert is_lost(DistBackendError("NCCL communicator was aborted"))
    assert is_lost(DistNetworkError("the client socket has timed out"))
    assert not is_lost(RuntimeError("shapes do not match"))
    assert not is_lost(ValueError("Connection closed by peer"))
