"""Trackers: each step once, with the value of log.jsonl, whatever was killed in between."""

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from clips import colour_study, rate_all, tiny_clip
from loops import OPTIONS, differences, run_at, train_at

from sayso.base.devices import make_accelerator
from sayso.base.errors import UserError
from sayso.rewards.clip_head import ClipHead
from sayso.stages.fit import FitConfig, fit
from sayso.study.run import Run
from sayso.training import loop as training
from sayso.training.options import TrainOptions, trackers_of
from sayso.training.trackers import Trackers

TRACKED = dataclasses.replace(OPTIONS, max_steps=25, checkpoint_every=10)


class Fake(GeneralTracker):
    """Keeps what it is told, across processes as a service would: by the name of the series."""

    name = "fake"
    requires_logging_directory = False
    kept: dict[str, list[tuple[int, dict[str, Any]]]]
    options: dict[str, list[dict[str, Any]]]
    events: list[str]

    def __init__(self, project: str, **named: Any) -> None:
        super().__init__()
        self.series = f"{project}/{named.get('id', named['name'])}"
        assert named["resume"] == "allow"

    def start(self) -> None:
        self.events.append("start")

    @property
    def tracker(self) -> "Fake":
        return self

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.options.setdefault(self.series, []).append(values)

    def log(self, values: dict[str, Any], step: int | None = None, **_more: Any) -> None:
        assert step is not None
        self.kept.setdefault(self.series, []).append((step, values))

    def finish(self) -> None:
        self.events.append("finish")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    """In place of wandb's and trackio's."""
    kind = type("FakeHere", (Fake,), {"kept": {}, "options": {}, "events": []})
    monkeypatch.setattr("sayso.base.extras.find_spec", lambda name: name)
    for name in ("wandb", "trackio"):
        monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, name, kind)
    return kind


