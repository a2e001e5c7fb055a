"""Natural images with captions, as the base model learned from: a world's, or a folder's."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sayso.base import files
from sayso.base.errors import UserError
from sayso.base.progress import console
from sayso.base.types import digest
from sayso.base.user_files import read_json_lines
from sayso.base.worlds import find_world
from sayso.study.info import HeldOut
from sayso.study.study import Study

if TYPE_CHECKING:
    from PIL import Image

HELDOUT_SHARE = 0.1
"""Share of a folder's images, on average, that is kept for measuring and never trained on."""


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
    def train_identity(self, n: int) -> str:
        """A hash of all that decides `train(n)`, without drawing or decoding an image."""

    def earlier_identity(self, n: int) -> str:
        """The hash that versions of before computed in its place."""
        return self.train_identity(n)

    @abstractmethod
    def _pairs(self, part: str, n: int) -> tuple[list[str], list["Image.Image"]]: ...


@dataclass(frozen=True)
class _Folder(PretrainingSet):
    """An image folder with metadata.jsonl: a line per caption with file_name and text.

    `rows` has pairs of file name and caption, the first captions of all pictures before the second
    ones. A held-out picture counts once, with its first caption.
    """

    path: Path
    rows: tuple[tuple[str, str], ...]
    heldout_names: frozenset[str]
    image_size_px: int

    def heldout_captions(self, n: int) -> list[str]:
        return [text for _, text in self._part("heldout")[:n]]

    def train_identity(self, n: int) -> str:
        rows = [[_file_hash(self.path / name), text] for name, text in self._part("train")[:n]]
        return digest([self.image_size_px, *rows])

    def _part(self, part: str) -> list[tuple[str, str]]:
        if part == "train":
            return [row for row in self.rows if row[0] not in self.heldout_names]
        first = dict(reversed(self.rows))
        return [(n, first[n]) for n in sorted(self.heldout_names, key=digest)]

    def _pairs(self, part: str, n: int) -> tuple[list[str], list["Image.Image"]]:
        rows = self._part(part)[:n]
        return [t for _, t in rows], [_square(self.path / f, self.image_size_px) for f, _ in rows]


def open_pretraining(study: Study, image_size_px: int = 0) -> PretrainingSet:
    """The study's pre-training images: a world's, or a folder with a metadata.jsonl.

    Args:
        image_size_px: width and height that they are brought to; 0 = those of the study.
    Raises: UserError: if the study has none, or the folder's metadata.jsonl is missing, empty or
        wrong. A missing or damaged image raises when it is read.
    """
    source, size = study.info.pretraining, image_size_px or study.info.sampler.image_size_px
    if world := find_world(source):
        return world.pretraining_images(study.info.seed, size)
    if not source:
        raise UserError(
            f"{study.path} has no pre-training images; make the study with --pretraining FOLDER, "
            "or switch off what needs them"
        )
    texts = [p.text for p in study.prompts("fidelity")] if study.has_prompts else []
    return _open_folder(Path(source), size, texts, study.info.held_out)


def _open_folder(path: Path, size: int, fidelity: list[str], rule: HeldOut) -> _Folder:
    rows = _read_rows(path / "metadata.jsonl")
    by_name = sorted({name for name, _ in rows}, key=digest)
    cut = max(1, round(len(by_name) * HELDOUT_SHARE))
    found = _Folder(path, rows, frozenset(filter(is_held_out, by_name)), size)
    earlier = _Folder(path, rows, frozenset(by_name[:cut]), size)
    # one begins with the other, so both may have the captions: the study's own rule comes first
    for folder in (found,) if rule == "by name" else (earlier, found):
        if folder.heldout_captions(len(fidelity)) == fidelity:
            return folder
    console.print(
        f"{path / 'metadata.jsonl'} has changed since the study's fidelity prompts were made: they "
        "are measured against the pictures held out now"
    )
    return found


def is_held_out(name: str) -> bool:
    """Whether a picture is kept for measuring: a hash of its own name says so, nothing else."""
    return int(digest(name), 16) < HELDOUT_SHARE * 16**16


def _read_rows(metadata: Path) -> tuple[tuple[str, str], ...]:
    """File names and captions, by the number of the caption, then by a hash of the name."""
    if not metadata.is_file():
        raise UserError(f"{metadata} is missing; write a line {{file_name, text}} for each image")
    captions: dict[str, list[str]] = {}
    for where, row in read_json_lines(metadata):
        name, text = row.get("file_name"), row.get("text")
        if not isinstance(name, str) or not isinstance(text, str) or not name:
            raise UserError(f"{where} needs file_name and text, both strings")
        captions.setdefault(name, []).append(text)
    if len(captions) < 2:
        raise UserError(f"{metadata} names {len(captions)} images; give at least 2")
    # hashes, so that nothing hangs on how the file is sorted
    ordered = [
        (k, digest(name), name, text)
        for name, texts in captions.items()
        for k, text in enumerate(sorted(dict.fromkeys(texts), key=digest))
    ]
    return tuple((name, text) for _, _, name, text in sorted(ordered))


def _file_hash(path: Path) -> str:
    try:
        return files.sha256(path)
    except OSError as error:
        raise UserError(
            f"pre-training image {path} cannot be read ({error.strerror}); restore it or delete "
            "its line in metadata.jsonl"
        ) from None


def _square(path: Path, size: int) -> "Image.Image":
    """The middle of the picture, `size` × `size`."""
    from PIL import Image, ImageOps

    from sayso.base.pictures import UnreadablePicture, read_picture

    try:
        return ImageOps.fit(read_picture(path), (size, size), Image.Resampling.LANCZOS)
    except FileNotFoundError:
        raise UserError(
            f"pre-training image {path} is missing; restore it or delete its line in metadata.jsonl"
        ) from None
    except UnreadablePicture as reason:
        raise UserError(
            f"pre-training image {path} cannot be read: {reason}; restore it or delete its line in "
            "metadata.jsonl"
        ) from None
