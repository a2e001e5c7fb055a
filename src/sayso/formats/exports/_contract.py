"""What an export format must offer, and how one is found by name."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from sayso.base.extras import need
from sayso.base.plugins import load_plugin

if TYPE_CHECKING:
    from sayso.formats.export_data import ExportData


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
