"""Keep assignments and the counters of items and tasks in line with the votes."""

from sqlalchemy import Connection, and_, bindparam, case, false, func, select, true, update

from sayso import work_tables as work
from sayso.vote_queries import is_excluded
from sayso.web.queue import has_room
from sayso.work_tables import Row

_assigned = work.assignments.c
_ASSIGN = update(work.assignments).where(
    _assigned.item == bindparam("of_item"), _assigned.rater == bindparam("by_rater")
)
_COUNT_ITEM = update(work.items).where(work.items.c.id == bindparam("of_item"))
_COUNT_TASK = (
    update(work.tasks)
    .where(work.tasks.c.id == bindparam("of_task"))
    .values(votes=work.tasks.c.votes + bindparam("change"))
)


def assign(db: Connection, item: str, rater: str, **values: object) -> None:
    """Set columns of a rater's assignment to an item."""
    db.execute(_ASSIGN, {"of_item": item, "by_rater": rater, **values})


def recount(db: Connection, item: Row, change: int) -> int:
    """Add to the votes of an item: the change of its task's votes, capped by what it asks for."""
    overlap, votes = item["overlap"], item["votes"] + change
    counters = {"of_item": item["id"], "votes": votes, "open": has_room(overlap, votes, 0)}
    db.execute(_COUNT_ITEM, counters)
    if item["control"]:
        return 0
    counted = min(votes, overlap) - min(item["votes"], overlap)
    if counted:
        db.execute(_COUNT_TASK, {"of_task": item["task"], "change": counted})
    return counted


def count_anew(db: Connection, task: str, rater: str = "") -> None:
    """Set the counters of a task and of its items from the assignments: `counted`'s "place".

    Args:
        rater: id; only the items that this rater was given are counted anew.
    """
    items = work.items
    mine = items.c.task == task
    some = mine
    if rater:
        given = select(_assigned.item).where(_assigned.task == task, _assigned.rater == rater)
        some = and_(mine, items.c.id.in_(given))
    db.execute(update(items).where(some).values(votes=_PLACES))
    full = and_(items.c.overlap > 0, items.c.votes >= items.c.overlap)
    db.execute(update(items).where(some).values(open=case((full, false()), else_=true())))
    capped = case((items.c.votes > items.c.overlap, items.c.overlap), else_=items.c.votes)
    ordinary = select(
        func.count(), func.coalesce(func.sum(items.c.overlap), 0),
        func.coalesce(func.sum(capped), 0),
    ).where(mine, items.c.control == "")  # fmt: skip
    n_items, wanted, votes = db.execute(ordinary).one()
    numbers = {"n_items": n_items, "wanted": wanted, "votes": votes}
    db.execute(update(work.tasks).where(work.tasks.c.id == task).values(numbers))


_PLACES = (
    select(func.count())
    .select_from(work.assignments)
    .join(work.raters, work.raters.c.id == _assigned.rater)
    .where(_assigned.item == work.items.c.id, _assigned.state == "answered")
    .where(_assigned.surplus == false(), ~is_excluded(work.raters.c.name))
    .correlate(work.items)
    .scalar_subquery()
)
"""Answers to an item that fill a place."""
