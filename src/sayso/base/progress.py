"""Progress of long work on stderr: a bar in a terminal, now and then a plain line in a log."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich import progress as rich
from rich.console import Console
from rich.text import Text

from sayso.base.launch import is_talking

PLAIN_EVERY_S = 30.0

console = Console(stderr=True, quiet=not is_talking())


@contextmanager
def progress(
    description: str, total: int, unit: str = "images", done: int = 0
) -> Iterator[Callable[..., None]]:
    """Show how far the block is while it runs; it yields `advance(n=1, note="")`.

    Args:
        description: what is being done, a few words.
        total: how many units there are in all.
        unit: what is counted, plural.
        done: units finished before (a resumed run).
    """
    if not console.is_terminal:
        plain = PlainProgress(description, total, unit, done)
        yield plain.advance
        plain.end()
        return
    with rich.Progress(*_columns(), console=console) as bar:
        task = bar.add_task(description, total=total, unit=unit, completed=done, note="")

        def advance(n: int = 1, note: str = "") -> None:
            bar.update(task, advance=n, note=note)

        yield advance


def _columns() -> list[rich.ProgressColumn]:
    class Rate(rich.ProgressColumn):
        def render(self, task: rich.Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:.1f} {task.fields['unit']}/s" if speed else "")

    return [
        rich.TextColumn("{task.description}"), rich.BarColumn(bar_width=24),
        rich.MofNCompleteColumn(), Rate(), rich.TimeElapsedColumn(), rich.TextColumn("left"),
        rich.TimeRemainingColumn(), rich.TextColumn("{task.fields[note]}"),
    ]  # fmt: skip


class PlainProgress:
    """Lines for a log: the first after half a minute, then one every half minute, and the end.

    Rate and time left are those of this block, from its beginning: what was done before does not
    count.
    """

    def __init__(self, description: str, total: int, unit: str, done: int = 0) -> None:
        self._description, self._total, self._unit = description, total, unit
        self._before, self._done = done, done
        self._began = self._said = time.monotonic()
        self._note = ""

    def advance(self, n: int = 1, note: str = "") -> None:
        """Count `n` more units, and say so if the last line is half a minute old."""
        self._done, self._note = self._done + n, note
        now = time.monotonic()
        if now - self._said >= PLAIN_EVERY_S and self._done < self._total:
            self._said = now
            per_unit = (now - self._began) / max(1, self._done - self._before)
            left = per_unit * (self._total - self._done)
            self._say(now, f"{_time(left)} left")

    def end(self) -> None:
        """Say how it ended, if anything was done."""
        if self._done > self._before:
            now = time.monotonic()
            self._say(now, f"in {_time(now - self._began)}")

    def _say(self, now: float, when: str) -> None:
        parts = [f"{self._description}: {self._done}/{self._total} {self._unit}",
                 self._rate(now - self._began), when, self._note]  # fmt: skip
        line = ", ".join(part for part in parts if part)
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _rate(self, seconds: float) -> str:
        done = self._done - self._before
        if not seconds or not done:
            return ""
        if done >= seconds:
            return f"{done / seconds:.1f} {self._unit}/s"
        return f"{seconds / done:.1f} s each"


def _time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
