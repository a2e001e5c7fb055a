"""The command line: a table command → stage function, nothing else. Heavy imports wait."""

import dataclasses
import errno
import importlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from sayso.base.errors import UserError, unknown_name
from sayso.base.extras import missing_module, need
from sayso.base.launch import ENDED, QUIET, is_launched, is_lost, may_say


class Command(NamedTuple):
    """One row of the table: `plugin` is the option that names one, `needs` the extra to install."""

    help: str
    module: str
    function: str
    config: str
    plugin: str = ""
    needs: str = ""


COMMANDS = {
    "new": Command("make a study folder", "sayso.stages.new", "new", "NewConfig"),
    "prompts": Command(
        "write the study's prompts", "sayso.stages.prompts", "write_prompts", "PromptsConfig"
    ),
    "generate": Command(
        "generate images, or select the best of n",
        "sayso.stages.generate",
        "generate",
        "GenerateConfig",
        needs="train",
    ),
    "rate": Command(
        "rate images, or compare sets of images", "sayso.stages.rate", "rate", "RateConfig"
    ),
    "agreement": Command(
        "measure how far raters agree, and find careless ones",
        "sayso.stages.agreement",
        "agreement",
        "AgreementConfig",
        "judge",
    ),
    "raters": Command(
        "add raters and print their sign-in links", "sayso.stages.raters", "raters", "RatersConfig"
    ),
    "fit": Command(
        "train a reward on ratings",
        "sayso.stages.fit",
        "fit",
        "FitConfig",
        "reward",
        "train",
    ),
    "reward": Command(
        "add a reward that others trained",
        "sayso.stages.reward",
        "add_reward",
        "RewardConfig",
        "reward",
        "train",
    ),
    "align": Command(
        "fine-tune the model",
        "sayso.stages.align",
        "align",
        "AlignConfig",
        "aligner",
        "train",
    ),
    "evaluate": Command(
        "compare the tuned model with the base model",
        "sayso.stages.evaluate",
        "evaluate",
        "EvaluateConfig",
        "judge",
        "train",
    ),
    "report": Command(
        "write report.html and summary.json", "sayso.stages.report", "report", "ReportConfig"
    ),
    "export": Command(
        "write the votes as tables for other tools",
        "sayso.stages.export",
        "export",
        "ExportConfig",
    ),
    "import": Command(
        "read images and votes from other tables",
        "sayso.stages.import_",
        "import_table",
        "ImportConfig",
    ),
    "weights": Command(
        "write a tuned model for other programs, with a model card",
        "sayso.stages.weights",
        "weights",
        "WeightsConfig",
        needs="train",
    ),
    "moved": Command(
        "tell a study where its models are now", "sayso.stages.moved", "moved", "MovedConfig"
    ),
    "demo": Command(
        "run the whole loop on the tiny world",
        "sayso.cli.demo",
        "demo",
        "DemoConfig",
        needs="train",
    ),
    "league": Command(
        "compare all aligners on the tiny world",
        "sayso.cli.league",
        "league",
        "LeagueConfig",
        needs="train",
    ),
}
FOLDER_COMMANDS = ("new", "demo", "league")
"""Commands that are given a path, not an existing study."""

DISK_ERRORS = {
    errno.ENOSPC: "the disk is full; free some space and run the command again",
    errno.EDQUOT: "the disk quota is used up; free some space and run the command again",
    errno.EFBIG: "files may not grow that large here; raise ulimit -f and run the command again",
    errno.EROFS: "the file system is read-only; copy the study to where you can write",
    errno.EACCES: "permission denied; fix the folder's permissions and run the command again",
    errno.EPERM: "operation not permitted; fix the folder's permissions and run the command again",
    errno.EISDIR: "a folder is where a file belongs; move it away and run the command again",
    errno.ENOTDIR: "a file is where a folder belongs; move it away and run the command again",
    errno.EEXIST: "a file is where a folder belongs; move it away and run the command again",
}

