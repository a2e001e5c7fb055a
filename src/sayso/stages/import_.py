"""Stage `import`: take images, preferences and ratings of others' tables into a study."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional

from sayso.base import files
from sayso.base.errors import UserError
from sayso.base.extras import need
from sayso.base.progress import console, progress
from sayso.base.types import Prompt, Question
from sayso.formats.import_tally import Tally, damaged_rows, torn_prompts
from sayso.formats.table_splits import file_splits
from sayso.study.run import Run
from sayso.study.study import Study

if TYPE_CHECKING:
    from sayso.formats.imports import Context, Entry, TableImport

BATCH = 500
"""Table rows and votes taken in at once."""
BATCH_BYTES = 32 * 2**20
"""Bytes of images taken in at once."""
DECODED = 16
"""Decoded pictures in memory."""


@dataclass(frozen=True)
class ImportConfig:
    """What to import. docs/exports.md says what becomes of each column."""

    path: Annotated[str, Positional] = ""
    """The table: a Parquet file, a folder of Parquet files, or a folder written by sayso export."""
    format: str = "pickapic"
    """The table's format: pickapic, imagerewarddb, sayso, or your own, such as ./mine.py."""
    name: str = ""
    """Name of the run, runs/import-NAME; default: the format and the table's name."""
    split: Literal["train", "seen", "unseen"] | None = None
    """Split for prompts that the study does not have yet; rewards train on train only. Default: the
    split that file and folder names give (train; test and validation become seen, which are test
    prompts), or train if they give none (sayso: the table's own)."""
    question: Question = "alignment"
    """pickapic: the question that its preferences are about; fit uses alignment."""
    rating_column: Literal["image_text_alignment_rating", "overall_rating"] = (
        "image_text_alignment_rating"
    )
    """imagerewarddb: the column that becomes the alignment ratings."""
    raters: Literal["people", "simulated"] = "people"
    """Who voted (sayso: the table's own)."""
    comparisons_only: bool = False
    """pickapic: do not derive a good or bad rating of each image from the comparisons; fit needs
    ratings."""
    long_prompts: Literal["keep", "leave-out"] = "keep"
    """What to do with rows whose prompt the study's CLIP cannot read in full, at which fit would
    stop: keep, or leave-out, which needs sayso[train]."""
    damaged: Literal["refuse", "leave-out"] = "refuse"
    """What to do with rows that have a damaged image, no prompt or an impossible value: refuse the
    table, or leave-out, which lists them in the run's result."""


