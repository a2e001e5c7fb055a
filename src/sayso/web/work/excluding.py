"""Leave a rater's votes out, or count them again: kept either way, places opened or taken."""

import time

from sqlalchemy import Connection, delete, insert, select

from sayso.base.errors import UserError
from sayso.feedback import work_tables as work
from sayso.feedback.vote_queries import is_excluded
from sayso.feedback.vote_tables import VOTE_TABLES, exclusions
from sayso.web.work.counting import count_anew
from sayso.web.work.leases import locked_task
from sayso.web.work.people import find


def set_excluded(db: Connection, name: str, excluded: bool, author: str) -> bool:
    """Whether it was otherwise before: the votes of a rater count no more, or again.

    Where they filled places of the overlap, others are asked, until the votes count again.

    Args:
        author: who asks for it.
    Raises: UserError: if nobody of this name is a rater or has voted.
    """
    if db.scalar(select(is_excluded(name))) == excluded:
        return False
    if find(db, name) is None and not _has_voted(db, name):
        raise UserError(f"there is no rater {name!r}; list them with: sayso raters STUDY list")
    if excluded:
        row = {"rater": name, "author": author, "created_at": time.time()}
        db.execute(insert(exclusions).values(row))
    else:
        db.execute(delete(exclusions).where(exclusions.c.rater == name))
    _count_anew(db, name)
    return True


def _has_voted(db: Connection, name: str) -> bool:
    return any(
        db.execute(select(table.c.seq).where(table.c.rater == name).limit(1)).first()
        for table in VOTE_TABLES.values()
    )


def _count_anew(db: Connection, name: str) -> None:
    given, people = work.assignments, work.raters
    query = (
        select(given.c.task, given.c.rater)
        .join_from(given, people, people.c.id == given.c.rater)
        .where(people.c.name == name)
        .distinct()
        .order_by(given.c.task)  # all lock tasks in this order
    )
    for task, rater in db.execute(query).all():
        locked_task(db, task)
        count_anew(db, task, rater)
