"""Pictures of the tiny world with captions, as its base model learned from."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from sayso.base.hashes import file_digest
from sayso.base.types import digest
from sayso.data.pretraining_images import Part, PretrainingSet, Ranges
from sayso.tinyworld.defaults import CAPTION_NOISE
from sayso.tinyworld.render import render
from sayso.tinyworld.scenes import Scene, noisy_caption, random_scene

RENDERER = ("defaults", "drawing", "render", "scenery", "scenes")
"""The modules of the tiny world that draw a scene and word its caption."""


def drawn_by() -> str:
    """A hash of what draws the tiny world's scenes and words their captions."""
    folder = Path(__file__).parent
    sources = [file_digest(folder / f"{name}.py") for name in RENDERER]
    return digest([*sources, np.__version__, PIL.__version__])


@dataclass(frozen=True)
class Scenes(PretrainingSet):
    """Scenes without end, with captions as careless as those of the shipped model's training."""

    seed: int
    image_size_px: int

    def train_count(self, n: int) -> int:
        return n

    def train_identity(self, n: int) -> str:
        return digest([self.earlier_identity(n), drawn_by()])

    def earlier_identity(self, n: int) -> str:
        return digest(["tinyworld", self.seed, self.image_size_px, n])

    def images_identity(self, start: int, stop: int) -> str:
        return digest([self._drawn_by, self.seed, self.image_size_px, start, stop])

    @cached_property
    def _drawn_by(self) -> str:
        return drawn_by()

    def _captions(self, part: Part, n: int) -> list[str]:
        return [self._caption(part, i)[0] for i in range(n)]

    def _images(self, part: Part, ranges: Ranges, workers: int) -> Iterator[Image.Image]:  # noqa: ARG002 - they are drawn here
        for i in chain.from_iterable(range(*pair) for pair in ranges):
            _, scene, rng = self._caption(part, i)
            yield Image.fromarray(render(scene, rng, self.image_size_px))

    def _caption(self, part: Part, i: int) -> tuple[str, Scene, np.random.Generator]:
        rng = np.random.default_rng([self.seed, 11 if part == "train" else 12, i])
        scene = random_scene(rng)
        return noisy_caption(scene, rng, CAPTION_NOISE), scene, rng
