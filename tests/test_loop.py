"""The whole loop through the real command line on the tiny world."""

import json
from pathlib import Path

import pytest
from conftest import run_sayso

from sayso.base.errors import UserError
from sayso.cli import commands as cli
from sayso.cli.demo import DemoConfig, commands, demo
from sayso.tinyworld.defaults import SAMPLER

SUMMARY = {
    "seconds": ["total"],
    "feedback": ["ratings", "good", "bad", "skip"],
    "comparison": ["win", "tie", "lose", "net", "n_prompts"],
    "fidelity": ["base", "aligned", "ratio", "n"],
}
GROUPS = ["count", "colour", "background", "combination", "seen", "unseen", "all"]


def summary_of(study: Path) -> dict[str, dict[str, object]]:
    return json.loads((study / "summary.json").read_text())


def test_summary_has_every_field(finished_demo: Path) -> None:
    summary = summary_of(finished_demo)
    for part, names in SUMMARY.items():
        assert set(names) <= summary[part].keys(), part
    for name in ("accuracy", "auc", "clip_auc"):
        assert {"seen", "unseen"} <= summary["reward"][name].keys()
    for model in ("base", "aligned", "best_of_n"):
        assert set(GROUPS) <= summary["alignment"][model].keys()
    assert {"n", "p_value"} <= summary["alignment"].keys()


def test_numbers_add_up(finished_demo: Path) -> None:
    summary = summary_of(finished_demo)
    feedback, comparison = summary["feedback"], summary["comparison"]
    assert feedback["ratings"] == feedback["good"] + feedback["bad"] + feedback["skip"]
    assert feedback["ratings"] == 24 * 4
    assert sum(comparison[name] for name in ("win", "tie", "lose", "undecided")) == pytest.approx(1)
    assert comparison["net"] == pytest.approx(comparison["win"] - comparison["lose"])
    assert comparison["n_prompts"] == 16


def test_every_run_has_its_papers(finished_demo: Path) -> None:
    runs = sorted((finished_demo / "runs").iterdir())
    assert {"fit-clip_head", "align-rwr", "evaluate-align-rwr"} <= {run.name for run in runs}
    for run in runs:
        env = json.loads((run / "env.json").read_text())
        assert env["packages"]["torch"]
        if run.name.split("-")[0] in ("generate", "fit", "align", "evaluate"):
            assert env["device"].startswith("cpu")
            assert env["processors"] >= 1
            assert all(len(h) == 64 for m in env["loaded"] for h in m["sha256"].values())
        assert (run / "result.json").exists(), run.name
        assert not (run / "checkpoints").exists(), run.name
    env = json.loads((finished_demo / "runs/align-rwr/env.json").read_text())
    names = [Path(m["folder"]).name for m in env["loaded"]]
    assert names == ["pipeline", "clip", "weights"]
    assert [m["licence"] for m in env["loaded"]] == ["apache-2.0", "apache-2.0", None]


def test_report_is_one_file_without_outside_requests(finished_demo: Path) -> None:
    html = (finished_demo / "report.html").read_text()
    assert "simulated" in html
    assert 'src="http' not in html
    assert "@import" not in html
    assert "<script" not in html


def test_raters_are_shown_as_simulated(finished_demo: Path) -> None:
    import sqlite3

    with sqlite3.connect(finished_demo / "feedback.db") as database:
        for table in ("ratings", "comparisons"):
            rows = database.execute(f"SELECT DISTINCT rater, simulated FROM {table}").fetchall()
            assert rows
            assert all("simulated" in rater and flag for rater, flag in rows)


def test_repeating_says_finished(finished_demo: Path) -> None:
    before = (finished_demo / "summary.json").read_bytes()
    done = run_sayso("demo", finished_demo, "--quick")
    assert done.returncode == 0
    assert "finished" in done.stderr
    assert (finished_demo / "summary.json").read_bytes() == before


def test_full_demo_compares_models_on_shared_seeds_within_its_budget() -> None:
    """Sets of the tuned model are drawn, no more; network evaluations stay what minutes allow."""
    lines = commands("d", DemoConfig())
    number = {}
    for line in lines:
        words = line.split()
        if words[0] == "generate" and "--best-of" not in words:
            given = dict(zip(words[2::2], words[3::2], strict=True))
            key = given["--prompts"], given.get("--model", "base")
            number[key] = int(given["--per-prompt"])
    sets = {int(line.split("--set-size ")[1].split()[0]) for line in lines if "compare" in line}
    assert sets == {number["test", "runs/align-rwr"]}
    assert number["test", "base"] > number["test", "runs/align-rwr"]
    sizes = next(line for line in lines if line.startswith("prompts ")).split()
    prompts = {name: int(sizes[sizes.index(f"--{name}") + 1]) for name in ("train", "test")}
    prompts["fidelity"] = int(sizes[sizes.index("--fidelity") + 1])
    images = sum(prompts[which] * n for (which, _), n in number.items())
    # guidance evaluates twice; 52,224 took 286 s with the rest, on two cores with AVX2 alone
    assert images * 2 * SAMPLER.num_inference_steps < 53_000


@pytest.mark.parametrize("content", ["prompts.jsonl", "summary.json", "feedback.db"])
def test_demo_leaves_other_studies_alone(tmp_path: Path, content: str) -> None:
    """Those of the tiny world with the demo's seed too, finished or not."""
    mine, bare = tmp_path / "mine", tmp_path / "bare"
    cli.run(["new", str(bare), "--seed", "5"])
    cli.run(["new", str(mine)])
    (mine / content).write_text("{}")
    for study in (bare, mine):
        with pytest.raises(UserError, match="is a different study; give the demo another path"):
            demo(study, DemoConfig(quick=True))
        assert not (study / "demo.json").exists()


def test_demo_knows_its_own_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By demo.json; killed before that was there, by a study in which nothing is yet."""
    ran: list[str] = []
    monkeypatch.setattr("sayso.cli.demo._run", ran.append)
    monkeypatch.setattr("sayso.cli.demo._show", lambda *_: None)
    study = tmp_path / "a study"
    cli.run(["new", str(study)])
    (study / ".demo.json.1.tmp").touch()
    demo(study, DemoConfig(quick=True))
    assert json.loads((study / "demo.json").read_text())["quick"] is True
    (study / "prompts.jsonl").touch()
    demo(study, DemoConfig(quick=True))
    assert ran == commands(f"'{study}'", DemoConfig(quick=True))[1:] * 2, "resumed without new"
    with pytest.raises(UserError, match=f"was begun with: sayso demo '{study}' --quick; give"):
        demo(study, DemoConfig(seed=3))
    (tmp_path / "empty").mkdir()
    demo(tmp_path / "empty", DemoConfig())
    assert ran[-len(commands("", DemoConfig())) :] == commands(
        str(tmp_path / "empty"), DemoConfig()
    )
