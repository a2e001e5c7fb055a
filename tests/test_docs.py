"""The documents say what the code does: commands, flags, plug-ins and links exist."""

import importlib.util
import re
from dataclasses import fields
from pathlib import Path

import pytest

from sayso.base.plugins import load_plugin, plugin_names
from sayso.cli.commands import COMMANDS
from sayso.rewards import Reward

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
REFERENCE = ROOT / "docs" / "cli.md"


def command_lines(text: str) -> list[list[str]]:
    """Every `sayso …` line of the code blocks and recipes, continuation lines joined.

    A launcher may stand before it: `torchrun … -m sayso …`.
    """
    joined = text.replace("\\\n", " ")
    lines = re.findall(r"^\s*(?:\$ |.*-m )?sayso (\w+.*)$", joined, flags=re.MULTILINE)
    return [line.split("#")[0].split() for line in lines]


def options_of_rewards() -> str:
    kinds = [load_plugin("reward", name, Reward) for name in plugin_names("reward")]
    return " ".join(f"--{f.name.replace('_', '-')}" for kind in kinds for f in fields(kind))


def test_command_reference_is_current() -> None:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs/make_cli_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert REFERENCE.read_text() == module.reference(), "run `make docs`"


@pytest.mark.parametrize("page", [*PAGES, *(ROOT / "recipes").glob("*.sh")], ids=lambda p: p.name)
def test_documented_commands_and_flags_exist(page: Path) -> None:
    commands, _, judges = REFERENCE.read_text().partition("### --judge")
    sections = commands.split("## sayso ")
    helps = {section.split()[0]: section for section in sections[1:]}
    helps |= {name: helps[name] + judges for name in ("agreement", "evaluate")}
    helps["reward"] += options_of_rewards()
    for words in command_lines(page.read_text()):
        assert words[0] in COMMANDS, f"{page.name}: sayso {words[0]}"
        for flag in (w.split("=")[0] for w in words if w.startswith("--")):
            assert flag in helps[words[0]] or flag in ("--config", "--help"), f"{page.name}: {flag}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} → {target}"


@pytest.mark.parametrize("kind", ["aligner", "reward"])
def test_every_plugin_has_its_page(kind: str) -> None:
    pages = {p.stem for p in (ROOT / "docs" / f"{kind}s").glob("*.md")}
    assert pages == set(plugin_names(kind))


def test_makefile_targets_of_the_readme_exist() -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    named = re.findall(r"(?:^|`)make ([a-z-]+)", (ROOT / "README.md").read_text(), flags=re.M)
    assert {"demo", "test"} <= set(named)
    assert set(named) <= set(targets)
