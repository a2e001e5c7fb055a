"""Votes that lie beside their study: a path was once pasted into a database's address."""

import json
import os
import sqlite3
from collections.abc import Callable, Collection
from contextlib import closing
from pathlib import Path

from sqlalchemy.engine import make_url

from sayso.base.errors import UserError, quoted


def refuse_misplaced(own: Path, samples: Callable[[], Collection[str]]) -> None:
    """Stop before a study looks as if nobody had voted, when its votes may lie elsewhere.

    `?` and `%` in a study's path mean something in an address, so that votes of "better? cats" went
    to "better", and those of "run %41" to "run A/feedback.db", perhaps with those of another study.

    Args:
        own: where the votes belong: the study's feedback.db, which does not exist.
        samples: gives the ids of the study's images; votes on others are none of its own.
    Raises: UserError: naming the other file, and how to go on with or without it.
    """
    other = _pasted(own)
    if other is None or not _has_votes(other, samples()):
        return
    place, copy = quoted(own), quoted(other)
    raise UserError(
        f"votes on images of this study are in {other}, where an earlier version of sayso put "
        f"them; to use them: cp {copy} {place} (to start without them: touch {place})"
    )


def _pasted(own: Path) -> Path | None:
    """Where the votes went when the path was read as part of an address, if elsewhere."""
    database = make_url(f"sqlite:///{own}").database
    other = Path(database) if database else own
    return None if os.path.abspath(other) == os.path.abspath(own) else other  # noqa: PTH100


def _has_votes(file: Path, samples: Collection[str]) -> bool:
    if not file.is_file():
        return False
    try:
        with closing(sqlite3.connect(file.absolute())) as db:
            rated = db.execute("SELECT DISTINCT sample_id FROM ratings").fetchall()
            compared = db.execute("SELECT left_ids, right_ids FROM comparisons").fetchall()
    except sqlite3.DatabaseError:
        return False  # some other file
    voted = {row[0] for row in rated}.union(*(json.loads(side) for row in compared for side in row))
    return not voted.isdisjoint(samples)
