"""Launches that end badly, forked from one process that has imported everything.

`python tests/launches.py FOLDER KILLS` writes FOLDER/ends.json for tests/kill/test_launches.py.
A launch is made as torchrun makes one, with a store that outlives its processes. In place of
ending the others when one has ended, it waits for them, to see that they end by themselves.
"""

import errno
import json
import os
import random
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from spread_cases import train_case
from torch import Tensor
from torch.distributed import TCPStore
from torch.distributed.checkpoint import HuggingFaceStorageWriter

from sayso.base import files
from sayso.base.errors import UserError
from sayso.cli.commands import plain_errors
from sayso.training import loop

PATIENCE_S = 60
STEPS = 6
EVERY = {"checkpoint_every": 2, "max_steps": STEPS}
Do = Callable[[], object]


class Ended(NamedTuple):
    """Exit codes by rank, the error lines of all, whether one had to be ended, and how long."""

    codes: list[int]
    errors: list[str]
    tracebacks: int
    hung: bool
    seconds: float


def launch(log: Path, world: int, work: Do, before: Do = lambda: None) -> Ended:
    """Do `work` in so many processes, in each after `before`."""
    began, port = time.monotonic(), _free_port()
    logs = [log.with_name(f"{log.name}-{rank}.txt") for rank in range(world)]
    pids = [_fork(logs[rank], rank, world, port, before, work) for rank in range(world)]
    # after the forks, for it has threads
    store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    codes, hung = _wait(pids)
    del store
    said = [line for path in logs for line in path.read_text().splitlines()]
    errors = [line for line in said if line.startswith("sayso: error:")]
    tracebacks = sum("Traceback" in line for line in said)
    return Ended(codes, errors, tracebacks, hung, time.monotonic() - began)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _fork(log: Path, rank: int, world: int, port: int, before: Do, work: Do) -> int:
    pid = os.fork()
    if pid:
        return pid
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0",
    }  # fmt: skip
    sys.stderr, code = log.open("w", buffering=1), 1
    try:
        with plain_errors():
            before()
            work()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _wait(pids: list[int]) -> tuple[list[int], bool]:
    codes, deadline, hung = dict[int, int](), float("inf"), False
    while len(codes) < len(pids):
        for pid in set(pids) - codes.keys():
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                codes[pid] = os.waitstatus_to_exitcode(status)
                deadline = min(deadline, time.monotonic() + PATIENCE_S)
        if time.monotonic() > deadline and not hung:
            hung = True
            for pid in set(pids) - codes.keys():
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    return [codes[pid] for pid in pids], hung


# what goes wrong


def killed(rank: int, step: int, after_s: float) -> Do:
    """SIGKILL for one process, so long after it has begun a step."""

    def die() -> None:
        time.sleep(after_s)
        os.kill(os.getpid(), signal.SIGKILL)

    def before(_: loop._Loop) -> None:
        threading.Thread(target=die).start()

    return at_step(rank, step, before)


def at_step(rank: int, step: int, do: Callable[[loop._Loop], None]) -> Do:
    """Do something in one process before a step."""

    def prepare() -> None:
        update = loop._Loop.update

        def changed(self: loop._Loop, batch: Any) -> None:
            if self.step == step and int(os.environ["RANK"]) == rank:
                do(self)
            update(self, batch)

        loop._Loop.update = changed

    return prepare


def _poison(_: loop._Loop) -> None:
    objective = loop.objective

    def poisoned(*given: Any) -> tuple[Tensor, Any]:
        loss, terms = objective(*given)
        return loss * float("nan"), terms

    loop.objective = poisoned


def _fill_disk(trained: loop._Loop) -> None:
    """Nothing more can be written: of a checkpoint neither shards nor, in the first, its papers."""
    trained.saver.wait()

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    HuggingFaceStorageWriter.write_data = full
    files.write_json = full


def stopped(step: int) -> Do:
    """An end in all processes, after the checkpoint of a step."""

    def prepare() -> None:
        save = loop._Loop.save_in_time

        def changed(self: loop._Loop) -> None:
            save(self)
            if self.step == step:
                self.saver.wait()
                raise UserError("stopped")

        loop._Loop.save_in_time = changed

    return prepare


