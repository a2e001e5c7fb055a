"""What an export format must offer, what it may ask for, and how one is found by name."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from sayso.base.errors import UserError
from sayso.base.extras import need
from sayso.base.plugins import load_plugin
from sayso.base.types import Question

if TYPE_CHECKING:
    from sayso.formats.export_data import ExportData


@dataclass(frozen=True)
class ExportOptions:
    """What goes into a table; a format reads those that concern it."""

    question: Question = "alignment"
    """Which question's votes become labels and pairs."""
    pairs: Literal["auto", "comparisons", "ratings"] = "auto"
    """Formats of pairs: where they come from. comparisons: votes on two single images; ratings:
    good over bad of the same prompt, by the majority of the raters; auto: comparisons if there are
    any, else ratings."""
    pairs_per_prompt: int = 0
    """Pairs from ratings: at most this many of a prompt, drawn by a hash; 0 = all."""
    keep: Literal["all", "good"] = "all"
    """imagefolder and webdataset: all rated images, or only those that most raters call good."""
    image_format: Literal["png", "jpg"] = "png"
    """Images as they are (png), or encoded anew as JPEG of quality 95, which loses detail."""

    def check(self) -> None:
        """Raises: UserError: naming the first option that is out of range."""
        if self.pairs_per_prompt < 0:
            raise UserError(
                f"pairs_per_prompt {self.pairs_per_prompt} is too small; give 0 or more"
            )


class ExportFormat(ABC):
    """One layout that other programs read. A plug-in is one file of `exports/` with one subclass.

    `summary` and `columns` (name → meaning) go into the dataset card; `configs` is the part of its
    header by which `datasets.load_dataset(FOLDER)` finds the tables: a configuration's name →
    split → file pattern.
    """

    summary: ClassVar[str]
    columns: ClassVar[Mapping[str, str]]
    configs: ClassVar[Mapping[str, Mapping[str, str]]]

    @abstractmethod
    def write(self, data: "ExportData", folder: Path) -> Mapping[str, int]:
        """Write all files of the format into the empty folder `folder`.

        Returns: rows written per split or table, for the manifest.
        Raises: UserError: if there is nothing to write, or an image is missing or damaged.
        """


def load_format(name: str) -> type[ExportFormat]:
    """The class of the export format `name`, or of the user's own file.

    Raises: UserError: for an unknown name.
    """
    return load_plugin("export", name, ExportFormat)


def need_pyarrow() -> None:
    """Raises: UserError: if the package that reads and writes tables is missing."""
    need("export", "export")
