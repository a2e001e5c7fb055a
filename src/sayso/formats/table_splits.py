"""Which split a table's prompts belong to, by the names of its files and folders."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from sayso.base.errors import UserError
from sayso.base.types import Split

WORDS: Mapping[str, Split] = {
    "train": "train", "training": "train",
    "test": "seen", "testing": "seen", "eval": "seen", "evaluation": "seen",
    "validation": "seen", "valid": "seen", "val": "seen", "dev": "seen",
}  # fmt: skip
"""What names call a split, as dataset hubs read them. A study has no third part: what others keep
for validation becomes test prompts, which are never trained on either."""


def file_splits(root: Path, tables: Sequence[Path], asked: Split | None) -> dict[Path, Split]:
    """The split of each table: as asked, else as its own name or that of a folder says.

    If no name says any, all tables are for training.

    Args:
        root: the folder or file that was given; folders above it say nothing, but for the one in
            which a file lies.
        asked: the split of all prompts, whatever the names say.
    Raises: UserError: if a name says two splits, or only some of them say one.
    """
    if asked:
        return dict.fromkeys(tables, asked)
    found: dict[Path, Split | None] = {table: _split(root, table) for table in tables}
    named: dict[Path, Split] = {table: split for table, split in found.items() if split}
    silent = [table for table, split in found.items() if not split]
    if named and silent:
        raise UserError(
            f"the name of {next(iter(named))} gives a split, that of {silent[0]} gives none; give "
            "--split, or import them one by one"
        )
    if not named:
        return dict.fromkeys(tables, WORDS["train"])
    return named


def _split(root: Path, table: Path) -> Split | None:
    root, table = root.absolute(), table.absolute()
    above = root.parent.parent if root == table else root.parent
    folders = table.relative_to(above).parts[:-1]
    words = re.split(r"[-._ 0-9]+", table.stem.lower())
    said: set[Split] = {WORDS[word] for word in words if word in WORDS}
    if len(said) > 1:
        raise UserError(f"the name of {table} gives two splits; give --split")
    said = said or {WORDS[name.lower()] for name in folders if name.lower() in WORDS}
    if len(said) > 1:
        raise UserError(f"the folders of {table} give two splits; give --split")
    return next(iter(said), None)
