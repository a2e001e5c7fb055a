"""Plug-ins by file name: aligners, rewards, families, judges, table formats; yours too."""

import importlib
import importlib.util
import inspect
import pkgutil
import sys
import traceback
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeVar

from sayso.base.errors import UserError, unknown_name
from sayso.base.extras import missing_module

T = TypeVar("T")
Kind = Literal["aligner", "reward", "family", "judge", "export", "import"]
FOLDERS = {
    "aligner": "aligners",
    "reward": "rewards",
    "family": "families",
    "judge": "judges",
    "export": "formats.exports",
    "import": "formats.imports",
}


def plugin_names(kind: Kind) -> list[str]:
    """The names of the plug-ins of one kind that ship with the package: their file names."""
    folder = Path(__file__).parents[1].joinpath(*FOLDERS[kind].split("."))
    return sorted(m.name for m in pkgutil.iter_modules([str(folder)]) if m.name[0] != "_")


def is_plugin(kind: Kind, name: str) -> bool:
    """Whether `name` means a plug-in, shipped or the user's own file, and not a run."""
    return name.endswith(".py") or name in plugin_names(kind)


def load_plugin(kind: Kind, name: str, base: type[T]) -> type[T]:
    """The class of the plug-in `name`, or of the user's own file if `name` ends in ".py".

    Raises: UserError: for an unknown name, a missing file, or a file that cannot be imported or
        does not define exactly one public subclass of `base`.
    """
    module = _own_file(kind, Path(name)) if name.endswith(".py") else _shipped(kind, name)
    found = [c for c in vars(module).values() if _is_plugin(c, base, module)]
    if len(found) != 1:
        raise UserError(
            f"{kind} file {module.__file__} defines {len(found)} public subclasses of "
            f"{base.__name__}; it must define exactly one"
        )
    return found[0]


def refuse_bad_options(kind: Kind, plugin: type) -> None:
    """Refuse a plug-in whose fields cannot be options.

    Raises: UserError: if the class is no dataclass itself, or a field has no default.
    """
    if "__dataclass_fields__" not in vars(plugin) or not is_dataclass(plugin):
        raise UserError(f"{kind} {plugin.__name__} is not a dataclass; write @dataclass above it")
    for field in fields(plugin):
        if field.init and field.default is MISSING and field.default_factory is MISSING:
            raise UserError(
                f"option {field.name} of {kind} {plugin.__name__} has no default; give it one"
            )


def _is_plugin(value: Any, base: type, module: ModuleType) -> bool:
    return (
        inspect.isclass(value)
        and issubclass(value, base)
        and value.__module__ == module.__name__
        and not value.__name__.startswith("_")
    )


def _shipped(kind: Kind, name: str) -> ModuleType:
    if name not in plugin_names(kind):
        raise unknown_name(kind, name, plugin_names(kind))
    return importlib.import_module(f"sayso.{FOLDERS[kind]}.{name}")


def _own_file(kind: Kind, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"sayso_user_{kind}_{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise UserError(f"{kind} file {path} does not exist; give a Python file or a name")
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their own module up by name while the class is being made
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{kind} file {path}{_mistake(error, spec.origin)}") from error
    return module


def _mistake(error: Exception, file: str | None) -> str:
    """What is wrong with one's own file, with the line of the file if that is known."""
    if isinstance(error, SyntaxError) and error.filename == file:
        return f" line {error.lineno}: {error.msg}; correct the file"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == file]
    where = f" line {lines[-1]}" if lines else ""
    missing = isinstance(error, ModuleNotFoundError)
    advice = (missing and missing_module(error)) or "correct the file"
    return f"{where} fails: {type(error).__name__}: {error}; {advice}"
