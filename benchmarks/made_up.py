"""What the benchmarks share: made-up studies, the real server beside them, the printed result."""

import json
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import numpy as np
from PIL import Image

from sayso import files
from sayso.study import Study, StudyInfo
from sayso.types import Prompt, Sample, Sampler, digest

FILES, PER_PROMPT = 200, 4
SAMPLER = Sampler(image_size_px=64)


def make_study(path: Path, images: int, size_px: int = 64) -> Study:
    """A study with records of `images` images of noise; at most `FILES` files lie under them."""
    study = Study.create(path, StudyInfo("benchmark", sampler=SAMPLER))
    study.write_prompts(
        Prompt(f"p{i}", f"prompt {i} of a benchmark", "count", {}, "train")
        for i in range(-(-images // PER_PROMPT))
    )
    rng = np.random.default_rng(0)
    (path / "images").mkdir(exist_ok=True)
    for i in range(min(FILES, images)):
        noise = rng.integers(0, 256, (size_px, size_px, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path / "images" / f"{i}.png")
    samples = (
        Sample(digest(i), f"p{i // PER_PROMPT}", "base", i, SAMPLER, f"images/{i % FILES}.png", "")
        for i in range(images)
    )
    files.append_lines(path / "samples.jsonl", (asdict(sample) for sample in samples))
    return study


def sayso(*arguments: object) -> list[str]:
    """The command line of the program as it is installed beside this Python."""
    return [sys.executable, "-m", "sayso", *map(str, arguments)]


def sign_in_links(study: Path, raters: int) -> list[str]:
    """Add raters; the paths of their sign-in links."""
    found: list[str] = []
    for i in range(raters):
        command = sayso("raters", study, "add", f"rater-{i}")
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found += re.findall(r"/in/\S+", said)
    assert len(found) == raters, "no link was printed"
    return found


@contextmanager
def served(study: Path, *options: object) -> Iterator[tuple[str, int, float]]:
    """`sayso rate` in a process of its own: address, process id, seconds until it answered."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    started = time.perf_counter()
    command = sayso("rate", study, "--no-browser", "--port", port, *options)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        while not _answers(port):
            assert process.poll() is None, "the server has stopped"
            time.sleep(0.005)
        yield address, process.pid, time.perf_counter() - started
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _answers(port: int) -> bool:
    # the standard library's client, because the other one takes some 30 ms to begin
    try:
        with closing(HTTPConnection("127.0.0.1", port, timeout=30)) as line:
            line.request("GET", "/healthz")
            return line.getresponse().status == 200
    except (OSError, HTTPException):
        return False


def milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    """Number, median, 95th percentile and maximum."""
    ms = np.asarray(seconds) * 1000
    middle, high = np.percentile(ms, [50, 95])
    values = {"median_ms": middle, "p95_ms": high, "max_ms": ms.max()}
    return {"n": len(ms), **{key: round(float(value), 1) for key, value in values.items()}}


def finish(what: str, figures: Mapping[str, object], limits: Mapping[str, float]) -> None:
    """Print figures, machine and commit as JSON; exit with 1 if a figure is over its limit.

    Args:
        limits: name of a figure, "/" for one inside another → the most it may be.
    """
    over = {
        name: figure for name, limit in limits.items() if (figure := _find(figures, name)) > limit
    }
    row = {
        "benchmark": what, **figures, "limits": limits, "over": over,
        "machine": f"{os.cpu_count()} × {platform.machine()}", "commit": _commit(),
    }  # fmt: skip
    print(json.dumps(row, indent=1), flush=True)
    sys.exit(bool(over))


def _find(figures: Mapping[str, object], name: str) -> float:
    for part in name.split("/"):
        figures = figures[part]  # type: ignore[assignment]
    return float(figures)  # type: ignore[arg-type]


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    here = Path(__file__).parent
    return subprocess.run(command, capture_output=True, text=True, cwd=here).stdout.strip()
