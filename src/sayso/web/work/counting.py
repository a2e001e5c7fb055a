"""Keep assignments and the counters of items, tasks and raters in line with the votes."""

from sqlalchemy import Connection, and_, bindparam, case, false, func, or_, select, true, update

from sayso.feedback import work_tables as work
from sayso.feedback.vote_queries import is_excluded
from sayso.feedback.work_tables import VOTED, Row
from sayso.web.work.queue import CHECKS, has_room

_assigned, _participants = work.assignments.c, work.participants.c
_ASSIGN = update(work.assignments).where(
    _assigned.item == bindparam("of_item"), _assigned.rater == bindparam("by_rater")
)
_COUNT_ITEM = update(work.items).where(work.items.c.id == bindparam("of_item"))
_COUNT_TASK = (
    update(work.tasks)
    .where(work.tasks.c.id == bindparam("of_task"))
    .values(
        votes=work.tasks.c.votes + bindparam("more_votes"),
        all_votes=work.tasks.c.all_votes + bindparam("change"),
    )
)
_WHO = and_(
    _participants.task == bindparam("of_task"), _participants.rater == bindparam("by_rater")
)
_SO_FAR = select(_participants.all_votes).where(_WHO)
_COUNT_RATER = (
    update(work.participants)
    .where(_WHO)
    .values(all_votes=_participants.all_votes + bindparam("change"))
)


def assign(db: Connection, item: str, rater: str, **values: object) -> None:
    """Set columns of a rater's assignment to an item."""
    db.execute(_ASSIGN, {"of_item": item, "by_rater": rater, **values})


def count(db: Connection, item: Row, rater: str, change: int, counts: bool) -> dict[str, int]:
    """Note that a rater has `change` votes more on an item: the task's counters, their change.

    Checks take the same statements as other items, so that nobody tells them by the time.

    Args:
        counts: whether the vote is one of those that the item's overlap asks for.
    """
    votes = _count_item(db, item, change) if counts else 0
    more = {"of_task": item["task"], "change": change}
    db.execute(_COUNT_TASK, {**more, "more_votes": votes})
    db.execute(_COUNT_RATER, {**more, "by_rater": rater})
    return {"votes": votes, "all_votes": change}


def votes_so_far(db: Connection, task: str, rater: str) -> int:
    """How many votes of a rater a task has."""
    known = db.scalar(_SO_FAR, {"of_task": task, "by_rater": rater})
    return votes_of(db, task, rater) if known is None else known


def votes_of(db: Connection, task: str, rater: str) -> int:
    """How many votes of a rater a task has, counted; the row of a participant knows it."""
    mine = (_assigned.task == task, _assigned.rater == rater, _assigned.state == VOTED)
    return db.scalar(select(func.count()).select_from(work.assignments).where(*mine)) or 0


def set_check_share(db: Connection, task: str) -> None:
    """Note which share of a task's pages will be checks, as far as there are any."""
    items = work.items.c
    many = select(items.control, func.count()).where(items.task == task, items.standing == "")
    n = dict(db.execute(many.group_by(items.control)).all())  # type: ignore[arg-type]
    row = db.execute(select(work.tasks).where(work.tasks.c.id == task)).mappings().one()
    share = sum(
        min(row[f"{kind}_share"], n.get(kind, 0) / max(1, n.get(kind, 0) + n.get("", 0)))
        for kind in CHECKS
    )
    db.execute(update(work.tasks).where(work.tasks.c.id == task).values(check_share=share))


def _count_item(db: Connection, item: Row, change: int) -> int:
    """Add to the votes of an item: the change of its task's votes, capped by what it asks for."""
    overlap, votes = item["overlap"], item["votes"] + change
    is_open = has_room(overlap, votes, 0) and not item["standing"]
    db.execute(_COUNT_ITEM, {"of_item": item["id"], "votes": votes, "open": is_open})
    return 0 if item["control"] else min(votes, overlap) - min(item["votes"], overlap)


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
    shut = or_(full, items.c.standing != "")
    db.execute(update(items).where(some).values(open=case((shut, false()), else_=true())))
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
    .where(_assigned.item == work.items.c.id, _assigned.state == VOTED)
    .where(_assigned.surplus == false(), ~is_excluded(work.raters.c.name))
    .correlate(work.items)
    .scalar_subquery()
)
"""Votes on an item that fill a place."""
