"""Who changed what on the admin pages and when: lines that are only ever added."""

import time
from collections.abc import Mapping

from sqlalchemy import Connection, func, insert, select

from sayso.feedback import work_tables as work
from sayso.feedback.work_tables import Row

WORDS: Mapping[str, str] = {
    "pause": "paused the task",
    "resume": "reopened the task",
    "close": "closed the task",
    "add": "added the rater",
    "link": "made a new sign-in link for",
    "disable": "switched off",
    "enable": "switched on",
    "exclude": "excluded the votes of",
    "include": "included again the votes of",
    "guideline": "saved the guideline",
    "export": "made an export",  # by earlier versions
    "decide": "decided a disagreement in",
}
"""What can be noted, in words that go on with what it was done to."""


def note(db: Connection, author: str, action: str, about: str) -> None:
    """Add a line in the transaction of the change itself."""
    row = {"author": author, "action": action, "about": about, "at": time.time()}
    db.execute(insert(work.audit).values(row))


def lines(db: Connection, first: int, n: int) -> list[Row]:
    """Up to `n` lines, the newest first, after the `first` ones."""
    query = select(work.audit).order_by(work.audit.c.seq.desc()).offset(first).limit(n)
    return list(db.execute(query).mappings())


def count(db: Connection) -> int:
    """How many lines there are."""
    return db.scalar(select(func.count()).select_from(work.audit)) or 0
