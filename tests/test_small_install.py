"""`pip install sayso` alone: rating and reading work; the rest is one line, and leaves nothing."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from voted import add_ratings, comparisons, make_study

from sayso.base.extras import EXTRAS, missing_module, need

SCRIPT = Path(__file__).parent / "small_install.py"


def said(commands: list[list[str]]) -> list[tuple[int, str]]:
    """Exit code and stderr of each command, all in one process of a small install."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), json.dumps(commands)], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    parts = re.split(r"^== (.*)\n", done.stderr, flags=re.MULTILINE)[:-1]
    return [(int(code), text) for text, code in zip(parts[::2], parts[1::2], strict=True)]


def everything(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def test_what_needs_more_is_one_line_and_leaves_nothing(tmp_path: Path):
    study, fresh = str(tmp_path / "study"), str(tmp_path / "fresh")
    [new, prompts] = said([["new", study], ["prompts", study, "--fidelity", "8"]])
    assert (new[0], prompts[0]) == (0, 0), (new, prompts)
    before = everything(tmp_path)
    train = [
        ["demo", fresh], ["demo", fresh, "--quick", "--through-app"], ["generate", study],
        ["generate", study, "--dry-run"], ["fit", study], ["fit", "--help"], ["align", study],
        ["align", study, "--aligner", "sft"], ["evaluate", study, "--model", "runs/align-rwr"],
    ]  # fmt: skip
    export = [["import", study, "t.parquet"], ["export", study]]
    found = said(train + export)
    for command, (code, text) in zip(train + export, found, strict=True):
        extra = "train" if command in train else "export"
        assert code == 2, (command, text)
        assert text.count("\n") == 1, (command, text)
        assert text.startswith("sayso: error: ")
        assert f'pip install "sayso[{extra}]"' in text, (command, text)
    assert everything(tmp_path) == before


def test_rating_and_reading_work(tmp_path: Path):
    study = make_study(tmp_path / "study")
    add_ratings(study)
    study.feedback.add_comparisons(comparisons(study))
    path = str(study.path)
    commands = [
        ["agreement", path, "--resamples", "9"], ["report", path], ["raters", path, "add", "anna"],
        ["raters", path, "list"], ["rate", path, "--dry-run"], ["generate", "--help"],
        ["evaluate", "--help"], ["rate", "--help"],
    ]  # fmt: skip
    for command, (code, text) in zip(commands, said(commands), strict=True):
        assert code == 0, (command, text)
    assert (study.path / "report.html").is_file()
    assert list(study.path.glob("runs/agreement-*/result.json"))


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch):
    need("train", "fit")
    monkeypatch.setattr("sayso.base.extras.find_spec", lambda name: None if "p" in name else name)
    with pytest.raises(Exception, match=r'needs peft, scipy, jaxtyping; .*"sayso\[train\]"'):
        need("train", "fit")


def test_other_missing_modules_stay_bugs():
    assert missing_module(ModuleNotFoundError("x", name="torch.nn")) is not None
    assert missing_module(ModuleNotFoundError("x", name="sayso.typo")) is None
    assert missing_module(ModuleNotFoundError("x")) is None


def test_extras_name_the_modules_of_the_package():
    import tomllib

    project = tomllib.loads((SCRIPT.parent.parent / "pyproject.toml").read_text())["project"]
    for extra, modules in EXTRAS.items():
        declared = {re.split(r"\W", text)[0] for text in project["optional-dependencies"][extra]}
        assert declared == set(modules)
