"""What a training leaves behind while it runs: checkpoints to go on from, and its log."""

import dataclasses
import math
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from loops import (
    ALIGNER,
    OPTIONS,
    batch_of,
    differences,
    half,
    loop_at,
    run_at,
    train_at,
    work,
)

from sayso.base import files
from sayso.base.errors import UserError
from sayso.training import checkpoint
from sayso.training.log import READ_EVERY
from sayso.training.loop import learning_rate_at
from sayso.training.options import COMMON, TrainOptions


def test_checkpoints_come_when_asked_and_hold_what_a_resumed_run_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After steps 2 and 4 of 5; of 4 only after 2, the end is saved as the weights."""
    saved, plain = [], checkpoint.Saver.save

    def note(saver: checkpoint.Saver, state: dict[str, Any], contents: Any) -> None:
        # never weights whose loss is unknown
        logged = [row["step"] for row in saver._run.history()]
        assert logged == list(range(1, state["step"] + 1))
        saved.append(state)
        plain(saver, state, contents)

    monkeypatch.setattr(checkpoint.Saver, "save", note)
    train_at(tmp_path / "five")
    train_at(tmp_path / "four", dataclasses.replace(OPTIONS, max_steps=4))
    assert [state["step"] for state in saved] == [2, 4, 2]
    # eight rows a step, forward and backward
    assert saved[0] == {"step": 2, "scaler": None, "inputs": "", "evaluations": 2 * 8 * 3}


def test_a_resumed_run_measures_its_own_speed(tmp_path: Path) -> None:
    """And equals the whole one to the bit."""
    half(tmp_path / "cut")
    started = time.perf_counter()
    cut, run = train_at(tmp_path / "cut")
    assert 0 < run.result["seconds"] < time.perf_counter() - started
    whole, other = train_at(tmp_path / "whole")
    assert differences(list(cut.network.parameters()), list(whole.network.parameters())) == 0
    assert run.result["steps"] == 5
    assert run.result["images_per_s"] * run.result["seconds"] == pytest.approx(2 * 8)
    assert [row["loss"] for row in run.history()] == [row["loss"] for row in other.history()]


def test_a_resumed_run_refuses_other_inputs_and_an_end_already_passed(tmp_path: Path) -> None:
    half(tmp_path / "r")
    with pytest.raises(UserError, match="checkpoint of step 3, beyond --max-steps 3; give more"):
        loop_at(tmp_path / "r", max_steps=3).resume()
    loop = loop_at(tmp_path / "r", max_steps=4)
    loop.resume()
    assert loop.step == 3
    loop.run.freeze({"reward": "another"})
    with pytest.raises(
        UserError, match=r"inputs\.json of runs/r is not what its checkpoints learned"
    ):
        loop_at(tmp_path / "r").resume()


def test_a_checkpoint_of_the_frozen_inputs_is_resumed(tmp_path: Path) -> None:
    run_at(tmp_path / "r").freeze({"reward": "one"})
    half(tmp_path / "r")
    loop = loop_at(tmp_path / "r")
    loop.resume()
    assert loop.step == 3


def test_a_checkpoint_from_before_inputs_were_noted_is_resumed(tmp_path: Path) -> None:
    run_at(tmp_path / "r").freeze({"reward": "one"})
    latest = half(tmp_path / "r").run.latest_checkpoint
    assert latest is not None
    state = files.read_json(latest / "state.json")
    del state["inputs"]
    files.write_json(latest / "state.json", state)
    loop = loop_at(tmp_path / "r")
    loop.resume()
    assert loop.step == 3


@pytest.mark.parametrize(("gone", "says"), [([], ""), ([1], "lacks 1 of the 3"),
                                           ([1, 3], "lacks 2 of the 3")])  # fmt: skip
def test_a_resumed_run_says_which_steps_its_log_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], gone: list[int], says: str
) -> None:
    run = half(tmp_path / "r").run
    kept = [row for row in run.history() if row["step"] not in gone]
    (run.path / "log.jsonl").unlink()
    # a row of a step that the checkpoint is not yet at stands for none of those before it
    run.log_many([*kept, {"step": 4, "loss": 0.5}])
    capsys.readouterr()
    loop_at(tmp_path / "r").resume()
    told = " ".join("".join(capsys.readouterr()).split())
    assert says in told
    assert ("lacks" in told) == bool(gone)
    assert told.endswith("steps so far; the weights are complete") == bool(gone)


# the log


def test_losses_are_looked_at_every_few_steps(tmp_path: Path) -> None:
    loop = loop_at(tmp_path / "r", max_steps=20)
    assert loop.log.note == ""
    for batch in ALIGNER.batches(work(READ_EVERY + 1)):
        loop.update(batch)
        assert len(loop.log.unread) == loop.step % READ_EVERY
    assert loop.log.note == f"loss {loop.log.lines[-1]['loss']:.4f}"
    assert loop.run.history() == []
    loop.log.flush()
    loop.log.flush()
    rows = loop.run.history()
    assert [row["step"] for row in rows] == list(range(1, READ_EVERY + 2))
    # each look has one speed, over the images since the one before
    assert len({row["images_per_s"] for row in rows[:READ_EVERY]}) == 1


def test_speed_is_images_over_the_seconds_since_the_last_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now: Iterator[float] = iter([100.0, 104.0, 105.0, 107.0, 108.0, 109.0])
    clock = SimpleNamespace(perf_counter=lambda: next(now))
    monkeypatch.setattr("sayso.training.log.time", clock)
    loop = loop_at(tmp_path / "r")
    batches = list(ALIGNER.batches(work()))
    loop.update(batches[0])
    loop.update(batches[1])
    loop.log.flush()
    loop.update(batches[2])
    loop.log.flush()
    speeds = [row["images_per_s"] for row in loop.run.history()]
    assert speeds == [16 / 4, 16 / 4, 8 / 2]


@pytest.mark.parametrize(
    ("step", "precision", "advice"),
    [
        (2, "bf16", "try a lower --learning-rate"),
        (2, "no", "try a lower --learning-rate"),
        (1, "no", "the cause is the model or .*options: restore or change them, and run again"),
        (1, "bf16", "bf16 is not precise enough: try --mixed-precision no"),
    ],
)
def test_advice_fits_the_step_and_the_format(
    tmp_path: Path, step: int, precision: str, advice: str
) -> None:
    log = loop_at(tmp_path / "r", precision).log
    with pytest.raises(UserError, match=f"; {advice}.* under another --name$"):
        log._check(step, {"loss": math.nan, "grad_norm": 1.0})
    log._check(step, {"loss": 1.0, "grad_norm": 1.0})


def test_the_first_process_alone_writes_the_log(tmp_path: Path) -> None:
    loop = loop_at(tmp_path / "r")
    loop.update(batch_of(loop))
    loop.log.accelerator = SimpleNamespace(is_main_process=False, scaler=None)  # type: ignore[assignment]
    loop.log.flush()
    assert loop.run.history() == []
    assert loop.log.lines == []


def test_an_unnamed_learning_rate_is_the_common_one() -> None:
    options = TrainOptions(warmup_steps=1, decay_fraction=0.0)
    assert learning_rate_at(3, options) == COMMON["learning_rate"] > 0
