"""Run: one folder of `runs/`, written by one stage, resumable and never silently reused."""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock

from sayso.base import files
from sayso.base.errors import UserError
from sayso.base.files import JsonObject
from sayso.base.progress import console
from sayso.study.run_lock import NAME as LOCK
from sayso.study.run_lock import lock
from sayso.study.run_options import Asked, continued

PACKAGES = ("sayso", "torch", "diffusers", "transformers", "accelerate", "peft", "numpy")


ROUNDING = (
    "device", "mixed_precision", "processes", "threads", "cpu_capability", "variables",
)  # fmt: skip
"""Facts of env.json on which the last bits of a result hang."""


class Run:
    """A run folder: config, env, inputs, log, checkpoints/, weights/, result.json.

    Made by `Study.run`. `result.json` is written last: its presence means the run is finished.
    As a context manager it lets other processes work on the run when the block has ended.
    `followers` are called with the lines that are logged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.followers: list[Callable[[Sequence[Mapping[str, Any]]], None]] = []
        self._lock: FileLock | None = None

    @property
    def name(self) -> str:
        """The run as other stages name it, e.g. "runs/align-rwr"."""
        return f"runs/{self.path.name}"

    @property
    def config(self) -> JsonObject:
        return files.read_json(self.path / "config.json")

    @property
    def environment(self) -> JsonObject:
        """What env.json says; empty if there is none."""
        path = self.path / "env.json"
        return files.read_json(path) if path.exists() else {}

    @property
    def tracked(self) -> JsonObject:
        """What each tracker was sent, by its name; empty if there is none."""
        path = self.path / "trackers.json"
        return files.read_json(path) if path.exists() else {}

    def note_tracked(self, tracked: Mapping[str, Any]) -> None:
        """Write down what each tracker is sent; see `tracked`."""
        files.write_json(self.path / "trackers.json", dict(tracked))

    @property
    def finished(self) -> bool:
        return (self.path / "result.json").exists()

    @property
    def result(self) -> JsonObject:
        """The final numbers. Raises: UserError: if the run is not finished."""
        if not self.finished:
            raise UserError(f"{self.path} is not finished; run the command that made it again")
        return files.read_json(self.path / "result.json")

    def refuse_damaged(self) -> None:
        """Look at what a finished run made: logs, scores, weights, as result.json lists them.

        Raises: UserError: naming the first file that is gone or not what was written.
        """
        for name, written in self.result.get("files", {}).items():
            path = self.path / name
            if not path.is_file() or files.fingerprint(path) != written:
                raise UserError(
                    f"{self.name} is finished, but its {name} is missing or damaged; restore it, "
                    f"or delete {self.path} and run the command again"
                )

    def _made(self) -> list[str]:
        """The files that the run made beside its papers."""
        there = [*self.path.glob("*.jsonl"), *self.weights.rglob("*"), self.path / "inputs.json"]
        return sorted(str(p.relative_to(self.path)) for p in there if p.is_file())

    @property
    def weights(self) -> Path:
        """Folder of the result's safetensors files."""
        return self.path / "weights"

    def sample_grid(self, step: int) -> Path:
        """The picture of some prompts drawn after that step of training."""
        return self.path / "samples" / f"step-{step:06d}.png"

    def sample_grids(self) -> dict[int, Path]:
        """The pictures that are there, by step."""
        found = {int(p.stem.partition("-")[2]): p for p in self.path.glob("samples/step-*.png")}
        return {step: found[step] for step in sorted(found)}

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def inputs(self) -> JsonObject | None:
        """What the run learns from, as it was when the run was begun; None if that is unknown."""
        path = self.path / "inputs.json"
        return files.read_json(path) if path.exists() else None

    @property
    def inputs_hash(self) -> str:
        """The SHA-256 of inputs.json; "" if there is none."""
        path = self.path / "inputs.json"
        return files.sha256(path) if path.exists() else ""

    def freeze(self, inputs: Mapping[str, Any]) -> None:
        """Write down what the run learns from; see `inputs`."""
        files.write_json(self.path / "inputs.json", dict(inputs))

    @property
    def latest_checkpoint(self) -> Path | None:
        """The checkpoint with the highest step, or None; half-written ones do not count."""
        return next(iter(self.checkpoint_folders()), None)

    def checkpoint_folders(self) -> list[Path]:
        """The checkpoints, newest first."""
        steps = [p for p in self.checkpoints.glob("[0-9]*") if p.is_dir()]
        return sorted(steps, key=lambda p: int(p.name), reverse=True)

    @property
    def has_checkpoints(self) -> bool:
        return self.latest_checkpoint is not None

    def take_lock(self) -> None:
        """Let no other process work on the run. Raises: UserError: if one does; it is named."""
        self._lock = lock(self.path)

    def release_lock(self) -> None:
        if self._lock is not None:
            self._lock.release(force=True)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_error: object) -> None:
        self.release_lock()

    def add_environment(self, facts: JsonObject) -> None:
        """Add to env.json what is known only once the models are loaded."""
        path = self.path / "env.json"
        before = files.read_json(path)
        changed = [k for k in ROUNDING if k in before and k in facts and before[k] != facts[k]]
        if changed:
            console.print(
                f"{self.name} resumes under other conditions than it began with "
                f"({', '.join(changed)}); the last bits may differ"
            )
        files.write_json(path, {**before, **facts})

    def log(self, step: int, **scalars: int | float) -> None:
        """Append one line of named scalars."""
        self.log_many([{"step": step, **scalars}])

    def log_many(self, rows: Sequence[Mapping[str, int | float]]) -> None:
        files.append_lines(self.path / "log.jsonl", rows)
        for follow in self.followers:
            follow(rows)

    def history(self) -> list[JsonObject]:
        """The logged lines, oldest first; after a resume a step counts as logged last."""
        rows = {row["step"]: row for row in files.read_lines(self.path / "log.jsonl")}
        return [rows[step] for step in sorted(rows)]

    def finish(self, result: Mapping[str, object]) -> None:
        """Write result.json: from now on the run is finished and its checkpoints are not needed."""
        made = {name: files.fingerprint(self.path / name) for name in self._made()}
        kept = {"files": made} if made else {}
        files.write_json(self.path / "result.json", {**result, **kept})
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        self.release_lock()


