"""Processes of a launch are killed, get NaN or a full disk: one line, no hang, no bit lost.

A few kills in the everyday suite; `make test-kill` has many.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from models import tiny_pipeline, tiny_unet

SCRIPT = Path(__file__).parent.parent / "launches.py"


@pytest.fixture(scope="module")
def ends(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> dict[str, dict[str, Any]]:
    """What became of each launch, by name."""
    folder, kills = tmp_path_factory.mktemp("ends"), request.config.getoption("--launch-kills")
    tiny_pipeline(folder / "model")
    torch.manual_seed(0)
    small = tiny_unet(sample_size=8, block_out_channels=(8, 16), norm_num_groups=4)
    small.save_pretrained(folder / "model/unet")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), str(kills)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "ends.json").read_text())


@pytest.mark.slow
def test_a_killed_process_ends_the_launch_in_one_line_and_costs_no_bit(
    ends: dict[str, dict[str, Any]], request: pytest.FixtureRequest
) -> None:
    """Killed at any step in any rank, with whole networks (three processes) and shards (two)."""
    killed = {name: end for name, end in ends.items() if name.startswith("killed")}
    assert len(killed) == request.config.getoption("--launch-kills")
    for name, end in killed.items():
        assert end["same"], name
        assert not end["hung"], name
        assert not end["tracebacks"], name
        if -9 in end["codes"]:
            assert sorted(end["codes"]) == [-9, *[2] * (len(end["codes"]) - 1)], name
            assert len(end["errors"]) == 1, name
            assert "another process of this launch has ended" in end["errors"][0], name
            assert not any(end["again"]), name
    # a run may have ended before its turn came
    assert sum(-9 in end["codes"] for end in killed.values()) > len(killed) / 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nan", "loss is nan at step 4: training stopped, the checkpoint of step 2 is kept"),
        ("full-0", "the disk is full; free some space"),
        ("full-1", "the disk is full; free some space"),
        ("world", "batch_size 8 is not a multiple of 3 processes; give --batch-size 6 or 9, or"),
    ],
)
def test_what_goes_wrong_in_one_process_is_said_once_and_ends_all(
    ends: dict[str, dict[str, Any]], name: str, says: str
) -> None:
    end = ends[name]
    assert len(end["errors"]) == 1, end
    assert says in end["errors"][0]
    assert set(end["codes"]) == {2}
    assert not end["hung"]
    assert not end["tracebacks"]
    if name != "world":
        assert end["checkpoints"] == [2]
        assert not any(end["again"])
        assert end["same"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["moved-none", "moved-full"])
def test_a_run_goes_on_with_another_number_of_processes(
    ends: dict[str, dict[str, Any]], name: str
) -> None:
    """Two steps in two processes, two in one, the last two in two again."""
    assert ends[name]["codes"] == [[2, 2], [2], [0, 0]]
    assert ends[name]["apart"] < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["eight-none", "eight-full"])
def test_eight_processes_learn_what_one_learns(ends: dict[str, dict[str, Any]], name: str) -> None:
    """After five steps, with a row of the aligner's and a pre-training row in each."""
    assert ends[name]["codes"] == [0] * 8, ends[name]
    assert ends[name]["apart"] < 1e-5
