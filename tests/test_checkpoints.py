"""A damaged checkpoint costs the steps since the older one, and no bit."""

import json
import shutil
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
    with pytest.raises(UserError, match="is of another network"):
        run_toy(path)
