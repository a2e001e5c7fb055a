"""Every command line that a reader may copy is one that the real command line takes."""

import ast
import importlib
import itertools
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from studies import random_study

from sayso.base.errors import UserError
from sayso.cli.commands import COMMANDS
from sayso.cli.options import _plugin_class, parse
from sayso.stages.align import AlignConfig, align
from sayso.study.study import Study

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md",
    *sorted(p for p in (ROOT / "docs").rglob("*.md") if p.name != "cli.md"),
    *sorted((ROOT / "recipes").glob("*.sh")),
]  # fmt: skip
SOURCES = sorted((ROOT / "src").rglob("*.py"))
TEMPLATES = sorted((ROOT / "src/sayso/web").rglob("*.html"))


def in_page(text: str) -> Iterator[str]:
    """Command lines of code blocks and scripts, continuation lines joined, and of `inline code`."""
    joined = text.replace("\\\n", " ")
    yield from re.findall(r"^(?!from )[^#`|]*?\bsayso (\w+ .*)$", joined, flags=re.MULTILINE)
    for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", joined):
        yield from re.findall(r"^(?:\$ )?sayso (\w+ .*)$", " ".join(code.split()))


def in_source(text: str) -> Iterator[str]:
    """Command lines in the strings of a program, what is filled in replaced by 1."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.JoinedStr):
            parts = [str(p.value) if isinstance(p, ast.Constant) else "1" for p in node.values]
            yield from in_words("".join(parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from in_words(node.value)


def in_words(text: str) -> Iterator[str]:
    """Of a sentence: from the command to the end of the clause."""
    yield from re.findall(r"\bsayso (\w+ [^,;:()`\"…]*)", " ".join(text.split()))


def words_of(line: str) -> list[str]:
    """The arguments, placeholders replaced by something of their kind."""
    line = re.split(r"""\s[#|&>](?=(?:[^"]*"[^"]*")*[^"]*$)""", line)[0]  # not between quotes
    for hint, value in (
        (r"--judge \./\w+\.py.*", "--judge people"),
        (r"\./mine\.py", "rwr"), (r"\[options\]|…|\.\.\.", ""), (r"\bN\b|\bMB\b", "1"),
        (r"\{\{.*?\}\}", "1"), (r"--prompts 1\b", "--prompts test"),
        (r"^(raters \S+) 1\b", r"\1 add"),
        (r"^(fit .*--reward) 1\b", r"\1 clip_head"), (r"--reward \./bright\.py", "--reward jpeg"),
    ):  # fmt: skip
        line = re.sub(hint, value, line)
    return shlex.split(line)


def refuse_wrong(line: str) -> None:
    """Parse the line as the program would; of one without a study the options must exist."""
    name, *rest = words_of(line)
    if name not in COMMANDS or not rest:
        return
    command = COMMANDS[name]
    config = getattr(importlib.import_module(command.module), command.config)
    known = {f.name for f in fields(config)} | {"help", "dry_run", "config"}
    if command.plugin:
        chosen = {f.name: f.default for f in fields(config)}[command.plugin]
        kind = _plugin_class(command.plugin, str(chosen))
        known |= {f.name for f in fields(kind)} if kind else set()
    if rest[0].startswith("-") or rest[-1].startswith("--"):  # options are only mentioned
        for word in (w for w in rest if w.startswith("--")):
            assert word[2:].partition("=")[0].replace("-", "_") in known, f"sayso {line}: {word}"
    else:
        parse(name, config, command.plugin, rest)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_lines_of_a_page(page: Path):
    found = list(in_page(page.read_text()))
    for line in found:
        refuse_wrong(line)


def test_lines_of_messages_and_help():
    found = [(p, line) for p in SOURCES for line in in_source(p.read_text())]
    found += [
        (p, line) for p in TEMPLATES
        for line in re.findall(r"<code>sayso (\w+ [^<]*)</code>", p.read_text())
    ]  # fmt: skip
    flagged = [line for _, line in found if "--" in line]
    assert len(flagged) > 10, "messages name commands"
    for path, line in found:
        words = line.split()
        if words[0] not in COMMANDS:
            continue
        # in a sentence a command goes on up to the last word that looks like an argument
        while words[1:] and re.fullmatch(r"[a-z]+[.]?", words[-1]) and words[-1] not in KNOWN:
            words.pop()
        try:
            refuse_wrong(" ".join(words).rstrip("."))
        except Exception as error:
            raise AssertionError(f"{path.relative_to(ROOT)}: sayso {line}: {error}") from error


KNOWN = {"add", "list", "link", "on", "off", "base", "train", "test", "fidelity", "compare"}
"""Words of commands that a sentence does not end with."""


def test_a_wrong_line_is_found():
    assert list(in_page("```\nsayso align s \\\n  --lora-rank 3 # x\n```")) == [
        "align s    --lora-rank 3 # x"
    ]
    assert list(in_source("f'do it with: sayso fit {x} --nmae y; or not'")) == ["fit 1 --nmae y"]
    with pytest.raises(Exception, match="--name"):
        refuse_wrong("fit 1 --nmae y")
    with pytest.raises(Exception, match=r"invalid choice|allowed|NAME"):
        refuse_wrong("raters add anna")


PARTS = [
    ["draw", "study", "base", "clip", "natural"], ["rate", "study"], ["learn", "study"],
    ["compare", "study", "base", "runs/align-rwr"],
    ["compare", "study", "base", "base@best-of-16"],
    ["compare", "study", "base@best-of-16", "runs/align-rwr"], ["measure", "study"],
]  # fmt: skip

STORY = ["draw", "rate", "learn", "compare", "measure"]


@pytest.fixture
def stand_in(tmp_path: Path) -> dict[str, str]:
    """An environment whose `sayso` only writes its arguments down."""
    program = tmp_path / "bin" / "sayso"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> "{tmp_path}/said"\n')
    program.chmod(0o755)
    return {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}


def run(script: str, arguments: list[str], stand_in: dict[str, str], where: Path):
    return subprocess.run(
        ["sh", str(ROOT / "recipes" / script), *arguments],
        env=stand_in, cwd=where, capture_output=True, text=True, check=False,
    )  # fmt: skip


def told(
    script: str, parts: list[list[str]], stand_in: dict[str, str], where: Path
) -> tuple[list[str], list[str]]:
    """The commands of a recipe's parts, each of them possible, and the stages in their order."""
    for part in parts:
        done = run(script, part, stand_in, where)
        assert (done.returncode, done.stderr) == (0, "")
    lines = (where / "said").read_text().splitlines()
    for line in lines:
        refuse_wrong(line)
    stages = [line.split()[0] for line in lines]
    return lines, [s for i, s in enumerate(stages) if [s] != stages[i - 1 : i]]


def test_the_paper_s_recipe_is_a_whole_story(tmp_path: Path, stand_in: dict[str, str]):
    lines, stages = told("lee2023.sh", PARTS, stand_in, tmp_path)
    assert stages == [
        "new", "prompts", "generate", "rate", "fit", "align", "generate", "rate", "evaluate",
        "agreement", "report",
    ]  # fmt: skip
    assert sum("--task compare" in line for line in lines) == 3
    usage = (ROOT / "recipes" / "lee2023.sh").read_text()
    for part in PARTS[1:]:
        assert " ".join(part).replace("study", "STUDY") in usage.replace("  ", " ")


def test_the_paper_s_recipe_is_forecast_for_devices(tmp_path: Path, stand_in: dict[str, str]):
    done = run("lee2023.sh", ["--dry-run"], stand_in, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = (tmp_path / "said").read_text().splitlines()
    for line in lines:
        # the stand-in drops the quotes of nothing
        refuse_wrong(line.replace("--pretraining  ", ""))
    asked = [(line.split()[0], line.partition(" --forecast-for ")[2]) for line in lines]
    plans = [
        (stage, f"{device} --dry-run")
        for device in ("h200", "4xrtx4090")
        for stage in ("generate", "align", "generate")
    ]
    assert [pair for pair in asked if pair[1]] == plans
    assert {stage for stage, device in asked if not device} == {"new", "prompts"}
    # what needs images, people or a tuned model is said
    assert "== sayso rate" in done.stdout
    assert "--model runs/align-rwr" in done.stdout


@pytest.mark.parametrize(
    ("script", "precision"), [("sdxl_lora.sh", "bf16"), ("flux_lora.sh", "nf4")]
)
def test_recipes_of_large_models_are_whole_stories(
    script: str, precision: str, tmp_path: Path, stand_in: dict[str, str]
):
    parts = [["draw", "study", "prompts.txt"], *([name, "study"] for name in STORY[1:])]
    lines, stages = told(script, parts, stand_in, tmp_path)
    kept = [f"--base-precision {precision}" in line for line in lines if "--model" in line
            or line.split()[0] in ("generate", "align")]  # fmt: skip
    # what is rated, trained, generated and compared keeps weights in the same way
    assert kept == [True] * 4 + [False], "all but evaluate"
    assert stages == [
        "new", "prompts", "generate", "rate", "align", "generate", "rate", "evaluate",
        "agreement", "report",
    ]  # fmt: skip
    assert run(script, ["paint", "s"], stand_in, tmp_path).returncode == 2


def test_the_recipes_say_what_they_miss(tmp_path: Path, stand_in: dict[str, str]):
    assert run("lee2023.sh", ["paint", "s"], stand_in, tmp_path).returncode == 2
    assert "the folder of the study" in run("lee2023.sh", ["rate"], stand_in, tmp_path).stderr
    assert run("lee2023_tiny.sh", ["study"], stand_in, tmp_path).returncode == 0
    for line in (tmp_path / "said").read_text().splitlines():
        refuse_wrong(line)


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.name)
def test_what_is_filled_into_a_command_is_quoted(source: Path) -> None:
    """A study's folder may have a space in its name; so may a run."""
    text = source.read_text()
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.JoinedStr):
            continue
        for said, value in itertools.pairwise(node.values):
            in_command = isinstance(said, ast.Constant) and re.search(
                rf"\bsayso ({'|'.join(COMMANDS)}) (?!STUDY)([^;,:()]* )?$", str(said.value)
            )
            if in_command and isinstance(value, ast.FormattedValue):
                filled = ast.unparse(value.value)
                quoted = filled.startswith("quoted(") or f"    {filled} = quoted(" in text
                assert quoted, f"{source} line {node.lineno}: {filled}"


def test_a_command_for_a_folder_with_a_space_can_be_typed(tmp_path: Path) -> None:
    study = random_study(tmp_path / "my studies")
    with pytest.raises(UserError) as refused:
        align(study, AlignConfig())
    (line,) = in_words(str(refused.value))
    assert shlex.split(line) == ["generate", str(study.path), "--model", "base"]
    with pytest.raises(UserError) as refused:
        Study.open(tmp_path / "no; study")
    assert str(refused.value).endswith(f"sayso new '{tmp_path}/no; study'")
