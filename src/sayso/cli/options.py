"""Flags from dataclasses: field default → `--config FILE` → flags, through tyro."""

import argparse
import contextlib
import dataclasses
import io
import typing
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import docstring_parser
import tyro

from sayso.base.errors import UserError, check_counts, unknown_name
from sayso.base.records import check_types
from sayso.base.user_files import read_json
from sayso.study.identity import in_todays_words


class Parsed(NamedTuple):
    """A command line taken apart: the study's path, the stage's config, the plug-in's options."""

    path: Path
    config: Any
    options: Any
    dry_run: bool


def parse(name: str, config: type, plugin: str, arguments: list[str]) -> Parsed:
    """Parse the arguments after the command's name.

    Args:
        name: the command, for help.
        config: the stage's config dataclass.
        plugin: the config field that names a plug-in whose own fields become flags, or "".
        arguments: what follows the command's name.
    Raises: UserError: for an unknown option (the nearest is named) or a bad --config file.
    """
    early, arguments = _early_flags(plugin, arguments)
    saved = in_todays_words(read_json(early.config)) if early.config else {}
    own = saved.pop("options", {})
    parts = {"config": _default(config, saved, early.config)}
    titles = {"config": name}
    if plugin:
        chosen = early.plugin or getattr(parts["config"], plugin)
        if kind := _plugin_class(plugin, chosen):
            _refuse_same_names(plugin, kind, config)
            parts["options"] = _default(kind, own, f"options in {early.config}")
            titles["options"] = Path(chosen).stem
    arguments_class = _arguments_class(name, parts, titles)
    found, unknown = _tyro(arguments_class, name, arguments)
    _refuse(unknown, parts)
    read = {key: _fields_of(getattr(found, key), type(part)) for key, part in parts.items()}
    for part in read.values():
        check_counts(part)
    return Parsed(found.study, read["config"], read.get("options"), found.dry_run)


def _tyro(arguments_class: type, name: str, arguments: list[str]) -> tuple[Any, list[str]]:
    """tyro's parse, its boxed complaints turned into one line."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                arguments_class,
                args=arguments,
                prog=f"sayso {name}",
                description="--config FILE reads options from a file, such as a run's config.json.",
                return_unknown_args=True,
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        lines = [line.strip("│ ") for line in complaint.getvalue().splitlines()]
        said = " ".join(line for line in lines if line and line[0] not in "╭╰─")
        raise UserError(said.split("Argument helptext")[0]) from None


def _early_flags(plugin: str, arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """What must be known before the flags can be: the config file and the plug-in.

    Raises: UserError: for one of them without a value.
    """
    early, peek = (
        argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
        for _ in range(2)
    )
    early.add_argument("--config", type=Path)
    peek.add_argument(f"--{plugin or 'plugin'}", dest="plugin")
    try:
        found, rest = early.parse_known_args(arguments)
        found.plugin = peek.parse_known_args(rest)[0].plugin if plugin else None
    except argparse.ArgumentError as error:
        what = "a file" if error.argument_name == "--config" else "a name or a .py file"
        raise UserError(f"{error.argument_name} needs {what}") from None
    return found, rest


def _default(kind: type, saved: Any, where: object) -> Any:
    """An object of `kind` with the values of a config file."""
    if not isinstance(saved, dict):
        raise UserError(f"{where} is not a JSON object; write {{name: value, …}}")
    known = {f.name for f in dataclasses.fields(kind)}
    for field in saved.keys() - known:
        raise unknown_name("option in the config file", field, known)
    check_types(kind, saved, where)
    return kind(**saved)


def _plugin_class(plugin: str, name: str) -> type | None:
    """The dataclass behind `--aligner`, `--reward` or `--judge`; its fields are its options.

    None for a judge that the study decides on, or none at all.
    """
    if plugin == "aligner":
        from sayso.aligners import load_aligner

        return load_aligner(name)
    if plugin == "reward":
        from sayso.rewards import load_reward_class

        return load_reward_class(name)
    from sayso.judges import load_judge

    return None if name in ("auto", "none") else load_judge(name)


def _refuse_same_names(plugin: str, kind: type, config: type) -> None:
    """Refuse a plug-in with an option that is called as one of the command's."""
    own, others = ({field.name for field in dataclasses.fields(part)} for part in (kind, config))
    for name in sorted(own & (others | {"study", "dry_run", "config"})):
        raise UserError(
            f"{plugin} {kind.__name__} has an option {name}, but the command has one too; "
            f"rename it, for example to {plugin}_{name}"
        )


