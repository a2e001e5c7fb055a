"""Shared fixtures. Shapes in signatures are checked while tests run."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from jaxtyping import install_import_hook

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    # one thread a worker: the workers share the processors, and two threads for each would wait
    os.environ.setdefault("OMP_NUM_THREADS", "1")
install_import_hook("sayso", "beartype.beartype")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=2, help="how often the kill test kills the demo")
    parser.addoption(
        "--vote-kills", type=int, default=30, help="how often the rating app is killed under load"
    )
    parser.addoption(
        "--launch-kills", type=int, default=2, help="how often a process of a launch is killed"
    )
    parser.addoption(
        "--faults",
        type=int,
        default=40,
        help="how many files of a study are damaged, in each state",
    )
    parser.addoption(
        "--scale-rows", type=int, default=0, help="samples and captions of the test of scale"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no worker ends with one while the others wait."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def run_sayso(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """The real command line in a process of its own."""
    command = [sys.executable, "-m", "sayso", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.fixture(scope="session")
def finished_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that `sayso demo --quick` has made; shared by all workers, not to be changed."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    path = shared / "demo" / "study"
    with FileLock(shared / "demo.lock"):
        if not (path / "summary.json").exists():
            done = run_sayso("demo", path, "--quick")
            assert done.returncode == 0, done.stderr
    return path


@pytest.fixture
def tmp_path(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder of the test; of the rating app in memory, where votes do not wait for the disk."""
    memory = Path("/dev/shm")
    if request.path.parent.name != "web" or not memory.is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.fixture
def study_path(finished_demo: Path, tmp_path: Path) -> Path:
    """A copy of the finished quick demo that a test may damage."""
    return Path(shutil.copytree(finished_demo, tmp_path / "study"))
