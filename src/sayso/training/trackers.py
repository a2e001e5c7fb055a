"""Trackers (tensorboard, wandb, trackio), through accelerate's: what a run logs, while it trains.

A series goes on where a run is resumed. What was sent is noted in the run before it is sent, and
steps that are repeated after a kill are not sent again; tensorboard can forget them, so there they
are replaced. A tracker that comes later is sent what was logged before.
"""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from PIL import Image

from sayso.base.errors import UserError
from sayso.base.files import JsonObject
from sayso.study.run import Run

FORGETS = "tensorboard"
"""The tracker that can be told to forget all after a step."""


@dataclass
class _Series:
    """What a tracker has of this run.

    Attributes:
        series: a random name, so that a run made anew is not taken for the one before it.
        step: the last whose scalars were sent.
        shown: the last whose picture was sent; −1 = none yet.
    """

    tracker: GeneralTracker
    series: str
    step: int
    shown: int


class Trackers:
    """The trackers of a run; they are written to by the main process only.

    Args:
        names: of the trackers, such as ("tensorboard", "wandb").
    """

    def __init__(self, run: Run, accelerator: Accelerator, names: Sequence[str]) -> None:
        self.run, self.accelerator = run, accelerator
        self.names = names if accelerator.is_main_process else ()
        self._series = dict[str, _Series]()

    @contextmanager
    def begun(self, step: int) -> Iterator[None]:
        """A block in which the trackers take what is logged.

        Args:
            step: the last that the run has made; 0 = none.
        Raises: UserError: if a tracker cannot be started.
        """
        try:
            self._begin(step)
            yield
        finally:
            for series in self._series.values():
                series.tracker.finish()
            self._series = {}

    def _begin(self, step: int) -> None:
        if not self.names:
            return
        noted = self.run.tracked
        found = {name: _begun(self.run, name, noted.get(name), step) for name in self.names}
        self._start([series.tracker for series in found.values()])
        self._series = found
        for name in found.keys() - noted.keys():
            _store_options(name, found[name].tracker, self.run.config)
        self.log([row for row in self.run.history() if row["step"] <= step])

    def _start(self, trackers: list[Any]) -> None:
        self.accelerator.log_with = trackers
        try:
            self.accelerator.init_trackers(_project(self.run))
        except OSError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"--tracker {','.join(self.names)} does not start ({reason}); set it up as its own "
                "documentation says, or choose another, and run the command again to resume"
            ) from error

    def log(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Send the scalars of steps, each with its "step"; what a tracker has is left out."""
        for series in self._series.values():
            new = [row for row in rows if row["step"] > series.step]
            if new:
                series.step = new[-1]["step"]
                self._note()
            for row in new:
                scalars = {name: value for name, value in row.items() if name != "step"}
                series.tracker.log(scalars, step=row["step"])

    def show(self, step: int, picture: Image.Image) -> None:
        """Send the sample grid of a step; a tracker that has it is left out."""
        for name, series in self._series.items():
            if step > series.shown:
                series.shown = step
                self._note()
                _show(name, series.tracker, step, picture)

    def _note(self) -> None:
        own = {
            name: {"series": s.series, "step": s.step, "shown": s.shown}
            for name, s in self._series.items()
        }
        self.run.note_tracked({**self.run.tracked, **own})


def _begun(run: Run, name: str, noted: JsonObject | None, step: int) -> _Series:
    """The tracker, not yet started, and where its series goes on."""
    series = noted["series"] if noted else secrets.token_hex(4)
    sent, shown = (noted["step"], noted["shown"]) if noted else (0, -1)
    if name == FORGETS:
        # of what comes after the last step that was sent it forgets pictures too
        sent = min(sent, step)
        shown = min(shown, sent)
        own = ("tensorboard", str(run.path)), {"purge_step": sent + 1 if noted else None}
    elif name == "wandb":
        own = (_project(run),), {
            "name": run.path.name, "id": f"{run.path.name}-{series}", "resume": "allow",
            "dir": str(run.path),
        }  # fmt: skip
    else:
        own = (_project(run),), {"name": f"{run.path.name}-{series}", "resume": "allow"}
    positional, named = own
    tracker: Any = LOGGER_TYPE_TO_CLASS[name]
    return _Series(tracker(*positional, **named), series, sent, shown)


def _project(run: Run) -> str:
    """The study's folder, by name: what the runs of a study share."""
    return run.path.resolve().parent.parent.name


def _store_options(name: str, tracker: GeneralTracker, options: JsonObject) -> None:
    flat = {key: value for key, value in options.items() if not isinstance(value, dict)}
    flat |= options.get("options") or {}
    if name == FORGETS:
        # its own way of keeping options makes a run beside the run
        table = "\n".join(f"| {key} | {value} |" for key, value in flat.items())
        tracker.log({"options": f"| option | value |\n|---|---|\n{table}"}, step=0)
    else:
        tracker.store_init_configuration(flat)


def _show(name: str, tracker: Any, step: int, picture: Image.Image) -> None:
    if name == FORGETS:
        pixels = np.asarray(picture)[None]
        tracker.log_images({"samples": pixels}, step=step, dataformats="NHWC")
        # else it is lost with a kill
        tracker.tracker.flush()
    elif name == "trackio":
        image: Any = import_module("trackio").Image
        tracker.log({"samples": image(picture)}, step=step)
    else:
        tracker.log_images({"samples": [picture]}, step=step)
