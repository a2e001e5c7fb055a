"""Run: one folder of `runs/`, written by one stage, resumable and never silently reused."""

import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from sayso import files
from sayso.errors import UserError
from sayso.files import JsonObject

PACKAGES = ("sayso", "torch", "diffusers", "transformers", "accelerate", "peft", "numpy")


class Run:
    """A run folder: config.json, env.json, log.jsonl, checkpoints/, weights/, result.json.

    Made by `Study.run`. `result.json` is written last: its presence means the run is finished.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

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
    def finished(self) -> bool:
        return (self.path / "result.json").exists()

    @property
    def result(self) -> JsonObject:
        """The final numbers. Raises: UserError: if the run is not finished."""
        if not self.finished:
            raise UserError(f"{self.path} is not finished; repeat the command that made it")
        return files.read_json(self.path / "result.json")

    @property
    def weights(self) -> Path:
        """Folder of the result's safetensors files."""
        return self.path / "weights"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def latest_checkpoint(self) -> Path | None:
        """The whole checkpoint with the highest step, or None; half-written ones do not count."""
        steps = [p for p in self.checkpoints.glob("[0-9]*") if p.is_dir()]
        return max(steps, key=lambda p: int(p.name), default=None)

    def add_environment(self, facts: JsonObject) -> None:
        """Add to env.json what is known only once the models are loaded."""
        path = self.path / "env.json"
        files.write_json(path, {**files.read_json(path), **facts})

    def log(self, step: int, **scalars: int | float) -> None:
        """Append one line of named scalars."""
        self.log_many([{"step": step, **scalars}])

    def log_many(self, rows: Sequence[Mapping[str, int | float]]) -> None:
        files.append_lines(self.path / "log.jsonl", rows)

    def history(self) -> list[JsonObject]:
        """The logged lines, oldest first; after a resume a step counts as logged last."""
        rows = {row["step"]: row for row in files.read_lines(self.path / "log.jsonl")}
        return [rows[step] for step in sorted(rows)]

    def finish(self, result: Mapping[str, object]) -> None:
        """Write result.json: from now on the run is finished and its checkpoints are not needed."""
        files.write_json(self.path / "result.json", result)
        shutil.rmtree(self.checkpoints, ignore_errors=True)


def open_run(path: Path, config: JsonObject, seed: int) -> Run:
    """Make the run folder, or reopen the one with the same config.

    Raises: UserError: if the folder holds another config (the differing fields are listed) or is
        half written.
    """
    if not path.exists():
        with files.new_folder(path) as folder:
            files.write_json(folder / "config.json", config)
            files.write_json(folder / "env.json", environment(seed))
    elif not (path / "config.json").is_file():
        raise UserError(
            f"{path} is half written (it has no config.json); delete it or choose another --name"
        )
    run = Run(path)
    _refuse_other_config(run, config)
    files.remove_temporaries(run.path)
    files.remove_temporaries(run.checkpoints)
    return run


def _refuse_other_config(run: Run, config: JsonObject) -> None:
    old = run.config
    changed = [
        f"{key} {old.get(key)!r} → {config.get(key)!r}"
        for key in sorted(old.keys() | config.keys())
        if old.get(key) != config.get(key)
    ]
    if changed:
        raise UserError(
            f"{run.name} exists with another config ({'; '.join(changed)}); "
            "choose another --name, or repeat the old options"
        )


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
