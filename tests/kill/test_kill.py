"""The quick demo, killed with SIGKILL at random moments and repeated, ends as if nothing happened.

`make test-kill` kills it twenty times; the everyday suite a few times.
"""

import hashlib
import json
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest


def images(study: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in study.glob("images/*/*")}


def samples(study: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (study / "samples.jsonl").read_text().splitlines()]


def votes(study: Path) -> list[tuple[object, ...]]:
    """Every vote without the time of day at which it was stored."""
    with sqlite3.connect(study / "feedback.db") as database:
        ratings = database.execute(
            "SELECT id, sample_id, rater, question, value FROM ratings ORDER BY id"
        ).fetchall()
        comparisons = database.execute(
            "SELECT id, left_ids, right_ids, rater, question, value FROM comparisons ORDER BY id"
        ).fetchall()
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    return ratings + comparisons


def weights(study: Path) -> dict[str, str]:
    return {
        str(p.relative_to(study)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(study.glob("runs/*/weights/**/*.safetensors"))
    }


def demo_for(seconds: float, study: Path) -> bool:
    """Run the quick demo, kill it after so many seconds; True if it finished before."""
    command = [sys.executable, "-m", "sayso", "demo", str(study), "--quick"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        _, said = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return False
    assert process.returncode == 0, said.decode()
    return True


def test_killed_and_repeated_is_the_same(
    finished_demo: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    wanted = request.config.getoption("--kills")
    rng = random.Random(20230223)
    kills, studies = 0, 0
    start = time.monotonic()
    while kills < wanted:
        study = tmp_path / f"study-{studies}"
        studies += 1
        while not demo_for(rng.uniform(2, 20) if kills < wanted else 600, study):
            kills += 1
        assert samples(study) == samples(finished_demo)
        assert images(study) == images(finished_demo)
        assert votes(study) == votes(finished_demo)
        assert weights(study) == weights(finished_demo)
        assert len(weights(study)) >= 2
    seconds = time.monotonic() - start
    print(f"{kills} kills, {studies} studies finished, each identical, {seconds:.0f} s")