def import_table(study: Study, config: ImportConfig) -> Run:
    """Take a table in; repeating goes on where it stopped, and changes nothing when all is there.

    The whole table is read and checked before anything is written.

    Raises: UserError: if pyarrow is missing, there is no such table, it has unknown columns, wrong
        types, damaged rows that are not to be left out, or nothing to take in, or if names do not
        say which split a prompt belongs to.
    """
    importer, context = _open(study, config)
    tally = _examine(importer, context, config)
    run = study.run("import", _name(config), _absolute(config))
    if run.finished:
        console.print(f"{run.name} is finished; nothing to do")
        return run
    for line in tally.lines(context.splits if config.format != "sayso" else {}, len(context.kept)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    _take_in(study, _entries(importer, context, Path(config.path)), tally.rows.total())
    derived = _derive(study) if importer.derives_ratings and not config.comparisons_only else 0
    run.finish({**tally.facts, "derived_ratings": derived, "tables": _hashes(Path(config.path))})
    console.print(
        f"{run.name}: {len(tally.images)} images of {len(tally.prompts)} prompts, "
        f"{tally.comparisons} comparisons, {tally.ratings + derived} ratings"
    )
    return run


def plan(study: Study, config: ImportConfig) -> dict[str, object]:
    """What the table holds and what would be left out."""
    importer, context = _open(study, config)
    return _examine(importer, context, config).facts


def _open(study: Study, config: ImportConfig) -> "tuple[TableImport, Context]":
    need("export", "import")
    from sayso.formats.imports import Context, load_import, table_files

    if not config.path:
        raise UserError("give the table: sayso import STUDY TABLE --format pickapic")
    path = Path(config.path)
    context = Context(
        study,
        splits=file_splits(path, table_files(path), config.split),
        question=config.question,
        simulated=config.raters == "simulated",
        rating_column=config.rating_column,
        readable=_readable(study, config),
    )
    return load_import(config.format)(), context


def _readable(study: Study, config: ImportConfig) -> Callable[[str], bool]:
    """Says whether the study's CLIP reads a prompt whole; always, if nobody asks."""
    if config.long_prompts == "keep":
        return lambda _: True
    need("train", "import --long-prompts leave-out")
    from sayso.data.clip import ClipEncoder

    encoder = ClipEncoder.load(study.info.clip_model)

    @cache
    def readable(text: str) -> bool:
        try:
            encoder.check_texts([text])
        except UserError:
            return False
        return True

    return readable


def _absolute(config: ImportConfig) -> ImportConfig:
    return replace(config, path=str(Path(config.path).resolve()))


def _name(config: ImportConfig) -> str:
    given = config.name or f"{Path(config.format).stem}-{Path(config.path).resolve().stem}"
    return re.sub(r"[^\w.-]+", "-", given)


def _hashes(path: Path) -> dict[str, str]:
    """SHA-256 of every table that was read."""
    from sayso.formats.imports import table_files

    folder = path if path.is_dir() else path.parent
    return {str(table.relative_to(folder)): files.sha256(table) for table in table_files(path)}


def _entries(importer: "TableImport", context: "Context", path: Path) -> "Iterator[Entry]":
    """The entries, those replaced by a reason that cannot be taken in."""
    from sayso.formats.imports import Entry

    voted: set[tuple[str, ...]] = set()
    for entry in importer.entries(path, context):
        if not all(context.readable(p.text) for p in entry.prompts):
            yield Entry(left_out="rows whose prompt CLIP cannot read in full")
            continue
        votes = [*entry.ratings, *entry.comparisons]
        if any(vote.supersedes is None and _item(vote) in voted for vote in votes):
            yield Entry(left_out="repeated votes of a rater on the same images")
            continue
        voted.update(_item(vote) for vote in votes)
        yield entry


def _item(vote: object) -> tuple[str, ...]:
    """What a rater has one live vote on."""
    from sayso.base.types import Comparison, Rating

    if isinstance(vote, Rating):
        return (vote.rater, vote.question, vote.sample_id)
    assert isinstance(vote, Comparison)
    sides = sorted([",".join(vote.left_ids), ",".join(vote.right_ids)])
    return (vote.rater, vote.question, vote.prompt_id, *sides)


def _examine(importer: "TableImport", context: "Context", config: ImportConfig) -> Tally:
    """Read the whole table once: what is wrong with it is said before anything is written."""
    path, tally = Path(config.path), Tally()
    known = {p.text: p for p in _prompts(context.study) if p.split != "fidelity"}
    for entry in _entries(importer, context, path):
        for prompt in entry.prompts:
            _refuse_other_split(prompt, known.setdefault(prompt.text, prompt))
        tally.add(entry, context.file)
    if tally.damaged and config.damaged == "refuse":
        raise UserError(damaged_rows(path, tally.damaged))
    if context.torn:
        raise UserError(torn_prompts(context.torn))
    if not tally.rows:
        raise UserError(f"{path} has no rows; nothing was imported")
    if not tally.ratings + tally.comparisons:
        raise UserError(f"{path} has no votes to import (left out: {dict(tally.left_out)})")
    return tally


def _prompts(study: Study) -> list[Prompt]:
    return study.prompts() if study.has_prompts else []


def _refuse_other_split(prompt: Prompt, known: Prompt) -> None:
    if known.id != prompt.id:
        raise UserError(
            f"the study has prompt {prompt.text!r} in split {known.split}, the table in "
            f"{prompt.split}; a text belongs to one split: import into another study"
        )


def _take_in(study: Study, entries: "Iterator[Entry]", total: int) -> None:
    """Write batch by batch: prompts, images with their records, then the votes on them."""
    prompts = {p.id for p in _prompts(study)}
    samples = {s.id for s in study.samples()}
    with progress("import", total, unit="rows") as advance:
        for part in _parts(entries):
            _keep(study, part, prompts, samples)
            advance(len(part))


def _parts(entries: "Iterator[Entry]") -> "Iterator[list[Entry]]":
    """The entries in batches, bounded in number and in bytes of images."""
    part: list[Entry] = []
    size = 0
    for entry in entries:
        part.append(entry)
        size += sum(len(p.content) for p in entry.pictures)
        if len(part) == BATCH or size >= BATCH_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def _keep(study: Study, part: "list[Entry]", prompts: set[str], samples: set[str]) -> None:
    fresh = {p.id: p for e in part for p in e.prompts if p.id not in prompts}
    if fresh:
        study.add_prompts(list(fresh.values()))
        prompts |= fresh.keys()
    _keep_images(study, part, samples)
    study.feedback.add_ratings([r for e in part for r in e.ratings])
    study.feedback.add_comparisons([c for e in part for c in e.comparisons])


def _keep_images(study: Study, part: "list[Entry]", samples: set[str]) -> None:
    from sayso.formats.imports import decode

    pictures = {p.sample.id: p for e in part for p in e.pictures if p.sample.id not in samples}
    fresh = list(pictures.values())
    for i in range(0, len(fresh), DECODED):
        some = fresh[i : i + DECODED]
        images = [decode(p.sample.id, p.content) for p in some]
        study.add_samples([p.sample for p in some], images)
    samples |= pictures.keys()


def _derive(study: Study) -> int:
    from sayso.feedback.derived_ratings import ratings_from_comparisons

    votes = (found for kind in (False, True) for found in study.feedback.stream(kind))
    ratings = ratings_from_comparisons(votes)
    return sum(
        study.feedback.add_ratings(ratings[i : i + BATCH]) for i in range(0, len(ratings), BATCH)
    )
