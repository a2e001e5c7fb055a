"""Keep assignments and the counters of items and tasks in line with the votes."""

from sqlalchemy import Connection, bindparam, update

from sayso import work_tables as work
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
