"""The demo: the ordinary commands a user would type, one after the other, on the tiny world."""

import shlex
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sayso.base.errors import UserError, quoted
from sayso.base.files import JsonObject, read_json, write_json
from sayso.base.progress import console
from sayso.base.worlds import DEFAULT
from sayso.study.study import Study


@dataclass(frozen=True)
class DemoConfig:
    """How to run the whole loop on the tiny world."""

    quick: bool = False
    """Test the whole path in under a minute, at a size too small to show an effect."""
    through_app: bool = False
    """Let the simulated raters use the rating app over HTTP: 20 raters, one of them careless, three
    per image. Takes a minute or two longer."""
    seed: int = 0
    """Seed for everything."""


@dataclass(frozen=True)
class Size:
    """How much of everything the demo does; the numbers decide its time and its effect.

    `train_images` and `pool` are the base's images per train and test prompt; the tuned model draws
    only as many test images as a set of a comparison holds.
    """

    prompts: str
    train_images: int
    pool: int
    align: str
    fit: str


FIT = "--joining interaction --dropout 0.7 --weight-decay 0.3"
"""The paper's head overfits on a hundred prompts; this one less."""

THROUGH_APP = "--through-app --raters 20 --careless 1 --overlap 3"
"""Enough raters for the careless one to be found, and for their labels to be better than one's."""

TUNE = (
    "--draw reward --weight product --even --prompt-dropout 0.2 --pretraining-draw reward "
    "--pretraining-images 2048 --pretraining-fraction 0.5 --pretraining-weight 1"
)
"""How the demo's model is tuned; docs/benchmarks.md has what was tried beside it."""

FULL = Size(
    prompts="--train 320 --test 192 --fidelity 256",
    train_images=6,
    pool=6,
    fit=FIT,
    align=f"--max-steps 250 {TUNE}",
)
QUICK = Size(
    prompts="--train 24 --test 16 --fidelity 0",
    train_images=4,
    pool=4,
    align="--max-steps 6 --batch-size 16 --pretraining-images 32 --checkpoint-every 2",
    fit=f"{FIT} --max-epochs 3",
)


def commands(study: str, config: DemoConfig) -> list[str]:
    """The demo's command lines in order, without the leading "sayso"."""
    size = QUICK if config.quick else FULL
    sets = min(4, size.pool)
    base, tuned = "base", "runs/align-rwr"
    best = f"{base}@best-of-{size.pool}"
    rated, taught, compared = "", "", ""
    if config.through_app:
        rated, taught, compared = f" {THROUGH_APP}", " --labels dawid-skene", " --through-app"
    lines = [
        f"new {study} --seed {config.seed}",
        f"prompts {study} {size.prompts}",
        f"generate {study} --prompts train --per-prompt {size.train_images}",
        f"rate {study} --simulated --prompts train{rated}",
        f"fit {study} {size.fit}{taught}",
        f"align {study} {size.align}",
        f"generate {study} --prompts test --per-prompt {size.pool}",
        f"generate {study} --prompts test --per-prompt {sets} --best-of {size.pool} "
        "--reward runs/fit-clip_head",
        f"generate {study} --prompts test --per-prompt {sets} --model {tuned}",
    ]
    if not config.quick:
        lines += [
            f"generate {study} --prompts fidelity --per-prompt 1",
            f"generate {study} --prompts fidelity --per-prompt 1 --model {tuned}",
        ]
    for left, right in ((base, tuned), (base, best), (best, tuned)):
        lines.append(
            f"rate {study} --simulated --task compare --prompts test --set-size {sets} "
            f"--left {left} --right {right} --raters 9 --overlap 9{compared}"
        )
    return [
        *lines,
        f"evaluate {study} --model {tuned}",
        f"agreement {study}",
        f"report {study}",
    ]


MARKER = "demo.json"
"""The file with the demo's options, by which it knows a study that it made."""


def demo(path: Path, config: DemoConfig) -> None:
    """Run the whole loop in `path`; run again, it resumes, or says that it is finished.

    Raises: UserError: if `path` is another study, or a demo that was begun with other options.
    """
    started = time.perf_counter()
    _refuse_other(path, config)
    if (path / "summary.json").exists():
        console.print(f"The demo in {path} has finished; to run it again, give another path.")
    else:
        new, *others = commands(quoted(path), config)
        if not (path / "study.json").exists():
            _run(new)
        write_json(path / MARKER, asdict(config))
        for line in others:
            _run(line)
        console.print(f"\nThe whole loop took {time.perf_counter() - started:.0f} s.")
    _show(path, config)


def _run(line: str) -> None:
    from sayso.cli import commands as cli

    console.print(f"\n[bold]$ sayso {line}[/bold]", highlight=False)
    cli.run(shlex.split(line))


def _refuse_other(path: Path, config: DemoConfig) -> None:
    """Refuse a study that the demo did not make, or made with other options."""
    if (path / MARKER).exists():
        begun = read_json(path / MARKER)
        if begun != asdict(config):
            raise UserError(
                f"the demo in {path} was begun with: sayso demo {quoted(path)}{_flags(begun)}; "
                "give the same options, or another path"
            )
    elif (path / "study.json").exists() and not _is_bare(path, config):
        raise UserError(f"{path} is a different study; give the demo another path")


def _flags(options: JsonObject) -> str:
    given = {name.replace("_", "-"): value for name, value in options.items() if value}
    return "".join(f" --{name}" + f" {v}" * (v is not True) for name, v in given.items())


def _is_bare(path: Path, config: DemoConfig) -> bool:
    """Whether a demo with these options may have made the study and was killed right after."""
    there = {file.name for file in path.iterdir() if file.suffix != ".tmp"}
    info = Study.open(path).info
    return there == {"study.json"} and (info.seed, info.base_model) == (config.seed, DEFAULT)


def _show(path: Path, config: DemoConfig) -> None:
    """The small table at the end, where the report is, and what to try next."""
    from rich.table import Table

    summary = read_json(path / "summary.json")
    table = Table("true to the prompt", "base", "best of n", "aligned")
    for group in ("count", "colour", "background", "combination", "seen", "unseen", "all"):
        shares = [summary["alignment"][m][group] for m in ("base", "best_of_n", "aligned")]
        table.add_row(group, *map(_percent, shares))
    console.print(table)
    if config.quick:
        console.print(
            "This was --quick: it tests the whole path but is too small to show an effect."
        )
    console.print(f"Report: {path / 'report.html'}")
    console.print(
        "Next: align your own model, with your own prompts and raters (docs/tutorial.md)."
    )


def _percent(share: Any) -> str:
    return f"{share:.0%}" if isinstance(share, int | float) else "–"
