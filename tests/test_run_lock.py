"""One process works on a run; the second is told which."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sayso.base.errors import UserError
from sayso.study.info import StudyInfo
from sayso.study.run_lock import lock
from sayso.study.study import Study

WORK = """
import sys, time
from pathlib import Path
from sayso.base import files
from sayso.study.study import Study
run = Study.open(Path(sys.argv[1])).run("x", "", {})
with files.new_folder(run.checkpoints / "7") as folder:
    (folder / "weights").write_bytes(b"half")
    print("working", flush=True)
    time.sleep(60)
"""
SECOND = """
import sys
from pathlib import Path
from sayso.cli import commands as cli
from sayso.study.study import Study
cli.run = lambda _: Study.open(Path(sys.argv[1])).run("x", "", {})
cli.main(["align"])
"""


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study.create(tmp_path / "study", StudyInfo("s", 7))


@pytest.fixture
def first(study: Study):
    """A process that works on runs/x and has half a checkpoint."""
    with subprocess.Popen([sys.executable, "-c", WORK, study.path], stdout=subprocess.PIPE) as it:
        assert it.stdout is not None
        assert it.stdout.readline() == b"working\n"
        yield it
        it.kill()


def test_the_second_command_names_the_first_and_leaves_its_files(
    study: Study, first: subprocess.Popen[bytes]
) -> None:
    half = next((study.path / "runs/x/checkpoints").glob(".7.*.tmp"))
    done = subprocess.run(
        [sys.executable, "-c", SECOND, study.path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    holder = f"process {first.pid} on {socket.gethostname()}"
    assert done.stderr.startswith(f"sayso: error: runs/x is in use by {holder}; wait")
    assert done.stderr.count("\n") == 1
    assert (half / "weights").read_bytes() == b"half"


def test_the_lock_of_a_dead_process_is_taken_over(
    study: Study, first: subprocess.Popen[bytes]
) -> None:
    first.send_signal(signal.SIGKILL)
    first.wait()
    run = study.run("x", "", {})
    assert list(run.checkpoints.iterdir()) == []
    run.finish({})


def test_one_process_may_open_its_run_again(study: Study) -> None:
    study.run("x", "", {})
    with study.run("x", "", {}) as run:
        assert str(os.getpid()) in (run.path / ".lock").read_text()


def test_a_run_is_free_when_its_block_has_ended(study: Study) -> None:
    with pytest.raises(RuntimeError), study.run("x", "", {}):
        raise RuntimeError
    done = subprocess.run(
        [sys.executable, "-c", SECOND, study.path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_other_processes_of_a_launch_need_no_lock(
    study: Study, first: subprocess.Popen[bytes]
) -> None:
    half = next((study.path / "runs/x/checkpoints").glob(".7.*.tmp"))
    assert study.run("x", "", {}, main=False).config == {}
    assert half.exists()


def test_nothing_is_locked_where_another_holds_it(
    study: Study, first: subprocess.Popen[bytes]
) -> None:
    with pytest.raises(UserError, match="in use by"):
        lock(study.path / "runs/x")
    first.kill()
    first.wait()
    lock(study.path / "runs/x").release()
