"""Several processes on one league, each with the cells of a seed."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sayso.base.errors import UserError
from sayso.cli.league import LeagueConfig, running
from sayso.cli.league.cells import TRAINED, Cell, rounds_of
from sayso.cli.league.records import Record, Records

CONFIG = LeagueConfig(smoke=True, seeds=2)
HOLD = """
import sys
from pathlib import Path
from sayso.cli.league import LeagueConfig, running
with running._claimed(Path(sys.argv[1]), LeagueConfig(smoke=True, seeds=2, only_seed=0)):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The cells that are run, with their seeds; nothing is trained."""
    found: list[tuple[str, int]] = []

    def once(league: Any, cell: Cell, ground: Any, *_: object) -> None:
        found.append((cell.name, ground.seed))
        facts = {"reward": 0.5, "trial": ""}
        done = Record(cell.name, ground.seed, "i", "finished", facts=facts)
        league.records.write(cell.slug, done)

    def ground(_folder: Path, _size: object, seed: int) -> SimpleNamespace:
        return SimpleNamespace(seed=seed)

    monkeypatch.setattr(running, "prepare", ground)
    monkeypatch.setattr(running._League, "_once", once)
    monkeypatch.setattr(
        running._League, "_followers", lambda _, _ground, cell: [rounds_of(cell, 2)]
    )
    return found


def test_rounds_wait_until_every_seed_has_its_cells(
    ran: list[tuple[str, int]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(seed: int | None) -> set[int]:
        """Returns: the seeds whose rounds were run."""
        ran.clear()
        running._League(tmp_path, replace(CONFIG, only_seed=seed)).run()
        assert {own for _, own in ran} == ({0, 1} if seed is None else {seed})
        return {own for name, own in ran if name.endswith("2 rounds")}

    assert run(1) == set()
    assert "rounds and switches wait for the other cells of seed 0" in capsys.readouterr().err
    assert run(0) == {0}
    assert run(1) == {1}
    assert [cell.kind for cell in Records(tmp_path).line_up()][-2:] == ["rounds", "rounds"]
    assert run(None) == {0, 1}


def test_a_seed_alone_keeps_the_rounds_of_before_in_the_line_up(
    ran: list[tuple[str, int]], tmp_path: Path
) -> None:
    later = rounds_of(TRAINED[0], 3)
    Records(tmp_path).announce([*TRAINED, later])
    running._League(tmp_path, replace(CONFIG, only_seed=1)).run()
    assert Records(tmp_path).line_up()[-1].name == later.name
    assert ran


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Path]:
    """A league of which another process runs seed 0."""
    folder = tmp_path / "league"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield folder
        process.kill()


def test_two_processes_run_two_seeds_but_never_one(held: Path) -> None:
    with running._claimed(held, replace(CONFIG, only_seed=1)):
        assert (held / "league.json").exists()
    for seed in (0, None):
        with (
            pytest.raises(UserError, match=r"seed-0 is in use by process \d+"),
            running._claimed(held, replace(CONFIG, only_seed=seed)),
        ):
            pass


@pytest.mark.parametrize("seed", [-1, 2])
def test_a_seed_that_the_league_lacks_is_refused(seed: int) -> None:
    with pytest.raises(UserError, match=f"only_seed {seed} is none of the league's; give 0 to 1"):
        replace(CONFIG, only_seed=seed).check()
