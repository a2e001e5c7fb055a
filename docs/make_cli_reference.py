"""Write docs/cli.md from the commands' own help, so that it cannot go stale (a test compares)."""

import os
import subprocess
import sys
from pathlib import Path

from sayso.base.plugins import plugin_names
from sayso.cli.commands import COMMANDS, overview

WIDTH = "100"


def help_of(command: str, *options: str) -> str:
    """The help text of one command as a terminal of fixed width shows it."""
    environment = {**os.environ, "COLUMNS": WIDTH, "NO_COLOR": "1", "TERM": "dumb"}
    arguments = [sys.executable, "-m", "sayso", command, *options, "--help"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, env=environment)
    return "\n".join(line.rstrip() for line in done.stdout.splitlines()).strip()


def reference() -> str:
    """The whole page."""
    parts = ["# Commands\n", "Written by `make docs` from the commands' own help.\n"]
    parts.append(f"```\n{overview()}\n```\n")
    for command in COMMANDS:
        parts.append(f"## sayso {command}\n\n```\n{help_of(command)}\n```\n")
    for name in plugin_names("judge"):
        box = f"╭─ {name.replace('_', '-')} options"
        _, title, options = help_of("evaluate", "--judge", name).partition(box)
        if title:
            parts.append(f"### --judge {name}\n\n```\n{title}{options}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    (Path(__file__).parent / "cli.md").write_text(reference())
