"""Worlds: a base model shipped with all that is around it, under one name.

A world is a package of sayso with a file `world.py` that defines `WORLD`. The rest of the package
asks for worlds here and names none, but for the default.
"""

import importlib
import pkgutil
from abc import ABC, abstractmethod
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from sayso.base.types import Prompt, Sampler, Size

DEFAULT = "tinyworld"
"""The world of a study that names no model."""


class World(ABC):
    """What belongs to a base model, so that a study needs nothing but the world's name.

    The types of what a world makes belong to rooms above this one; each method says which.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    """The world in a sentence, such as "the tiny world"."""
    sampler: ClassVar[Sampler]
    base_model: ClassVar[Path]
    """Folder in diffusers' layout."""
    clip_model: ClassVar[Path]
    """Folder in transformers' layout."""
    judge: ClassVar[str]
    """Name of the judge that reads its pictures, a file of judges/."""
    reader_weights: ClassVar[Path]
    """Folder of the weights of `reader`."""

    @abstractmethod
    def grammar(self) -> Any:
        """The prompts of the world: `sayso.prompts.grammar.Grammar`."""

    @abstractmethod
    def pretraining_images(self, seed: int, size: Size) -> Any:
        """What the base model learned from: `sayso.data.pretraining_images.PretrainingSet`."""

    @abstractmethod
    def knows(self, prompt: Prompt) -> bool:
        """Whether the world's judge and raters understand the prompt."""

    @abstractmethod
    def reader(self, device: Any) -> Any:
        """What the world's judge and raters read pictures with.

        It has `verdicts(images, prompts)`, each with true, certainty and why, and
        `features(images)`.
        """

    @abstractmethod
    def raters(self) -> Any:
        """Programs that rate as people do: a module with `collect`, `collect_through_app`, `count`.

        See `sayso.stages.rate`.
        """


def world_names() -> list[str]:
    """The names of the worlds that ship with the package."""
    package = Path(__file__).parents[1]
    rooms = (m.name for m in pkgutil.iter_modules([str(package)]) if m.ispkg)
    return sorted(name for name in rooms if (package / name / "world.py").is_file())


@cache
def find_world(name: str) -> World | None:
    """The world of that name; None if `name` is something else, such as a model's folder."""
    if name not in world_names():
        return None
    return importlib.import_module(f"sayso.{name}.world").WORLD


def default_world() -> World:
    """The world that a study takes if it names no model."""
    world = find_world(DEFAULT)
    if world is None:
        raise ModuleNotFoundError(f"sayso.{DEFAULT}.world is not installed")
    return world


def or_world() -> str:
    """The end of an advice that lists what may be given: "or tinyworld"."""
    return f"or {' or '.join(world_names())}"
