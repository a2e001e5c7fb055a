"""Very many samples and captions in little memory; `make test-scale` runs it with 100,000.

The limit is on the address space, which is more than the memory in use: nothing is read whole.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from large import encode_nothing, large_study

LIMIT_BYTES = 3 << 30
FIRST_STEP_S = 60
"""Seconds of one processor from the start of the command to its first step."""

COMMAND = """
import resource, sys, time
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
from sayso.cli import main
from sayso.families.stable_diffusion import StableDiffusion
predict = StableDiffusion.predict

def first(*given):
    print("first step:", time.process_time(), flush=True)
    StableDiffusion.predict = predict
    return predict(*given)

StableDiffusion.predict = first
main(sys.argv[2:])
"""


@pytest.mark.slow
def test_align_starts_soon_and_in_little_memory(tmp_path: Path, pytestconfig: pytest.Config):
    rows: int = pytestconfig.getoption("--scale-rows")
    if not rows:
        pytest.skip("make test-scale runs it")
    study = large_study(tmp_path / "study", rows)
    encode_nothing(study, rows)
    done = subprocess.run(
        [
            sys.executable, "-c", COMMAND, str(LIMIT_BYTES), "align", str(study.path), "--weight",
            "label", "--pretraining-images", str(rows), "--max-steps", "20", "--batch-size", "64",
            "--mixed-precision", "no",
        ],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = study.find_run("align-rwr")
    assert run.result["steps"] == 20
    assert (run.result["samples"], run.result["pretraining_images"]) == (rows, rows)
    first = float(done.stdout.split("first step:")[1].split()[0])
    print(json.dumps({"rows": rows, "first_step_cpu_s": first}))
    assert first < FIRST_STEP_S
