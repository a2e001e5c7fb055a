"""The command line as a user meets it: help, unknown names, one-line errors, light imports."""

import subprocess
import sys
from pathlib import Path

import pytest

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


def test_raters_laptop_needs_no_torch() -> None:
    stages = "sayso.stages.report, sayso.stages.rate, sayso.stages.agreement"
    modules = f"sayso.study.study, sayso.prompts.grammar, sayso.feedback.store, {stages}"
    assert not loaded_after(f"import {modules}") & set(HEAVY)


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