def killed(path: Path, options: TrainOptions, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training that a kill ends after some steps: nothing more is flushed or written."""
    plain = training._Loop.update

    def update(loop: Any, batch: Any) -> None:
        if loop.step == after:
            raise KeyboardInterrupt
        plain(loop, batch)

    with monkeypatch.context() as patched:
        patched.setattr(training._Loop, "update", update)
        with pytest.raises(KeyboardInterrupt):
            train_at(path, options)


def board_of(run: Run) -> Any:
    """What TensorBoard reads of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(str(run.path / "tensorboard"), {"scalars": 0, "images": 0})
    return shown.Reload()


def board(run: Run) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a run: scalar → steps and values."""
    shown = board_of(run)
    return {
        name: [(e.step, e.value) for e in shown.Scalars(name)] for name in shown.Tags()["scalars"]
    }


def test_tensorboard_shows_the_log(tmp_path: Path) -> None:
    _, run = train_at(tmp_path / "r", dataclasses.replace(TRACKED, tracker="tensorboard"))
    shown, history = board(run), run.history()
    assert shown.keys() == history[0].keys() - {"step"}
    for name, points in shown.items():
        assert [step for step, _ in points] == [*range(1, 26)]
        assert [value for _, value in points] == pytest.approx([row[name] for row in history])


def test_trackers_change_nothing_of_the_training(tmp_path: Path) -> None:
    plain, _ = train_at(tmp_path / "plain", TRACKED)
    tracked, _ = train_at(tmp_path / "t", dataclasses.replace(TRACKED, tracker="tensorboard"))
    assert differences(list(plain.network.parameters()), list(tracked.network.parameters())) == 0


def test_a_killed_run_goes_on_in_the_same_series(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake: type[Fake]
) -> None:
    """Killed after step 26; 15 are in a checkpoint, 16 to 25 were sent and are made again.

    tensorboard shows the values of the log; the others keep what they were sent, once each step.
    """
    options = dataclasses.replace(
        TRACKED, max_steps=40, checkpoint_every=15, tracker="tensorboard,wandb,trackio"
    )
    killed(tmp_path / "r", options, 26, monkeypatch)
    assert run_at(tmp_path / "r").tracked["wandb"]["step"] == 25
    _, run = train_at(tmp_path / "r", options)
    history = {row["step"]: row for row in run.history()}
    assert [*history] == [*range(1, 41)]
    for name, points in board(run).items():
        assert [step for step, _ in points] == [*range(1, 41)], name
        values = [history[step][name] for step, _ in points]
        # images_per_s differs from run to run: it shows whose values these are
        assert [value for _, value in points] == pytest.approx(values)
    assert len(fake.kept) == 2
    for series, sent in fake.kept.items():
        assert Counter(step for step, _ in sent) == Counter(range(1, 41)), series
        assert [v["loss"] for _, v in sent] == [history[step]["loss"] for step, _ in sent]
    assert [len(told) for told in fake.options.values()] == [1, 1]
    assert sorted(fake.events) == ["finish"] * 4 + ["start"] * 4


def test_a_tracker_that_comes_later_has_the_steps_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake: type[Fake]
) -> None:
    killed(tmp_path / "r", TRACKED, 12, monkeypatch)
    _, run = train_at(tmp_path / "r", dataclasses.replace(TRACKED, tracker="trackio, tensorboard"))
    [sent] = fake.kept.values()
    assert [step for step, _ in sent] == [*range(1, 26)]
    assert [step for step, _ in board(run)["loss"]] == [*range(1, 26)]


def test_a_run_made_anew_is_another_series(tmp_path: Path, fake: type[Fake]) -> None:
    options = dataclasses.replace(TRACKED, tracker="wandb")
    for study in ("a", "b"):
        train_at(tmp_path / study / "runs" / "align-rwr", options)
    assert len(fake.kept) == 2
    assert all("runs" not in series and "/align-rwr-" in series for series in fake.kept)


def test_other_processes_send_nothing(
    tmp_path: Path, fake: type[Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Accelerator, "is_main_process", property(lambda _: False))
    trackers = Trackers(run_at(tmp_path / "r"), make_accelerator("no"), ("wandb",))
    with trackers.begun(0):
        trackers.log([{"step": 1, "loss": 0.5}])
    assert not fake.kept
    assert not fake.events


def test_a_tracker_that_does_not_start_is_one_line(
    tmp_path: Path, fake: type[Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(tracker: Fake) -> None:
        raise ValueError("no API key\nconfigured")

    monkeypatch.setattr(fake, "start", start)
    with pytest.raises(
        UserError, match=r"--tracker wandb does not start \(no API key configured\);"
    ):
        train_at(tmp_path / "r", dataclasses.replace(TRACKED, tracker="wandb"))


@pytest.mark.parametrize(
    ("tracker", "says"),
    [
        ("tensorbord", "unknown tracker 'tensorbord': did you mean 'tensorboard'?"),
        ("wandb", "tracker wandb needs wandb; install it with: pip install wandb"),
        (
            "tensorboard",
            'tracker tensorboard needs tensorboard; install it with: pip install "sayso[trackers]"',
        ),
    ],
)
def test_what_is_missing_or_unknown_is_said_first(
    tracker: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sayso.base.extras.find_spec", lambda name: None)
    with pytest.raises(UserError) as said:
        dataclasses.replace(TRACKED, tracker=tracker).check()
    assert str(said.value).startswith(says)


def test_trackers_are_no_part_of_a_run() -> None:
    assert "tracker" in TrainOptions.portions & FitConfig.portions


def test_several_go_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sayso.base.extras.find_spec", lambda name: name)
    assert trackers_of("wandb,, wandb , trackio") == ("wandb", "trackio")
    assert trackers_of("") == ()


def test_fit_sends_its_epochs_and_begins_again_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = tiny_clip(tmp_path / "clip")
    study = colour_study(tmp_path / "study", clip, train=12, per_prompt=4)
    rate_all(study)
    config, head = FitConfig(tracker="tensorboard"), ClipHead(hidden_width=32, max_epochs=3)
    plain = Run.log

    def log(run: Run, step: int, **scalars: Any) -> None:
        plain(run, step, **scalars)
        if step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Run, "log", log)
        with pytest.raises(KeyboardInterrupt):
            fit(study, config, head)
    run = fit(study, config, ClipHead(hidden_width=32, max_epochs=3))
    errors = [row["heldout_squared_error"] for row in run.history()]
    shown = board(run)["heldout_squared_error"]
    assert shown == list(zip((1, 2, 3), map(pytest.approx, errors), strict=True))
