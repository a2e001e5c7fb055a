"""Progress of long work on stderr: a bar with rate and time left; plain lines without rich.

The small install has no rich, which `sayso[train]` brings.
"""

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import ProgressColumn

PLAIN_EVERY_S = 10.0


class PlainConsole:
    """Prints text without its markup."""

    def print(self, *texts: object, **_style: object) -> None:
        """Print a line."""
        line = " ".join(map(str, texts))
        print(re.sub(r"\[/?[a-z ]*\]", "", line), file=sys.stderr, flush=True)


def _console() -> "Console":
    try:
        from rich.console import Console
    except ModuleNotFoundError:
        plain: Any = PlainConsole()
        return plain
    return Console(stderr=True)


console = _console()


@contextmanager
def progress(
    description: str, total: int, unit: str = "images", done: int = 0
) -> Iterator[Callable[..., None]]:
    """Show a bar while the block runs; it yields `advance(n, note="")`.

    Args:
        description: what is being done, a few words.
        total: how many units there are in all.
        unit: what is counted, plural.
        done: units finished before (a resumed run).
    """
    if isinstance(console, PlainConsole):
        yield plain_counter(description, total, unit, done)
        return
    from rich.progress import Progress

    with Progress(*_columns(), console=console) as bar:
        task = bar.add_task(description, total=total, unit=unit, completed=done, note="")

        def advance(n: int = 1, note: str = "") -> None:
            bar.update(task, advance=n, note=note)

        yield advance


def _columns() -> "list[ProgressColumn]":
    from rich import progress as rich
    from rich.text import Text

    class Rate(rich.ProgressColumn):
        def render(self, task: rich.Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:.1f} {task.fields['unit']}/s" if speed else "")

    return [
        rich.TextColumn("{task.description}"), rich.BarColumn(bar_width=24),
        rich.MofNCompleteColumn(), Rate(), rich.TimeElapsedColumn(), rich.TextColumn("left"),
        rich.TimeRemainingColumn(), rich.TextColumn("{task.fields[note]}"),
    ]  # fmt: skip


def plain_counter(description: str, total: int, unit: str, done: int) -> Callable[..., None]:
    """`advance` that prints a line now and then, and at the end."""
    state = {"done": done, "said": time.monotonic()}

    def advance(n: int = 1, note: str = "") -> None:
        state["done"] += n
        late = time.monotonic() - state["said"] > PLAIN_EVERY_S
        if late or state["done"] >= total:
            state["said"] = time.monotonic()
            console.print(f"{description}: {state['done']:.0f} of {total} {unit} {note}".rstrip())

    return advance