# what becomes of it


class Ends:
    """Runs launches in a folder with a model, and keeps what became of them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ends = folder, dict[str, Any]()

    def launch(self, run: str, world: int, sharding: str, before: Do = lambda: None) -> Ended:
        """Go on with a run."""
        options: dict[str, Any] = {"sharding": sharding, **EVERY}
        if world == 3:
            # six rows of the aligner's and three pre-training rows
            options |= {"batch_size": 9, "pretraining_fraction": 0.34}
        return self._launch(run, world, before, **options)

    def _launch(self, run: str, world: int, before: Do = lambda: None, **options: Any) -> Ended:
        models, path = self.folder / "model", self.folder / run
        return launch(
            self.folder / f"log-{run}",
            world,
            lambda: train_case(models, path, "rwr", **options),
            before,
        )

    def weights(self, run: str) -> dict[str, Tensor]:
        return load_file(next((self.folder / run / "weights").rglob("*.safetensors")))

    def same(self, run: str, whole: str) -> bool:
        """Whether two runs ended in the same bits."""
        ours, theirs = self.weights(run), self.weights(whole)
        return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)

    def apart(self, run: str, whole: str) -> float:
        ours, theirs = self.weights(run), self.weights(whole)
        return max((ours[name] - theirs[name]).abs().max().item() for name in theirs)

    def fails(self, name: str, world: int, sharding: str, before: Do, whole: str) -> None:
        """A launch in which something goes wrong, and the same one again without."""
        bad = self.launch(name, world, sharding, before)
        steps = sorted(int(p.name) for p in (self.folder / name / "checkpoints").glob("[0-9]*"))
        again = None if (self.folder / name / "result.json").exists() else self.launch(
            name, world, sharding)  # fmt: skip
        self.ends[name] = {
            **bad._asdict(), "checkpoints": steps, "again": again and again.codes,
            "same": self.same(name, whole),
        }  # fmt: skip
        print(name, self.ends[name], flush=True)

    def eight(self, kinds: Iterable[str]) -> None:
        """Eight processes of two rows, one of them a pre-training row, against one of sixteen."""
        options = {"batch_size": 16, "pretraining_fraction": 0.5}
        for run, world, sharding in [("one", 1, "none"), *((f"eight-{k}", 8, k) for k in kinds)]:
            ended = self._launch(run, world, sharding=sharding, micro_batch_size=2, **options)
            apart = self.apart(run, "one") if not any(ended.codes) else None
            self.ends[run] = {**ended._asdict(), "apart": apart}


def main(folder: Path, kills: int) -> None:
    ends, chance = Ends(folder), random.Random(20230223)
    kinds = {"none": 3, "full": 2}
    for sharding, world in kinds.items():
        ends.ends[f"whole-{sharding}"] = ends.launch(f"whole-{sharding}", world, sharding)._asdict()
    for i in range(kills):
        sharding, world = list(kinds.items())[i % 2]
        end = killed(chance.randrange(world), chance.randrange(STEPS), chance.choice([0, 0.1, 0.4]))
        ends.fails(f"killed-{i}", world, sharding, end, f"whole-{sharding}")
    ends.fails("nan", 2, "full", at_step(1, 3, _poison), "whole-full")
    for rank in (0, 1):
        ends.fails(f"full-{rank}", 2, "full", at_step(rank, 3, _fill_disk), "whole-full")
    wrong = launch(
        folder / "log-world", 3, lambda: train_case(folder / "model", folder / "w", "rwr")
    )
    ends.ends["world"] = wrong._asdict()
    for sharding in kinds:
        name = f"moved-{sharding}"
        ended = [
            ends.launch(name, 2, sharding, stopped(2)), ends.launch(name, 1, sharding, stopped(4)),
            ends.launch(name, 2, sharding),
        ]  # fmt: skip
        ends.ends[name] = {
            "codes": [e.codes for e in ended], "apart": ends.apart(name, "whole-full")
        }  # fmt: skip
    ends.eight(kinds)
    (folder / "ends.json").write_text(json.dumps(ends.ends))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
