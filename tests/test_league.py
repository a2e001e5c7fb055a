"""A small league through the real command line: killed, resumed, and its numbers anew."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sayso.base.errors import UserError
from sayso.base.files import read_lines
from sayso.cli import commands as cli
from sayso.cli.league import LeagueConfig, league, results, running, training
from sayso.cli.league.cells import TRAINED, Cell
from sayso.cli.league.ground import Ground
from sayso.cli.league.records import Records

CELLS = "base,best-set,sft"
CONFIG = LeagueConfig(smoke=True, only=CELLS)


def killed_when(path: Path, folder: Path) -> None:
    """Run the league in a process of its own until `path` is there, and kill it."""
    command = [sys.executable, "-m", "sayso", "league", str(folder), "--smoke", "--only", CELLS]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        until = time.monotonic() + 240
        while not list(folder.glob(str(path))) and time.monotonic() < until:
            assert process.poll() is None, "it ended before"
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A league killed in the middle of a cell and resumed, and what each part of it did."""
    folder = tmp_path_factory.mktemp("league") / "l"
    killed_when(Path("seed-0/runs/align-sft-*/result.json"), folder)
    before = {p: p.stat().st_mtime_ns for p in folder.glob("cells/*/*/outcome.json")}
    trained = [p.parent for p in folder.glob("seed-0/runs/align-*/result.json")]
    times = {p: p.stat().st_mtime_ns for run in trained for p in run.glob("weights/**/*")}
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patched:
        plain = cli.run
        patched.setattr(cli, "run", lambda words: (lines.append(" ".join(words)), plain(words))[1])
        league(folder, CONFIG)
    return {"folder": folder, "before": before, "times": times, "lines": lines}


def test_what_was_finished_is_not_run_again(played: dict[str, Any]) -> None:
    before, lines = played["before"], played["lines"]
    assert {p.parent.parent.name for p in before} == {"base", "best-set"}
    assert all(p.stat().st_mtime_ns == then for p, then in before.items())
    assert played["times"]
    assert all(p.stat().st_mtime_ns == then for p, then in played["times"].items())
    # the two cells that were finished were not judged again; the third went on
    compared = [line for line in lines if "--task compare" in line]
    assert len(compared) == 1
    assert "align-sft" in compared[0]
    aligned = {line.split("--name ")[1] for line in lines if line.startswith("align ")}
    # what a period costs, two trials, and the chosen one with half of the budget
    assert len(aligned) == 4


def test_numbers_follow_from_the_stored_scores(played: dict[str, Any]) -> None:
    folder: Path = played["folder"]
    written = json.loads((folder / "results.json").read_text())
    assert written == json.loads(json.dumps(results.results_of(folder, CONFIG)))
    cells = {cell["name"]: cell for cell in written["cells"]}
    assert list(cells) == ["base", "best of 1", "best of 2", "best set", "sft"]
    rows = read_lines(folder / "cells/sft/seed-0/scores.jsonl")
    by_prompt: dict[str, list[bool]] = {}
    for row in rows:
        by_prompt.setdefault(row["prompt_id"], []).append(row["true"])
    assert len(by_prompt) == 4
    by_hand = np.mean([np.mean(true) for true in by_prompt.values()])
    assert cells["sft"]["truth"]["all"]["value"] == pytest.approx(by_hand)
    truth, gain = (cells["sft"][name]["all"]["value"] for name in ("truth", "gain"))
    assert truth - gain == pytest.approx(cells["base"]["truth"]["all"]["value"])
    votes = read_lines(folder / "cells/sft/seed-0/votes.jsonl")
    assert all(v["win"] + v["tie"] + v["lose"] == 9 for v in votes)
    assert len(votes) == 4 * 2


def test_trials_spend_what_was_forecast_within_the_budget(played: dict[str, Any]) -> None:
    record = Records(played["folder"], CONFIG.size).read("sft", 0)
    assert record is not None
    trials = record.facts["trials"]
    assert len(trials) == CONFIG.size.trials
    for trial in trials:
        assert trial["evaluations"] == trial["forecast"] == trial["steps"] * 3 * 8
        assert CONFIG.size.budget - 24 < trial["evaluations"] <= CONFIG.size.budget
    chosen = max(trials, key=lambda t: t["reward"])
    assert record.facts["run"] == chosen["run"]
    assert [p["share"] for p in record.facts["earlier"]] == [0.5]
    assert 0 < record.facts["distance"] < 1


def test_it_leaves_tables_curves_and_a_page(played: dict[str, Any]) -> None:
    folder: Path = played["folder"]
    page = (folder / "league.html").read_text()
    assert "sft" in page
    assert "simulated raters" in page
    assert 'src="http' not in page
    assert "<script" not in page
    assert page.count("data:image/png;base64,") == 3
    assert (folder / "table.md").read_text().count("| sft |") == 3


def test_a_cell_that_fails_is_written_down_and_the_others_go_on(
    played: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder: Path = played["folder"]
    asked: list[str] = []

    def fails(ground: Ground, cell: Cell, trial: str, *_: object) -> training.Trained:
        asked.append(trial)
        raise UserError(f"step 3 of {cell.name}: the loss is not finite")

    monkeypatch.setattr(running, "train", fails)
    monkeypatch.setattr(results, "publish", lambda *_: None)
    mine = Cell("mine", "none_such", "")
    odd = replace(TRAINED[0], name="odd", options="--no-such-option 1")
    bad = replace(TRAINED[0], name="bad")
    monkeypatch.setattr(running, "TRAINED", (bad, odd, mine))
    config = LeagueConfig(smoke=True)
    league(folder, config)
    records = Records(folder, CONFIG.size)
    states = {n: r.state for n in ("bad", "odd", "mine") if (r := records.read(n, 0))}
    assert states == {"bad": "failed", "odd": "left out", "mine": "left out"}
    failed, left_out = records.read("bad", 0), records.read("mine", 0)
    assert failed is not None
    assert left_out is not None
    assert failed.reason == "every trial failed; the first: step 3 of bad: the loss is not finite"
    assert "unknown aligner 'none_such'" in left_out.reason
    assert len(asked) == 2
    # not again unless asked for
    league(folder, config)
    assert len(asked) == 2
    assert "failed before: every trial failed" in " ".join("".join(capsys.readouterr()).split())
    league(folder, replace(config, retry_failed=True))
    assert len(asked) == 4


def test_other_options_make_a_cell_another(
    played: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder: Path = played["folder"]
    known = Records(folder, CONFIG.size).read("sft", 0)
    assert known is not None
    changed = replace(TRAINED[0], trials=("--learning-rate 0.5",))
    monkeypatch.setattr(running, "TRAINED", (changed,))
    monkeypatch.setattr(results, "publish", lambda *_: None)
    league(folder, replace(CONFIG, only="best-set"))
    outdated = Records(folder, CONFIG.size).read("sft", 0)
    assert outdated is not None
    assert outdated.state == "left out"
    assert "are others now; run it again" in outdated.reason


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (LeagueConfig(quick=True), "holds a league of size smoke, made with other numbers"),
        (LeagueConfig(smoke=True, only="sfd"), "unknown cell 'sfd': did you mean 'sft'"),
    ],
)
def test_another_league_is_refused(played: dict[str, Any], config: LeagueConfig, says: str) -> None:
    with pytest.raises(UserError, match=says):
        league(played["folder"], config)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="is not a league and not empty"):
        league(tmp_path, CONFIG)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
