"""What the small install lacks: said in one line, before a command writes anything."""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from sayso.base.errors import UserError

EXTRAS = {
    "train": (
        "torch", "diffusers", "transformers", "accelerate", "peft", "safetensors", "scipy",
        "jaxtyping",
    ),
    "export": ("pyarrow",),
    "data": ("datasets", "pyarrow", "webdataset"),
    "quantised": ("bitsandbytes",),
    "trackers": ("tensorboard",),
    "league": ("matplotlib",),
}  # fmt: skip
"""Optional parts of the package, and the modules that each brings."""


def need(extra: str, command: str) -> None:
    """Refuse a command whose modules are not installed.

    Raises: UserError: naming them, and how to install them.
    """
    missing = [name for name in EXTRAS[extra] if find_spec(name) is None]
    if missing:
        raise UserError(f"sayso {command} needs {', '.join(missing)}; {install(extra)}")


def need_tracker(name: str) -> None:
    """Refuse a tracker whose package is not installed.

    Args:
        name: of the tracker and of its package.
    Raises: UserError: naming it, and how to install it.
    """
    if find_spec(name) is None:
        bundled = name in EXTRAS["trackers"]
        how = install("trackers") if bundled else f"install it with: pip install {name}"
        raise UserError(f"tracker {name} needs {name}; {how}")


def missing_module(error: ModuleNotFoundError) -> str | None:
    """The line for a module of an extra that is not installed; None for any other."""
    name = (error.name or "").partition(".")[0]
    for extra, modules in EXTRAS.items():
        if name in modules:
            return f"this needs {name}; {install(extra)}"
    return None


def install(extra: str) -> str:
    """What to do to have an optional part."""
    return f'install it with: pip install "sayso[{extra}]"'


def bitsandbytes() -> Any:
    """The library of the extra `quantised`.

    Raises: ModuleNotFoundError: if it is not installed.
    """
    return import_module("bitsandbytes")