def open_run(
    path: Path,
    asked: Asked,
    seed: int,
    *,
    inputs: Mapping[str, Any] | None = None,
    main: bool = True,
) -> Run:
    """Make the run folder, or reopen the one that was begun with the same options.

    Args:
        asked: what the command asks for.
        inputs: what the run learns from; it is frozen when the run is begun.
        main: whether this process is the one of a launch that writes. It holds the run's lock.
    Raises: UserError: if the folder holds another config (the differing fields are listed) or is
        half written, or another process works on it.
    """
    run = Run(path)
    if run.finished:
        _refuse_half_written(run)
    if run.finished or not main:
        continued(run.name, run.config, asked, finished=run.finished)
        if run.finished:
            run.refuse_damaged()
        return run
    path.mkdir(parents=True, exist_ok=True)
    run.take_lock()
    try:
        if (path / "config.json").is_file():
            _reopen(run, asked, seed, inputs)
        else:
            _begin(run, asked, seed, inputs)
    except BaseException:
        run.release_lock()
        raise
    return run


def _begin(run: Run, asked: Asked, seed: int, inputs: Mapping[str, Any] | None) -> None:
    """Write the papers of a new run, config.json last: with it they are all there."""
    files.remove_temporaries(run.path)
    _refuse_half_written(run)
    files.write_json(run.path / "env.json", environment(seed))
    if inputs is not None:
        run.freeze(inputs)
    files.write_json(run.path / "config.json", asked.options)
    files.sync_folder(run.path.parent)


def _refuse_half_written(run: Run) -> None:
    """A folder with a run's files and no config.json says of nothing what it belongs to."""
    there = {path.name for path in run.path.iterdir()} - {LOCK, "env.json", "inputs.json"}
    if there and "config.json" not in there:
        raise UserError(
            f"{run.path} is incomplete (it has no config.json); delete it or choose another --name"
        )


def _reopen(run: Run, asked: Asked, seed: int, inputs: Mapping[str, Any] | None) -> None:
    old = run.config
    now = continued(run.name, old, asked, finished=False)
    files.remove_temporaries(run.path)
    files.remove_temporaries(run.checkpoints)
    _mend_environment(run, seed)
    if inputs is not None and run.inputs is None:
        run.freeze(inputs)
        if run.has_checkpoints:
            console.print(
                f"{run.name} has no record of its inputs; it resumes with the current ones"
            )
    if now != old:
        files.write_json(run.path / "config.json", now)


def _mend_environment(run: Run, seed: int) -> None:
    """An env.json that cannot be read keeps nobody from going on; the console says so."""
    path = run.path / "env.json"
    try:
        files.read_json(path)
    except UserError as error:
        console.print(f"{error}; it is rewritten", soft_wrap=True)
        files.write_json(path, environment(seed))


def environment(seed: int) -> JsonObject:
    """Where and with what a run was started: command line, commit, versions, seed, time."""
    return {
        "command": sys.argv,
        "commit": _commit(),
        "python": sys.version.split()[0],
        "packages": {name: _version(name) for name in PACKAGES},
        "seed": seed,
        "started_at": time.time(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The checkout's commit, when the package runs from one."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