ADVICE = {"TRANSFORMERS_VERBOSITY": "error"}
"""transformers advises at every start to install torchvision, which nothing here needs."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; a user's mistake ends in one line on stderr and exit code 2."""
    for name, value in (ADVICE | (QUIET if is_launched() else {})).items():
        os.environ.setdefault(name, value)
    with plain_errors():
        run(sys.argv[1:] if arguments is None else list(arguments))


@contextmanager
def plain_errors() -> Iterator[None]:
    """A block whose errors end this process: in one line, except for bugs."""
    try:
        yield
    except UserError as error:
        _stop(str(error))
    except KeyboardInterrupt:
        print("sayso: stopped; run the command again to resume", file=sys.stderr)
        sys.exit(130)
    except ModuleNotFoundError as error:
        _stop(missing_module(error) or _reraise(error))
    except Exception as error:
        lost = ENDED if is_lost(error) else None
        _stop(_disk_trouble(error) or _memory_trouble(error) or lost or _reraise(error))


def _stop(message: str) -> None:
    if may_say(message):
        print(f"sayso: error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    sys.exit(2)


def _reraise(error: Exception) -> str:
    raise error


def _disk_trouble(error: Exception) -> str | None:
    """The line for a full disk or a missing permission, however a library wrapped it."""
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        # of two names, the second is where the first was to go
        name = error.filename2 or error.filename
        where = f"{name}: " if name else ""
        return where + DISK_ERRORS[error.errno]
    # safetensors reports the operating system's error only as text
    for number, advice in DISK_ERRORS.items():
        if f"(os error {number})" in str(error):
            return advice
    return None


def _memory_trouble(error: Exception) -> str | None:
    """The line for want of memory where no option would need less of it."""
    from sayso.base.devices import NO_OPTION_LEFT, OUT_OF_MEMORY, is_out_of_memory

    return f"{OUT_OF_MEMORY}; {NO_OPTION_LEFT}" if is_out_of_memory(error) else None


def run(arguments: list[str]) -> Any:
    """Run one command line and return what its function returns.

    Raises: UserError: for an unknown command or option, or whatever the command refuses.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        return print(overview())
    if arguments[0] == "--version":
        from importlib.metadata import version

        return print(f"sayso {version('sayso')}")
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        raise unknown_name("command", name, COMMANDS)
    return _run_command(name, rest)


def overview() -> str:
    """The text of `sayso --help`, from the table."""
    rows = "\n".join(f"  {name:<10}{command.help}" for name, command in COMMANDS.items())
    return (
        "usage: sayso COMMAND STUDY [options]\n\n"
        "Align text-to-image models on people's say-so.\n\n"
        f"commands, in the order of the loop:\n{rows}\n\n"
        "`sayso COMMAND --help` shows the options of a command.\n"
        "`--dry-run` prints what a command would do; `--config FILE` reads options from an earlier "
        "run's config.json."
    )


def _run_command(name: str, rest: list[str]) -> Any:
    from sayso.cli.options import parse

    command = COMMANDS[name]
    if command.needs and not {"-h", "--help"} & set(rest):
        need(command.needs, name)
    # on a CPU it tells of kernels that it could also use, whatever is done
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    module = importlib.import_module(command.module)
    parsed = parse(name, getattr(module, command.config), command.plugin, rest)
    study = parsed.path if name in FOLDER_COMMANDS else _open(parsed.path)
    extra = (parsed.options,) if command.plugin else ()
    if parsed.dry_run:
        return _dry_run(module, study, parsed.config, *extra)
    function: Callable[..., Any] = getattr(module, command.function)
    return function(study, parsed.config, *extra)


def _open(path: Path) -> Any:
    from sayso.study.study import Study

    return Study.open(path)


def _dry_run(module: Any, study: Any, config: Any, options: Any = None) -> None:
    """Print the resolved options and the sizes that follow; do nothing."""
    resolved = dataclasses.asdict(config)
    extra = ()
    if options is not None:
        resolved |= {"options": dataclasses.asdict(options)}
        extra = (options,)
    sizes = module.plan(study, config, *extra) if hasattr(module, "plan") else {}
    for key, value in {**resolved, **sizes}.items():
        print(f"{key} = {value}")
