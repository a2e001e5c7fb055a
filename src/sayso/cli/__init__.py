"""The command line: a table of commands, flags from dataclasses, and the demo."""

from sayso.cli.commands import main

__all__ = ["main"]
