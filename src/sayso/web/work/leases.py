"""Leases: whose turn it is to write about a task, and what goes back or is set aside."""

from collections.abc import Callable, Iterable, Sequence

from sqlalchemy import Connection, and_, bindparam, select, update

from sayso.feedback import work_tables as work
from sayso.feedback.work_tables import Row
from sayso.web.work.people import Person

_items, _assigned = work.items.c, work.assignments.c
_LOCKED_TASK = select(work.tasks).where(work.tasks.c.id == bindparam("of_task")).with_for_update()
Usable = Callable[[Row], bool]
"""Whether the images of an item can be read."""


def locked_task(db: Connection, task: str) -> Row:
    """The row of a task, locked until the transaction ends: who writes about a task takes turns."""
    return db.execute(_LOCKED_TASK, {"of_task": task}).mappings().one()


def release(db: Connection, rater: Person, pages: Sequence[str], refused: bool) -> list[Row]:
    """Give leased items back: the items. `refused` ones are never given to this rater again."""
    there = select(work.items.c.id).where(_items.page.in_(pages)).scalar_subquery()
    mine = and_(_assigned.rater == rater.id, _assigned.state == "leased", _assigned.item.in_(there))
    items = select(work.items).join(work.assignments, _assigned.item == _items.id).where(mine)
    found: list[Row] = list(db.execute(items).mappings())
    state = "refused" if refused else "released"
    db.execute(update(work.assignments).where(mine).values(state=state, until=0.0))
    return found


def release_all(db: Connection, rater: Person) -> None:
    """Give everything back that a rater holds, in every task."""
    mine = and_(
        _assigned.task.in_(select(work.tasks.c.id)),  # so that the index serves
        _assigned.rater == rater.id,
        _assigned.state == "leased",
    )
    db.execute(update(work.assignments).where(mine).values(state="released", until=0.0))


def set_aside(db: Connection, items: Iterable[str], broken: bool = True) -> None:
    """Hand out these items no more, or again: whether their images can be read."""
    for item in items:
        db.execute(update(work.items).where(_items.id == item).values(broken=broken))
