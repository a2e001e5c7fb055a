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
from sayso.base.types import digest
from sayso.cli.league import LeagueConfig, cells, running
from sayso.cli.league.cells import TRAINED, Cell, rounds_of
from sayso.cli.league.ground import Ground
from sayso.cli.league.records import OUTDATED, Record, Records, best_cells
from sayso.cli.league.results import results_of
from sayso.study.info import StudyInfo
from sayso.study.study import Study

CONFIG = LeagueConfig(smoke=True, seeds=2)
SCORES = [
    {"prompt_id": "p", "seed": 0, "split": "seen", "category": "count", "true": 1, "reward": 0.5}
]
HOLD = """
import sys
from pathlib import Path
from sayso.cli.league import LeagueConfig, running
with running._claimed(Path(sys.argv[1]), LeagueConfig(smoke=True, seeds=2, only_seed=0)):
    print("held", flush=True)
    sys.stdin.read()
"""


def commit_of(cell: Cell) -> str:
    """As if every cell had been run by a version of its own."""
    return f"{cell.name} {cell.options}"


def rounds(cell: Cell, n: int) -> Cell:
    return replace(rounds_of(cell, n), follows=cell.settings(CONFIG.size))


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The cells that are run, with their seeds; nothing is trained."""
    found: list[tuple[str, int]] = []

    def once(league: Any, cell: Cell, ground: Any, *_: object) -> None:
        found.append((cell.name, ground.seed))
        facts = {"reward": 0.5, "trial": "", "per_image": 12, "commit": commit_of(cell)}
        settings = cell.settings(league.size)
        done = Record(cell.name, ground.seed, "i", "finished", "", facts, SCORES, (), settings)
        league.records.write(cell.slug, done)

    def ground(_folder: Path, _size: object, seed: int) -> SimpleNamespace:
        return SimpleNamespace(seed=seed)

    monkeypatch.setattr(running, "prepare", ground)
    monkeypatch.setattr(running._League, "_once", once)
    monkeypatch.setattr(running._League, "_followers", lambda _, _ground, cell: [rounds(cell, 2)])
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
    assert [cell.kind for cell in Records(tmp_path, CONFIG.size).line_up()][-2:] == [
        "rounds",
        "rounds",
    ]
    assert run(None) == {0, 1}


def test_a_seed_alone_keeps_the_rounds_of_before_in_the_line_up(
    ran: list[tuple[str, int]], tmp_path: Path
) -> None:
    later = rounds(TRAINED[0], 3)
    Records(tmp_path, CONFIG.size).announce([*TRAINED, later])
    running._League(tmp_path, replace(CONFIG, only_seed=1)).run()
    assert Records(tmp_path, CONFIG.size).line_up()[-1].name == later.name
    assert ran


def test_a_seed_of_other_options_counts_as_lacking_the_cell(
    ran: list[tuple[str, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    running._League(tmp_path, CONFIG).run()
    assert ran
    changed = replace(TRAINED[0], options="--prompt-dropout 0.3")
    for module in (running, cells):
        monkeypatch.setattr(module, "TRAINED", (changed, TRAINED[1]))
    capsys.readouterr()
    league = running._League(tmp_path, replace(CONFIG, only_seed=1))
    league.run()
    assert "rounds and switches wait for the other cells of seed 0" in capsys.readouterr().err
    assert best_cells(league.records, cells.TRAINED, range(2), 2) == [TRAINED[1]]
    shown = [cell.name for cell in league.records.line_up()]
    assert f"{changed.name}, 2 rounds" not in shown
    assert f"{TRAINED[1].name}, 2 rounds" in shown
    results = results_of(tmp_path, CONFIG)
    assert commit_of(changed) in results["commits"]
    assert commit_of(TRAINED[0]) not in results["commits"]
    found = {cell.get("cell"): cell for cell in results["cells"]}
    assert found[changed.name]["reasons"] == {"seed 0": OUTDATED}
    assert found[changed.name]["seeds"] == [1]


def test_an_outcome_without_settings_is_left_out_until_its_seed_finds_it_the_same(
    tmp_path: Path,
) -> None:
    cell, size, league = TRAINED[0], CONFIG.size, running._League(tmp_path, CONFIG)
    identity = digest([cell.identity(size), size.plain, "g"])
    made = Record(
        cell.name, 0, identity, "finished", facts={"reward": 0.5}, scores=SCORES, votes=[]
    )
    league.records.write(cell.slug, made)
    assert best_cells(league.records, [cell], [0], 1) == []
    league._once(cell, ground_of(tmp_path, 0), lambda: pytest.fail("it was run again"))
    assert best_cells(league.records, [cell], [0], 1) == [cell]
    assert league.records.read(cell.slug, 0) == replace(made, settings=cell.settings(size))


def test_what_follows_from_the_best_has_the_same_settings_in_every_seed(tmp_path: Path) -> None:
    size, league = CONFIG.size, running._League(tmp_path, CONFIG)

    def followers(cell: Cell, seed: int, trial: str) -> list[Cell]:
        facts, settings = {"trial": trial}, cell.settings(size)
        made = Record(cell.name, seed, "i", "finished", facts=facts, settings=settings)
        league.records.write(cell.slug, made)
        return league._followers(ground_of(tmp_path, seed), cell)

    first, second = (followers(TRAINED[0], n, TRAINED[0].trials[n]) for n in range(2))
    assert [c.settings(size) for c in first] == [c.settings(size) for c in second]
    assert all(a.identity(size) != b.identity(size) for a, b in zip(first, second, strict=True))
    changed = followers(replace(TRAINED[0], trials=TRAINED[0].trials[1:]), 1, TRAINED[0].trials[1])
    assert len({c.settings(size) for c in (*first, *changed)}) == 2 * len(first)


def test_rounds_of_no_cell_say_what_they_lack(
    ran: list[tuple[str, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(running._League, "_once", lambda *_: None)
    for only, says in (("rounds", True), ("sft", False)):
        running._League(tmp_path, replace(CONFIG, only=only)).run()
        told = "rounds and switches are of the best cells, and none is finished for every seed"
        assert (told in capsys.readouterr().err) == says
    assert not ran


def ground_of(folder: Path, seed: int) -> Ground:
    return Ground(Study(folder, StudyInfo("x")), CONFIG.size, seed, "g", 12)


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
