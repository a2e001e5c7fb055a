"""Natural images with captions, as the base model learned from: the tiny world's, or a folder's."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sayso.errors import UserError
from sayso.study import Study
from sayso.types import digest
from sayso.user_files import read_json_lines

if TYPE_CHECKING:
    from PIL import Image

    from sayso.tinyworld.scenes import Scene

HELDOUT_SHARE = 0.1
"""Share of a folder's images that is kept for measuring and never trained on."""


class PretrainingSet(ABC):
    """Captioned images in two disjoint parts, each in a fixed order: n + 1 begin with the same n.

    All images are RGB and square, of the size given when the set was opened.
    """

    def train(self, n: int) -> tuple[list[str], list["Image.Image"]]:
        """The first `n` captions and images for training; fewer if there are no more."""
        return self._pairs("train", n)

    def heldout(self, n: int) -> tuple[list[str], list["Image.Image"]]:
        """The first `n` captions and images that training never sees; fewer if no more exist."""
        return self._pairs("heldout", n)

    @abstractmethod
    def heldout_captions(self, n: int) -> list[str]:
        """The captions of `heldout(n)`, without making or reading an image."""

    @abstractmethod
    def _pairs(self, part: str, n: int) -> tuple[list[str], list["Image.Image"]]: ...


@dataclass(frozen=True)
class _TinyWorld(PretrainingSet):
    """Scenes without end, with captions as careless as those of the shipped model's training."""

    seed: int
    image_size_px: int

    def heldout_captions(self, n: int) -> list[str]:
        return [self._caption("heldout", i)[0] for i in range(n)]

    def _pairs(self, part: str, n: int) -> tuple[list[str], list["Image.Image"]]:
        from PIL import Image

        from sayso.tinyworld.render import render

        captions: list[str] = []
        images: list[Image.Image] = []
        for i in range(n):
            caption, scene, rng = self._caption(part, i)
            captions.append(caption)
            images.append(Image.fromarray(render(scene, rng, self.image_size_px)))
        return captions, images

    def _caption(self, part: str, i: int) -> "tuple[str, Scene, np.random.Generator]":
        from sayso.tinyworld.defaults import CAPTION_NOISE
        from sayso.tinyworld.scenes import noisy_caption, random_scene

        rng = np.random.default_rng([self.seed, 11 if part == "train" else 12, i])
        scene = random_scene(rng)
        return noisy_caption(scene, rng, CAPTION_NOISE), scene, rng


@dataclass(frozen=True)
class _Folder(PretrainingSet):
    """An image folder with metadata.jsonl: a line per image with file_name and text."""

    path: Path
    rows: tuple[tuple[str, str], ...]
    image_size_px: int

    def heldout_captions(self, n: int) -> list[str]:
        return [text for _, text in self._part("heldout")[:n]]

    def _part(self, part: str) -> tuple[tuple[str, str], ...]:
        cut = max(1, round(len(self.rows) * HELDOUT_SHARE))
        return self.rows[:cut] if part == "heldout" else self.rows[cut:]

    def _pairs(self, part: str, n: int) -> tuple[list[str], list["Image.Image"]]:
        rows = self._part(part)[:n]
        return [t for _, t in rows], [_square(self.path / f, self.image_size_px) for f, _ in rows]


def open_pretraining(study: Study) -> PretrainingSet:
    """The study's pre-training images: "tinyworld" or a folder with a metadata.jsonl.

    Raises: UserError: if the study has none, or the folder's metadata.jsonl is missing, empty or
        wrong. A missing or damaged image raises when it is read.
    """
    source, size = study.info.pretraining, study.info.sampler.image_size_px
    if source == "tinyworld":
        return _TinyWorld(study.info.seed, size)
    if not source:
        raise UserError(
            f"{study.path} has no pre-training images; make the study with --pretraining FOLDER, "
            "or switch off what needs them"
        )
    return _open_folder(Path(source), size)


def _open_folder(path: Path, size: int) -> _Folder:
    metadata = path / "metadata.jsonl"
    if not metadata.is_file():
        raise UserError(f"{metadata} is missing; write a line {{file_name, text}} for each image")
    rows: dict[str, str] = {}
    for where, row in read_json_lines(metadata):
        name, text = row.get("file_name"), row.get("text")
        if not isinstance(name, str) or not isinstance(text, str) or not name:
            raise UserError(f"{where} needs file_name and text, both strings")
        rows[name] = text
    if len(rows) < 2:
        raise UserError(f"{metadata} names {len(rows)} images; give at least 2")
    # in the order of a hash: which images are held out does not hang on how the file is sorted
    return _Folder(path, tuple(sorted(rows.items(), key=lambda row: digest(row[0]))), size)


def _square(path: Path, size: int) -> "Image.Image":
    """The middle of the picture, `size` × `size`."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            return ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.LANCZOS)
    except FileNotFoundError:
        raise UserError(
            f"pre-training image {path} is missing; restore it or delete its line in metadata.jsonl"
        ) from None
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(
            f"pre-training image {path} is damaged ({error}); restore it or delete its line in "
            "metadata.jsonl"
        ) from None