def _arguments_class(name: str, parts: dict[str, Any], titles: dict[str, str]) -> type:
    """One dataclass of all flags: the folder, --dry-run, and the parts without prefix.

    `titles` name the parts' boxes in the help: "align options", "rwr options".
    """
    about = f"the {'league' if name == 'league' else 'study'}'s folder"
    flat: list[Any] = [
        ("study", Annotated[Path, tyro.conf.Positional, tyro.conf.arg(help=about)]),
    ]
    flat += [
        (
            key,
            Annotated[type(flags), tyro.conf.OmitArgPrefixes, _titled(titles[key], flags)],
            dataclasses.field(default_factory=lambda v=flags: v),
        )
        for key, flags in ((key, _with_help(value)) for key, value in parts.items())
    ]
    dry = Annotated[bool, *_shown("print what the command would do, and stop", default=False)]
    flat.append(("dry_run", dry, dataclasses.field(default=False)))
    return dataclasses.make_dataclass(f"{name.capitalize()}Arguments", flat, frozen=True)


def _titled(title: str, part: Any) -> Any:
    """The box of a part: its title, and what the class says of itself.

    tyro would find that text too, but reads the source for it anew each time.
    """
    return tyro.conf.arg(name=title, help=docstring_parser.parse(part.__doc__).description or "")


def _with_help(part: Any) -> Any:
    """The part as an object of a subclass whose fields carry their help for a terminal.

    tyro would keep the line breaks of the source and show defaults that mean nothing, such as ''.
    """
    kind = type(part)
    hints = typing.get_type_hints(kind, include_extras=True)
    told = _field_docs(kind)
    fields = []
    for field in dataclasses.fields(kind):
        value = getattr(part, field.name)
        shown = Annotated[hints[field.name], *_shown(told.get(field.name), value)]
        fields.append((field.name, shown, dataclasses.field(default_factory=lambda v=value: v)))
    frozen = kind.__dataclass_params__.frozen
    flags = dataclasses.make_dataclass(kind.__name__, fields, bases=(kind,), frozen=frozen)
    flags.__doc__ = kind.__doc__
    return flags()


@cache
def _field_docs(kind: type) -> dict[str, str]:
    """What the source says under each field, on one line."""
    return {
        doc.arg_name: " ".join((doc.description or "").split())
        for base in reversed(kind.__mro__[:-1])
        for doc in docstring_parser.parse_from_object(base).params
    }


def _shown(text: str | None, default: Any) -> tuple[Any, ...]:
    """How tyro shows one field; a switch that is on gets two flags, --x and --no-x."""
    silent = default is None or default is False or default == ""
    pairs = (tyro.conf.FlagCreatePairsOff,) if default is False else ()
    return (tyro.conf.arg(help=text, help_behavior_hint="" if silent else None), *pairs)


def _fields_of(part: Any, kind: type) -> Any:
    """An object of `kind` with the part's values."""
    return kind(**{field.name: getattr(part, field.name) for field in dataclasses.fields(kind)})


def _refuse(unknown: list[str], parts: dict[str, Any]) -> None:
    flags = [
        f"--{field.name.replace('_', '-')}"
        for part in parts.values()
        for field in dataclasses.fields(part)
    ]
    for argument in unknown:
        if argument.startswith("-"):
            raise unknown_name("option", argument.split("=")[0], [*flags, "--config", "--dry-run"])
        raise UserError(f"unexpected argument {argument!r}; options start with --, see --help")
