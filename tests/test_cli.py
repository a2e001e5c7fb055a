"""The command line as a user meets it: help, unknown names, one-line errors, light imports."""

import ast
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import run_sayso
from studies import random_study

import sayso as sayso_package
from sayso.base.errors import UserError
from sayso.cli import commands as cli

HEAVY = ("torch", "diffusers", "transformers", "accelerate", "peft", "safetensors")


def sayso(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sayso", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def loaded_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint('\\n'.join(sys.modules), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return {line.split(".")[0] for line in done.stderr.splitlines()}


def test_overview_names_every_command_and_loads_nothing_heavy() -> None:
    loaded = loaded_after("from sayso.cli import commands as cli; cli.main(['--help'])")
    assert not loaded & {*HEAVY, "tyro", "rich", "sqlalchemy", "numpy", "jinja2"}
    assert all(name in cli.overview() for name in cli.COMMANDS)


@pytest.mark.parametrize("command", sorted(cli.COMMANDS))
def test_help_of_every_command(command: str) -> None:
    done = sayso(command, "--help")
    assert done.returncode == 0
    assert "--dry-run" in done.stdout


def test_help_names_its_boxes_by_the_command_and_the_plugin() -> None:
    boxes = re.findall("╭─ ([^─]+) ─", sayso("evaluate", "--judge", "people", "--help").stdout)
    assert boxes == ["positional arguments", "options", "evaluate options", "people options"]


def test_help_flows_and_shows_no_empty_defaults() -> None:
    """Of every command: docs/cli.md is their help (a test compares)."""
    text = (Path(__file__).parents[1] / "docs/cli.md").read_text()
    assert not re.findall(r"\(default: (?:''|None|False)\)", text)
    assert "--unrated, --no-unrated" in text, "a switch that is on shows how to turn it off"
    lines = [line.strip("│").rstrip() for line in text.splitlines() if line.startswith("│")]
    for line, following in itertools.pairwise(lines):
        if line.startswith(" " * 10) and following.startswith(" " * 10):
            assert len(line) + 1 + len(following.split()[0]) > 96, f"broken early: {line}"


def test_raters_laptop_needs_no_torch() -> None:
    stages = "sayso.stages.report, sayso.stages.rate, sayso.stages.agreement"
    modules = f"sayso.study.study, sayso.prompts.grammar, sayso.feedback.store, {stages}"
    assert not loaded_after(f"import {modules}") & set(HEAVY)


def test_the_public_names_are_imported_when_they_are_used() -> None:
    script = (
        "import sayso, sys\n"
        "assert {'align', 'Judge'} <= set(dir(sayso))\n"
        "print(*[m for m in sys.modules if m.startswith('sayso.')])\n"
        "from sayso import Rating, Study, Verdict, report\n"
        "print(*[m for m in sys.modules if m.split('.')[0] in " + repr(HEAVY) + "])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (0, []), done


@pytest.mark.parametrize("name", sayso_package.__all__)
def test_every_public_name_is_there(name: str) -> None:
    found = getattr(sayso_package, name)
    assert name in (found.__name__, getattr(found, "_name", ""))
    assert found.__doc__


def test_the_public_names_are_the_same_to_type_checkers() -> None:
    tree = ast.parse(Path(sayso_package.__file__).read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    typed = {
        node.module.removeprefix("sayso."): tuple(alias.name for alias in node.names)
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module
    }
    assert typed == sayso_package._HOMES
    assert sorted(name for names in typed.values() for name in names) == sorted(
        sayso_package.__all__
    )


def test_a_name_that_is_not_public_is_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'alignn'"):
        _ = sayso_package.alignn


def test_unknown_command_names_the_nearest() -> None:
    done = sayso("generat")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "did you mean 'generate'" in done.stderr


def test_unknown_option_names_the_nearest(tmp_path: Path) -> None:
    done = sayso("prompts", str(tmp_path), "--sedd", "3")
    assert done.returncode == 2
    assert "did you mean '--seed'" in done.stderr


def test_bad_value_is_one_line(tmp_path: Path) -> None:
    done = sayso("prompts", str(tmp_path), "--seed", "many")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--seed" in done.stderr


def test_config_file_then_flags(tmp_path: Path) -> None:
    study = tmp_path / "study"
    cli.run(["new", str(study)])
    cli.run(["prompts", str(study), "--train", "24", "--test", "16", "--fidelity", "0"])
    config = tmp_path / "config.json"
    config.write_text('{"per_prompt": 3, "batch_size": 5}')
    done = sayso("generate", str(study), "--config", str(config), "--batch-size", "7", "--dry-run")
    assert "per_prompt = 3" in done.stdout
    assert "batch_size = 7" in done.stdout


def test_unknown_field_in_config_file(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text('{"per_promt": 3}')
    with pytest.raises(UserError, match="did you mean 'per_prompt'"):
        cli.run(["generate", str(tmp_path), "--config", str(config)])


@pytest.mark.parametrize(
    ("line", "written", "says"),
    [
        ("generate", {"per_prompt": "four"}, 'has per_prompt "four"; give a whole number'),
        ("generate", {"per_prompt": 2.5}, "has per_prompt 2.5; give a whole number"),
        ("generate", {"per_prompt": True}, "has per_prompt true; give a whole number"),
        ("generate", {"eta": "x"}, 'has eta "x"; give a number or null'),
        ("generate", {"model": None}, "has model null; give text in quotes"),
        ("generate", {"prompts": "foo"}, 'has prompts "foo"; give train, validation, seen,'),
        ("align", {"compile": 1}, "has compile 1; give true or false"),
        ("align", {"aligner": 3}, "has aligner 3; give text"),
        ("align", {"options": [1]}, "options in .* is not a JSON object"),
        ("align", {"options": {"weight": "labels"}}, "options in .* give reward, label or product"),
        ("align --aligner dpo", {"options": {"beta": "high"}}, "options in .*; give a number"),
        ("raters", {"names": "anna"}, 'has names "anna"; give a list'),
    ],
)
def test_values_of_other_types_in_a_config_file(
    tmp_path: Path, line: str, written: dict[str, object], says: str
) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(written))
    command, *rest = line.split()
    with pytest.raises(UserError, match=says):
        cli.run([command, str(tmp_path), *rest, "--config", str(config)])


def test_a_dry_run_knows_the_options_of_the_plugin(
    finished_demo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = []
    for options in ([], ["--score", "rollouts"]):
        cli.run(["align", str(finished_demo), "--aligner", "nft", *options, "--dry-run"])
        rows.append("older weights" in capsys.readouterr().out)
    assert rows == [False, True]
    with pytest.raises(UserError, match="do not make whole batches of 100"):
        cli.run(["align", str(finished_demo), "--aligner", "nft", "--score", "rollouts",
                 "--batch-size", "100", "--dry-run"])  # fmt: skip


@pytest.mark.parametrize("command", ["align", "generate"])
def test_a_device_to_forecast_for_is_for_dry_runs(finished_demo: Path, command: str) -> None:
    with pytest.raises(UserError, match="forecast_for 24GB is for forecasts; add --dry-run"):
        cli.run([command, str(finished_demo), "--forecast-for", "24GB"])


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("report.html", "report"), ("summary.json", "report"), ("samples.jsonl", "report"),
        ("prompts.jsonl", "prompts --train 8"), ("runs/", "prompts --train 8"),
        ("images/", "generate"), ("latents/", "generate"),
    ],
)  # fmt: skip
def test_a_folder_for_a_file_or_the_other_way_round_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, command: str
) -> None:
    study = random_study(tmp_path).path
    if command != "generate":
        (study / "prompts.jsonl").unlink()
    (study / name).touch() if name.endswith("/") else (study / name).mkdir()
    with pytest.raises(SystemExit, match="2"):
        cli.main([*command.split(), str(study)])
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"sayso: error: {study / name}")
    assert last.endswith("belongs; move it away and run the command again")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("generate STUDY --config", "--config needs a file"),
        ("align STUDY --aligner", "--aligner needs a name or a .py file"),
        ("align STUDY --aligner --lora-rank 4", "--aligner needs a name"),
        ("raters STUDY list anna", "list takes no names; omit anna"),
        ("raters STUDY add anna --address foo", "--address foo is no web address"),
        ("rate STUDY --gold EMPTY/gold.jsonl", "gold.jsonl has no gold items"),
        ("new STUDY-2 --pretraining EMPTY", "metadata.jsonl is missing; write a line"),
        ("prompts STUDY --train 0 --test 0", "these options make no prompts; raise --train"),
        ("prompts STUDY --train 0 --test 0 --fidelity 0 --dry-run", "make no prompts"),
    ],
)
def test_what_says_nothing_is_refused(tmp_path: Path, line: str, says: str) -> None:
    study, empty = tmp_path / "study", tmp_path / "empty"
    cli.run(["new", str(study)])
    empty.mkdir()
    (empty / "gold.jsonl").write_text("\n")
    filled = line.replace("STUDY", str(study)).replace("EMPTY", str(empty)).split()
    with pytest.raises(UserError, match=says):
        cli.run(filled)
    assert sorted(p.name for p in study.iterdir()) == ["study.json"]
    assert not (tmp_path / "study-2").exists()


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("\ndef (\n", "line 2: invalid syntax; correct the file"),
        ("import os\nx = y\n", "line 2 fails: NameError: name 'y' is not defined; correct the"),
        ("import nowhere\n", "line 1 fails: ModuleNotFoundError: No module named 'nowhere'; cor"),
        ("import json\n\njson.loads('')\n", "line 3 fails: JSONDecodeError: Expecting value"),
        ("from sayso.base.errors import UserError\nraise UserError('as it is')\n", "^as it is$"),
        (b"caf\xe9 = 1\n", "fails: SyntaxError|line 1: .*unicode error"),
    ],
)
def test_a_mistake_in_a_file_of_ones_own_is_one_line(
    tmp_path: Path, source: str | bytes, says: str
) -> None:
    own = tmp_path / "mine.py"
    own.write_bytes(source if isinstance(source, bytes) else source.encode())
    with pytest.raises(UserError, match=says) as refused:
        cli.run(["align", str(tmp_path), "--aligner", str(own)])
    assert str(refused.value).startswith(f"aligner file {own} ") or "as it is" in says


def test_loading_a_model_prints_no_advice_for_programmers(finished_demo: Path) -> None:
    done = run_sayso("generate", finished_demo, "--dry-run")
    assert done.returncode == 0
    assert "torchvision" not in done.stderr + done.stdout
