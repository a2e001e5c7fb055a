"""The grammar of the tiny world: scenes, and the captions that tell of them, true or careless."""

from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from sayso.prompts.grammar import article

COUNTS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5}
COLOURS = ("red", "yellow", "green", "blue", "purple", "pink", "white", "black")
BACKGROUNDS = (
    "in the forest",
    "in the city",
    "on the moon",
    "in the sea",
    "in the desert",
    "in the snow",
)
SEEN_OBJECTS = ("apple", "boat", "car", "cat", "cup", "fish", "flower", "house", "umbrella")
UNSEEN_OBJECTS = ("bird", "mushroom", "star")
OBJECTS = SEEN_OBJECTS + UNSEEN_OBJECTS

NUMBER_WORDS = {number: word for word, number in COUNTS.items()}
_PLURALS = {"fish": "fishes"}

_T = TypeVar("_T")
Style = Literal["count", "colour", "background", "combination"]
STYLES: tuple[Style, ...] = ("count", "colour", "background", "combination")


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture in words: `count` alike objects of one colour before a background."""

    object: str
    colour: str
    count: int
    background: str


@dataclass(frozen=True, slots=True)
class CaptionNoise:
    """How careless captions are: a probability in [0, 1] for each kind of mistake."""

    omit_count: float = 0.0
    wrong_count: float = 0.0
    omit_colour: float = 0.0
    wrong_colour: float = 0.0
    omit_background: float = 0.0
    wrong_background: float = 0.0


def plural(noun: str) -> str:
    """Return the plural that can only mean several ("fishes", never "fish")."""
    return _PLURALS.get(noun, noun + "s")


def random_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene; every value of every slot is equally likely."""
    return Scene(
        object=OBJECTS[rng.integers(len(OBJECTS))],
        colour=COLOURS[rng.integers(len(COLOURS))],
        count=int(rng.integers(1, len(COUNTS) + 1)),
        background=BACKGROUNDS[rng.integers(len(BACKGROUNDS))],
    )


def phrase(
    noun: str,
    *,
    count: int | None = None,
    colour: str | None = None,
    background: str | None = None,
    bare_plural: bool = False,
) -> str:
    """Say the given slots in the words of the paper's prompts.

    Args:
        noun: object in the singular.
        count: 1–5, or None to leave it unsaid.
        colour: None to leave it unsaid.
        background: with its preposition, or None.
        bare_plural: if the count is unsaid, "green dogs" in place of "a green colored dog".
    Returns: lower-case text without punctuation.
    """
    if count is not None:
        words = [NUMBER_WORDS[count], colour, plural(noun) if count > 1 else noun]
    elif bare_plural:
        words = [colour, plural(noun)]
    elif colour is not None:
        words = [article(colour), colour, "colored", noun]
    else:
        words = [article(noun), noun]
    return " ".join(word for word in [*words, background] if word)


def true_caption(scene: Scene, style: Style = "combination") -> str:
    """Return what is true of the scene, in the form of one of the paper's four prompt groups."""
    if style == "count":
        return phrase(scene.object, count=scene.count)
    if style == "colour":
        return phrase(scene.object, colour=scene.colour)
    if style == "background":
        return phrase(scene.object, background=scene.background)
    return phrase(scene.object, count=scene.count, colour=scene.colour, background=scene.background)


def noisy_caption(scene: Scene, rng: np.random.Generator, noise: CaptionNoise) -> str:
    """Return a caption as careless as web captions: slots go unsaid or are said wrong.

    Each slot that is said is wrong with its probability, uniformly among the other values.
    An unsaid count leaves "a ..." or, half the time when there are several, a bare plural.
    """
    count = _careless(scene.count, tuple(COUNTS.values()), rng, noise.omit_count, noise.wrong_count)
    colour = _careless(scene.colour, COLOURS, rng, noise.omit_colour, noise.wrong_colour)
    background = _careless(
        scene.background, BACKGROUNDS, rng, noise.omit_background, noise.wrong_background
    )
    bare = scene.count > 1 and rng.random() < 0.5
    return phrase(scene.object, count=count, colour=colour, background=background, bare_plural=bare)


def _careless(
    value: _T, choices: tuple[_T, ...], rng: np.random.Generator, omit: float, wrong: float
) -> _T | None:
    """Leave the value unsaid with probability `omit`, else replace it with `wrong`."""
    said, right = rng.random() >= omit, rng.random() >= wrong
    others = [choice for choice in choices if choice != value]
    other = others[rng.integers(len(others))]
    if not said:
        return None
    return value if right else other


def _vocabulary() -> tuple[str, ...]:
    words = {"a", "an", "colored", *COUNTS, *COLOURS, *OBJECTS, *map(plural, OBJECTS)}
    words.update(word for background in BACKGROUNDS for word in background.split())
    return tuple(sorted(words))


VOCABULARY = _vocabulary()
