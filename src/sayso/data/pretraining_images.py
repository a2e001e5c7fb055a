"""Pre-training images with captions, as the base model learned from: a world's, or a folder's."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sayso.base import files
from sayso.base.errors import UserError
from sayso.base.progress import console
from sayso.base.types import Size, digest
from sayso.base.user_files import read_json_lines
from sayso.base.worlds import find_world
from sayso.study.info import HeldOut
from sayso.study.study import Study

if TYPE_CHECKING:
    from PIL import Image

Part = Literal["train", "heldout"]

HELDOUT_SHARE = 0.1
"""Share of a folder's images, on average, that is kept for measuring and never trained on."""


class PretrainingSet(ABC):
    """Captioned images in two disjoint parts, each in a fixed order: n + 1 begin with the same n.

    All images are RGB, of the size given when the set was opened. They are read or made
    one by one, as they are asked for.
    """

    def train_captions(self, n: int) -> list[str]:
        """The first `n` captions for training, fewer if there are no more; reads no image."""
        return self._captions("train", n)

    @abstractmethod
    def train_count(self, n: int) -> int:
        """How many captions `train_captions(n)` has, without making them."""

    def train_images(self, start: int, stop: int) -> Iterator["Image.Image"]:
        """The images of the training captions from number `start` up to `stop`."""
        return self._images("train", start, stop)

    def heldout_captions(self, n: int) -> list[str]:
        """The first `n` captions that training never sees, fewer if there are no more."""
        return self._captions("heldout", n)

    def heldout_images(self, n: int) -> Iterator["Image.Image"]:
        """The images of `heldout_captions(n)`."""
        return self._images("heldout", 0, n)

    @abstractmethod
    def train_identity(self, n: int) -> str:
        """A hash of all that decides the first `n` captions and images, without making any."""

    def earlier_identity(self, n: int) -> str:
        """The hash that versions of before computed in its place."""
        return self.train_identity(n)

    @abstractmethod
    def images_identity(self, start: int, stop: int) -> str:
        """A hash of the files behind `train_images(start, stop)`, without decoding an image."""

    @abstractmethod
    def _captions(self, part: Part, n: int) -> list[str]: ...

    @abstractmethod
    def _images(self, part: Part, start: int, stop: int) -> Iterator["Image.Image"]: ...


@dataclass(frozen=True)
class _Folder(PretrainingSet):
    """An image folder with metadata.jsonl: a line per caption with file_name and text.

    `rows` has pairs of file name and caption, the first captions of all pictures before the second
    ones. A held-out picture counts once, with its first caption.
    """

    path: Path
    rows: tuple[tuple[str, str], ...]
    heldout_names: frozenset[str]
    size: Size

    def train_identity(self, n: int) -> str:
        rows = [[_file_hash(self.path / name), text] for name, text in self._part("train")[:n]]
        return digest([self.size.recorded, *rows])

    def train_count(self, n: int) -> int:
        return min(n, len(self._part("train")))

    def images_identity(self, start: int, stop: int) -> str:
        names = [name for name, _ in self._part("train")[start:stop]]
        return digest([self.size.recorded, *(_file_hash(self.path / name) for name in names)])

    def _captions(self, part: Part, n: int) -> list[str]:
        return [text for _, text in self._part(part)[:n]]

    def _images(self, part: Part, start: int, stop: int) -> Iterator["Image.Image"]:
        for name, _ in self._part(part)[start:stop]:
            yield _fitted(self.path / name, self.size)

    def _part(self, part: Part) -> list[tuple[str, str]]:
        return self._parts[part]

    @cached_property
    def _parts(self) -> dict[Part, list[tuple[str, str]]]:
        first = dict(reversed(self.rows))
        return {
            "train": [row for row in self.rows if row[0] not in self.heldout_names],
            "heldout": [(n, first[n]) for n in sorted(self.heldout_names, key=digest)],
        }


def open_pretraining(study: Study, size: Size | None = None) -> PretrainingSet:
    """The study's pre-training images: a world's, or a folder with a metadata.jsonl.

    Args:
        size: what they are brought to; None = the size of the study's images.
    Raises: UserError: if the study has none, or the folder's metadata.jsonl is missing, empty or
        wrong. A missing or damaged image raises when it is read.
    """
    source, size = study.info.pretraining, size or study.info.sampler.image_size
    if world := find_world(source):
        return world.pretraining_images(study.info.seed, size)
    if not source:
        raise UserError(
            f"{study.path} has no pre-training images; make the study with --pretraining FOLDER, "
            "or switch off what needs them"
        )
    texts = [p.text for p in study.prompts("fidelity")] if study.has_prompts else []
    return _open_folder(Path(source), size, texts, study.info.held_out)


def _open_folder(path: Path, size: Size, fidelity: list[str], rule: HeldOut) -> _Folder:
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
        stat = path.stat()
        return _hash_of(path, stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns)
    except OSError as error:
        raise UserError(
            f"pre-training image {path} cannot be read ({error.strerror}); restore it or delete "
            "its line in metadata.jsonl"
        ) from None


@cache
def _hash_of(path: Path, *_state: int) -> str:
    """The SHA-256 of a file in this state: a process asks for it several times."""
    return files.sha256(path)


def _fitted(path: Path, size: Size) -> "Image.Image":
    """The middle of the picture, as much of it as the size's shape holds."""
    from PIL import Image, ImageOps

    from sayso.base.pictures import UnreadablePicture, read_picture

    try:
        return ImageOps.fit(read_picture(path), size, Image.Resampling.LANCZOS)
    except FileNotFoundError:
        raise UserError(
            f"pre-training image {path} is missing; restore it or delete its line in metadata.jsonl"
        ) from None
    except UnreadablePicture as reason:
        raise UserError(
            f"pre-training image {path} cannot be read: {reason}; restore it or delete its line in "
            "metadata.jsonl"
        ) from None
