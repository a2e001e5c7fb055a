"""What is assigned to a rater and what could be: items beside the rater's own assignment.

The queries are built once; the columns of the assignment begin with `my_`, and are None for items
that the rater was never given.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from sqlalchemy import (
    Boolean,
    Connection,
    Double,
    Select,
    Table,
    and_,
    bindparam,
    false,
    func,
    literal,
    or_,
    select,
    true,
)

from sayso.feedback import work_tables as work
from sayso.feedback.vote_tables import VOTE_TABLES
from sayso.feedback.work_tables import Row
from sayso.web.work.queue import CHECKS, LEASE_S, Control

_items, _mine, _other = work.items.c, work.assignments.c, work.assignments.alias("other").c
_now = bindparam("now", type_=Double)

_MINE = [
    _mine[name].label(f"my_{name}")
    for name in ("key", "state", "until", "swapped", "position", "vote", "surplus")
]
_RESERVED = (
    select(func.count())
    .where(_other.item == _items.id, _other.rater != bindparam("rater"))
    .where(_other.state == "leased", _other.until > _now, _other.until <= _now + LEASE_S)
    .scalar_subquery()
)
_BY_RATER = and_(_mine.item == _items.id, _mine.rater == bindparam("rater"))
_NOT_TAKEN = or_(_mine.state.is_(None), _mine.state == "released")
_UNKNOWN = or_(bindparam("also_known", type_=Boolean), _items.expected == "")
_BESIDE_GOLD = and_(_items.control == "gold", _items.expected == "")
_ROOM = or_(_items.overlap == 0, _items.votes + _RESERVED < _items.overlap)
_FREE = (
    select(work.items, *_MINE)
    .join(work.assignments, _BY_RATER, isouter=True)
    .where(_items.task == bindparam("task"), _items.control == bindparam("control"))
    .where(_items.open == true(), _items.broken == false(), _NOT_TAKEN, _UNKNOWN)
    .where(_items.rank >= bindparam("first"), _items.rank < bindparam("end"))
    .where(_ROOM)
    .order_by(_items.rank, _items.slot)
    .limit(bindparam("most"))
)
# the ordinary item that shows the picture of an attention check to rate; see `Draft.content`
_same, _own = work.items.alias("same").c, work.assignments.alias("own").c
_PICTURE = func.substr(_items.content, func.length(_items.prompt_id) + len("attention::") + 1)
ASKED_OF = and_(_same.task == _items.task, _same.content == literal("alignment:").concat(_PICTURE))
_HAD_OR_WANTED = (
    select(literal(1))
    .select_from(_same.id.table)
    .join(
        _own.item.table, and_(_own.item == _same.id, _own.rater == bindparam("rater")), isouter=True
    )
    .where(ASKED_OF)
    .where(or_(_own.item.is_not(None), _same.overlap == 0, _same.votes < _same.overlap))
)
_FREE_CHECKS = _FREE.where(~_HAD_OR_WANTED.exists())
"""A picture comes to nobody both as a check and as work: as a check it is used when others have
rated it, and the rater has not been given it."""
_ASKED_TOO = (
    select(_same.id)
    .select_from(_same.id.table, work.items)
    .where(ASKED_OF)
    .where(_items.id == bindparam("check"))
)
_back, _there = work.assignments.alias("back"), work.items.alias("there")
_PAGES_BACK = (
    select(_there.c.page)
    .join_from(_back, _there, _there.c.id == _back.c.item)
    .where(_back.c.task == bindparam("task"), _back.c.rater == bindparam("rater"))
    .where(_back.c.state == "released", _there.c.open == true())
)
_GIVEN_BACK = (
    select(work.items, *_MINE)
    .join(work.assignments, _BY_RATER, isouter=True)
    .where(_items.page.in_(_PAGES_BACK))  # the task is theirs; named, its index would be taken
    .where(_items.open == true(), _items.broken == false(), _NOT_TAKEN, _ROOM)
    .order_by(_items.rank, _items.slot)
    .limit(bindparam("most"))
)
_LEFT = (
    select(literal(1))
    .select_from(work.items)
    .join(work.assignments, _BY_RATER, isouter=True)
    .where(_items.task == bindparam("task"), _items.open == true(), _items.broken == false())
    .where(_items.control.in_(["", *CHECKS]))  # every item's is; so the index serves
    .where(
        or_(
            _mine.state.in_(["released", "leased"]),
            and_(_mine.state.is_(None), or_(_items.control == "", _BESIDE_GOLD)),
        )
    )
    .limit(1)
)
_HELD = (
    select(work.items, *_MINE, _RESERVED.label("reserved"))
    .join(work.assignments, _BY_RATER)
    .where(_mine.task == bindparam("task"), _mine.state == "leased", _items.broken == false())
    .order_by(_mine.position, _items.slot)
)
_OF_TASK = select(_items.task).where(_items.id == bindparam("item")).scalar_subquery()
_TASK_OF_ITEM = select(work.tasks).where(work.tasks.c.id == _OF_TASK).with_for_update()
_RESERVED_HERE = select(_RESERVED).select_from(work.items).where(_items.id == bindparam("item"))


def _given(votes: Table) -> Select[Any]:
    return (
        select(work.items, *_MINE, votes.c.value.label("my_value"))
        .join(work.assignments, _BY_RATER)
        .join(votes, votes.c.id == _mine.vote, isouter=True)
        .where(_items.id == bindparam("item"))
    )


_GIVEN = {kind: _given(table) for kind, table in VOTE_TABLES.items()}

Page = list[Row]
"""The rows of the items of a page, left to right."""


def held(db: Connection, task: Row, rater: str, now: float) -> list[Row]:
    """The items that a rater has leased, in the order given, with `reserved`."""
    return _rows(db, _HELD, task=task["id"], rater=rater, now=now)


def is_anything_left(db: Connection, task: Row, rater: str) -> bool:
    """Whether something may still come to a rater, now or when others have given it back."""
    return db.execute(_LEFT, {"task": task["id"], "rater": rater}).first() is not None


def given_back(db: Connection, task: Row, rater: str, now: float, n: int) -> list[Page]:
    """The first `n` pages of which a rater has given something back that is still wanted."""
    most = n * task["images_per_page"]
    rows = _rows(db, _GIVEN_BACK, task=task["id"], rater=rater, now=now, most=most)
    return by_page(rows)[:n]


def free_pages(
    db: Connection,
    task: Row,
    rater: str,
    now: float,
    control: Control,
    ranks: range,
    n: int,
    also_known: bool = True,
) -> list[Page]:
    """The first `n` pages with items for this rater, or fewer, in the order of the task.

    Items that the rater has had, or that have their raters, are left out of their pages; without
    `also_known` those whose right vote is known, too.
    """
    # no page has more items than the task's pages have, so n of them are whole in so many rows
    query = _FREE_CHECKS if control == "attention" else _FREE
    rows = _rows(
        db, query, task=task["id"], rater=rater, now=now, control=control, first=ranks.start,
        end=ranks.stop, most=n * task["images_per_page"], also_known=also_known,
    )  # fmt: skip
    return by_page(rows)[:n]


def asked_too(db: Connection, check: str) -> str | None:
    """The ordinary item that shows the picture of an attention check too; None if none does."""
    return db.scalar(_ASKED_TOO, {"check": check})


def locked_task_of(db: Connection, item: str) -> Row | None:
    """The task of an item, locked until the transaction ends; None for an unknown item."""
    return db.execute(_TASK_OF_ITEM, {"item": item}).mappings().first()


def given(db: Connection, kind: str, item: str, rater: str) -> Row | None:
    """An item that was given to a rater; `my_value` is the rater's newest vote. None if it was not.

    Args:
        kind: of the item's task.
    """
    return db.execute(_GIVEN[kind], {"item": item, "rater": rater}).mappings().first()


def reserved(db: Connection, item: str, rater: str, now: float) -> int:
    """How many others hold a lease on an item; see `queue.is_reserved`."""
    return db.scalar(_RESERVED_HERE, {"item": item, "rater": rater, "now": now}) or 0


def by_page(rows: Sequence[Row]) -> list[Page]:
    """Rows that are in the order of their pages, page by page."""
    return [list(page) for _, page in groupby(rows, key=lambda row: row["page"])]


def _rows(db: Connection, query: Select[Any], **values: object) -> list[Row]:
    return list(db.execute(query, values).mappings())
