"""What an importer of others' tables must offer, and how tables are opened and checked."""

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from sayso.base.errors import UserError
from sayso.base.pictures import UnreadablePicture, read_picture
from sayso.base.plugins import load_plugin
from sayso.base.types import (
    Comparison,
    Prompt,
    Question,
    Rating,
    Sample,
    Sampler,
    Size,
    Split,
    digest,
)
from sayso.formats.snapshot import plain_times
from sayso.prompts.grammar import make_prompt
from sayso.study.study import Study

BATCH = 32
"""Table rows in memory; each may hold two images."""

Kind = Literal["text", "number", "flag", "time", "image", "any"]


class Column(NamedTuple):
    """What a column must hold, and whether it must be there."""

    kind: Kind
    required: bool = False


@dataclass(frozen=True, slots=True)
class Picture:
    """An image as the table has it, and the record it will have."""

    sample: Sample
    content: bytes


@dataclass(frozen=True, slots=True)
class Entry:
    """What one row of a table becomes.

    `left_out` says why it becomes nothing, `damaged` what is wrong with it and where it stands.
    """

    prompts: tuple[Prompt, ...] = ()
    pictures: tuple[Picture, ...] = ()
    ratings: tuple[Rating, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    left_out: str = ""
    damaged: str = ""


class RowError(UserError):
    """A row that cannot be taken in; those of a table are named together, or left out."""


class TableImport(ABC):
    """One layout of others' tables. A plug-in is one file of `imports/` with one subclass.

    `columns` names all columns that the layout knows; a table with others is refused, for they
    would be lost without a word.
    """

    columns: ClassVar[Mapping[str, Column]]
    derives_ratings: ClassVar[bool] = False
    """Whether it has comparisons of two images only, so that ratings are derived from them."""

    def entries(self, path: Path, context: "Context") -> Iterator[Entry]:
        """What the rows of the table become; always the same for the same table.

        Raises: UserError: for an unknown or missing column or a wrong type.
        """
        context.begin()
        for file in checked_files(path, self.columns):
            context.enter(file)
            for where, row in file_rows(file):
                try:
                    yield self.entry(where, row, context)
                except RowError as error:
                    yield Entry(damaged=str(error))

    @abstractmethod
    def entry(self, where: str, row: Mapping[str, Any], context: "Context") -> Entry:
        """What one row becomes; `where` names it for error messages.

        Raises: RowError: for a wrong value.
        """


def load_import(name: str) -> type[TableImport]:
    """The class of the importer `name`, or of the user's own file.

    Raises: UserError: for an unknown name.
    """
    return load_plugin("import", name, TableImport)


class Context:
    """What importers need to know of the study and the options; makes prompts and records.

    Args:
        splits: the split of the prompts of each table; of tables not among them it is train.
        readable: says whether a prompt may be taken in.
    Attributes:
        kept: texts that the study has in another split than the table's name says; it stands.
        torn: texts that tables of two splits have, and the tables.
    """

    def __init__(
        self,
        study: Study,
        *,
        splits: Mapping[Path, Split] | None = None,
        question: Question = "alignment",
        simulated: bool = False,
        rating_column: str = "",
        readable: Callable[[str], bool] = lambda _: True,
    ) -> None:
        self.study = study
        self.splits = splits or {}
        self.split: Split = "train"
        self.file = Path()
        self.question: Question = question
        self.simulated, self.rating_column = simulated, rating_column
        self.readable = readable
        known = study.prompts() if study.has_prompts else []
        self._prompts = {p.text: p for p in known if p.split != "fidelity"}
        self._own = frozenset(self._prompts)
        self._first_in: dict[str, Path] = {}
        self.kept: set[str] = set()
        self.torn: dict[str, tuple[Path, Path]] = {}
        self._times: Counter[tuple[str, ...]] = Counter()
        # of images that were decoded once, for a table is read twice and names an image often
        self._sizes: dict[str, Size] = {}

    def begin(self) -> None:
        """Read from the start."""
        self._times.clear()

    def enter(self, file: Path) -> None:
        """Go on with the rows of a table: its prompts have its split."""
        self.file, self.split = file, self.splits.get(file, "train")

    def times(self, *what: str) -> int:
        """How often this was asked since the start, now included: 1 at the first time."""
        self._times[what] += 1
        return self._times[what]

    def prompt(self, where: str, text: object, category: str) -> Prompt:
        """The study's own prompt of that text if it has one, else a new one of the table's split.

        Raises: RowError: if there is no text.
        """
        if not isinstance(text, str) or not text.strip():
            raise RowError(f"{where} has no prompt")
        if text not in self._prompts:
            self._prompts[text] = make_prompt(text, self.split, category)
            self._first_in[text] = self.file
        if self._prompts[text].split != self.split:
            if text in self._own:
                self.kept.add(text)
            else:
                self.torn.setdefault(text, (self._first_in[text], self.file))
        return self._prompts[text]

    def picture(self, where: str, content: object, prompt: Prompt, model: str) -> Picture:
        """The image and its record; the id is a hash of prompt, model and the file's content.

        Raises: RowError: if the content is no whole picture.
        """
        data = content.get("bytes") if isinstance(content, dict) else content
        if not data or not isinstance(data, bytes):
            raise RowError(f"{where} has no image (links and paths alone cannot be imported)")
        content_hash = hashlib.sha256(data).hexdigest()
        if content_hash not in self._sizes:
            self._sizes[content_hash] = Size(*decode(where, data).size)
        name = f"imported/{model.strip().replace('@', ' at ') or 'unknown'}"
        own_id = digest(["imported", prompt.id, name, content_hash])
        # how it was drawn is not known, only its size
        sampler = Sampler(0, 0.0, 0.0, self._sizes[content_hash], "")
        path = self.study.image_path(own_id)
        return Picture(Sample(own_id, prompt.id, name, 0, sampler, path, ""), data)


def decode(where: str, content: bytes) -> Image.Image:
    """The picture, decoded whole, RGB. Raises: RowError: if it is damaged or of an odd kind."""
    try:
        return read_picture(content)
    except UnreadablePicture as reason:
        raise RowError(f"{where} has an image that cannot be read: {reason}") from None


# tables


def table_files(path: Path) -> list[Path]:
    """The Parquet files at `path`: itself, or all below a folder, by name.

    Raises: UserError: if there are none.
    """
    found = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    if not found or not found[0].is_file():
        raise UserError(f"{path} is neither a Parquet file nor a folder of them; give one")
    return found


def read_rows(path: Path, columns: Mapping[str, Column]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of the table and where each stands, times as whole nanoseconds.

    All files' columns are checked before the first row comes.
    """
    for file in checked_files(path, columns):
        yield from file_rows(file)


def checked_files(path: Path, columns: Mapping[str, Column]) -> list[Path]:
    """The Parquet files at `path`, after the columns of all of them were checked."""
    tables = table_files(path)
    for file in tables:
        with _open(file) as table:
            check_schema(file, table.schema_arrow, columns)
    return tables


def file_rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of one table, and where each stands."""
    number = 0
    with _open(file) as table:
        try:
            for batch in table.iter_batches(batch_size=BATCH):
                for row in plain_times(batch).to_pylist():
                    number += 1
                    yield f"{file} row {number}", row
        except (pa.ArrowException, OSError) as error:
            raise _damaged(file, error) from None


def _open(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(file, error) from None


def _damaged(file: Path, error: Exception) -> UserError:
    reason = str(error).partition("\n")[0]
    return UserError(f"{file} is damaged or not a Parquet file ({reason}); get it again")


def check_schema(file: Path, schema: pa.Schema, columns: Mapping[str, Column]) -> None:
    """Refuse unknown columns, missing ones and wrong types, each by name."""
    unknown = [name for name in schema.names if name not in columns]
    if unknown:
        raise UserError(
            f"{file} has unknown column {unknown[0]!r}; known are {', '.join(columns)}: delete it "
            "or choose another --format"
        )
    for name, column in columns.items():
        if name in schema.names:
            _check_type(file, schema.field(name), column.kind)
        elif column.required:
            raise UserError(f"{file} has no column {name!r}; choose another --format or add it")


def _check_type(file: Path, field: pa.Field, kind: Kind) -> None:
    if not any(check(field.type) for check in _TYPES[kind]):
        raise UserError(f"{file} has column {field.name!r} of type {field.type}; give {kind}")


def _is_words(kind: pa.DataType) -> bool:
    return pa.types.is_dictionary(kind) and pa.types.is_string(kind.value_type)


def _is_image(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0


_TYPES: Mapping[Kind, Sequence[Callable[[pa.DataType], bool]]] = {
    "text": (
        pa.types.is_string,
        pa.types.is_large_string,
        _is_words,
        pa.types.is_null,
    ),
    "number": (pa.types.is_integer, pa.types.is_floating, pa.types.is_null),
    "flag": (pa.types.is_boolean, pa.types.is_null),
    "time": (pa.types.is_timestamp, pa.types.is_null),
    "image": (pa.types.is_binary, pa.types.is_large_binary, _is_image),
    "any": (lambda _: True,),
}
