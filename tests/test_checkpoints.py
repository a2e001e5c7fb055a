"""A damaged checkpoint costs the steps since the older one, and no bit."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from test_train import Interrupted, Stop, fingerprint, run_toy

from sayso.base.errors import UserError
from sayso.study.run import Run

SHARD = "shard-00001-model-00001-of-00001.safetensors"
FILES = (f"weights/{SHARD}", f"average/{SHARD}", f"optimizer/{SHARD}", "state.json")
DAMAGES = {
    "deleted": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "zeros at the end": lambda path: path.write_bytes(path.read_bytes()[:-64] + bytes(64)),
}


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A run that was killed before step 6, with two checkpoints, and what it should become."""
    folder = tmp_path_factory.mktemp("killed")
    whole = fingerprint(run_toy(folder / "whole")[1])
    with pytest.raises(Stop):
        run_toy(folder / "cut", aligner=Interrupted(at=5))
    assert [p.name for p in Run(folder / "cut").checkpoint_folders()] == ["4", "2"]
    return folder / "cut", whole


# the last byte of a JSON file is the end of its line, which nothing misses
CASES = [(n, d) for n in FILES for d in DAMAGES if (n, d) != ("state.json", "short")]


@pytest.mark.parametrize(("name", "damage"), CASES)
def test_a_damaged_newest_checkpoint_falls_back_to_the_older(
    killed: tuple[Path, dict[str, str]], tmp_path: Path, name: str, damage: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = Path(shutil.copytree(killed[0], tmp_path / "cut"))
    DAMAGES[damage](path / "checkpoints/4" / name)
    _, run = run_toy(path)
    said = " ".join(capsys.readouterr().err.split())
    assert "checkpoints/4 cannot be read" in said
    assert "looking for an older one" in said
    assert fingerprint(run) == killed[1]
    assert run.result["steps"] == 6


def test_both_damaged_end_in_one_line(killed: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    path = Path(shutil.copytree(killed[0], tmp_path / "cut"))
    for step in ("2", "4"):
        DAMAGES["half"](path / "checkpoints" / step / f"average/{SHARD}")
    with pytest.raises(UserError, match=r"no checkpoint of runs/cut can be read; restore one, or"):
        run_toy(path)


def test_content_is_verified_even_where_it_parses(
    killed: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    path = Path(shutil.copytree(killed[0], tmp_path / "cut"))
    newest = path / "checkpoints/4/weights" / SHARD
    save_file({name: value + 1 for name, value in load_file(newest).items()}, newest)
    _, run = run_toy(path)
    assert fingerprint(run) == killed[1]


def test_a_checkpoint_of_another_network_is_one_line(
    killed: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    path = Path(shutil.copytree(killed[0], tmp_path / "cut"))
    folder = path / "checkpoints/4"
    weights = folder / "weights" / SHARD
    save_file({f"other.{name}": value for name, value in load_file(weights).items()}, weights)
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, "sha256": {}}))
    with pytest.raises(UserError, match="belongs to another network"):
        run_toy(path)


SHARDED = """
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from sayso.study.run import Run
from sayso.training.checkpoint import Contents, Saver, load_latest


def contents(seed):
    torch.manual_seed(seed)
    network = nn.Linear(6, 5)
    average = {n: p.detach().clone() for n, p in network.named_parameters()}
    if dist.is_initialized():
        fully_shard(network)
    named = dict(network.named_parameters())
    return network, Contents(named, torch.optim.AdamW(named.values(), 0.1), {"average": average})


def whole(parts):
    whole = {f"{p}/{n}": t.full_tensor() if isinstance(t, DTensor) else t
             for p, tensors in parts.items() for n, t in tensors.items()}
    return {name: tensor.detach().clone() for name, tensor in whole.items()}


run = Run(Path(sys.argv[1]))
if sys.argv[2] == "write":
    dist.init_process_group("gloo")
    network, made = contents(0)
    with Saver(run) as saver:
        for step in (1, 2, 3):
            network(torch.ones(2, 6)).sum().backward()
            made.optimizer.step()
            saver.save({"step": step}, made)
            # what is written is what was there, whatever is trained meanwhile
            kept = whole(made.parts())
            network(torch.ones(2, 6)).sum().backward()
            made.optimizer.step()
    assert not list(run.checkpoints.glob(".*")), "nothing temporary stays"
    _, again = contents(1)
    assert load_latest(run, again)["step"] == 3
    found = whole(again.parts())
    assert all(torch.equal(found[name], kept[name]) for name in kept)
    if dist.get_rank() == 0:
        torch.save(kept, run.path / "kept.pt")
    dist.barrier()
    dist.destroy_process_group()
else:
    _, again = contents(2)
    assert load_latest(run, again)["step"] == 3
    kept, found = torch.load(run.path / "kept.pt"), whole(again.parts())
    assert kept.keys() == found.keys()
    assert all(torch.equal(found[name], kept[name]) for name in kept)
"""


@pytest.mark.slow
def test_sharded_weights_are_written_by_two_processes_and_read_by_any_number(
    tmp_path: Path,
) -> None:
    script, run = tmp_path / "sharded.py", tmp_path / "run"
    script.write_text(SHARDED)
    run.mkdir()
    two = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    for launcher, what in ((two, "write"), ((), "read")):
        done = subprocess.run(
            [sys.executable, *launcher, str(script), str(run), what],
            capture_output=True, text=True, check=False, timeout=500,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["2", "3"]
    shards = [p.name for p in (run / "checkpoints/3/weights").iterdir()]
    assert len(shards) == 2
    files = {p.suffix for p in (run / "checkpoints").rglob("*") if p.is_file()}
    assert files == {".safetensors", ".json"}
