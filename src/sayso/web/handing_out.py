"""Hand out pages: a rater's own leased ones first, then new ones in the order of the queue."""

import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    false,
    func,
    insert,
    literal,
    or_,
    select,
    true,
    update,
)

from sayso import work_tables as work
from sayso.web.people import Person
from sayso.web.queue import (
    LEASE_S,
    Control,
    control_at,
    first_rank,
    generator,
    has_room,
    is_reserved,
    swap_sides,
)
from sayso.work_tables import Row

_items, _assigned = work.items.c, work.assignments.c


MOST_BROKEN = 20
"""Pages with unreadable pictures that one request sets aside before it gives up."""


class Entry(NamedTuple):
    """One item on a page and how it was assigned to the rater."""

    item: Row
    key: str
    swapped: bool
    position: int
    newest: str | None


@dataclass(frozen=True, slots=True)
class HandedPage:
    """What one screen shows; `lease_until` in seconds since the epoch."""

    id: str
    entries: list[Entry]
    lease_until: float


Usable = Callable[[Row], bool]
"""Whether the images of an item can be read."""


def locked_task(db: Connection, task: str) -> Row:
    """The row of a task, locked until the transaction ends: who writes about a task takes turns."""
    query = select(work.tasks).where(work.tasks.c.id == task).with_for_update()
    return db.execute(query).mappings().one()


def hand_out(
    db: Connection, task: Row, rater: Person, have: Sequence[str], n: int, now: float,
    usable: Usable,
) -> tuple[list[HandedPage], bool]:  # fmt: skip
    """Up to `n` pages for a rater, who keeps the leases of the pages `have`.

    Args:
        task: from `locked_task`.
        now: seconds since the epoch.
    Returns: the pages, and whether so many pictures could not be read that the search was given up.
    """
    desk = _Desk(db, task, rater, now, usable)
    pages = [page for page in desk.renewed() if page.id not in have][:n]
    while len(pages) < n:
        page = desk.next_page()
        if page is None:
            break
        pages.append(page)
    desk.leave()
    return pages, desk.patience == 0


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
    mine = and_(_assigned.rater == rater.id, _assigned.state == "leased")
    db.execute(update(work.assignments).where(mine).values(state="released", until=0.0))


def set_aside(db: Connection, items: Iterable[str]) -> None:
    """Hand out these items no more: their images cannot be read."""
    for item in items:
        db.execute(update(work.items).where(_items.id == item).values(broken=True))


class _Desk:
    """One rater at one task in one transaction."""

    def __init__(
        self, db: Connection, task: Row, rater: Person, now: float, usable: Usable
    ) -> None:
        self._db, self._task, self._rater, self._now = db, task, rater, now
        self._usable = usable
        self._start = first_rank(task["n_ranks"], task["seed"], rater.name)
        self._cursor, self._handed_out = self._take_seat()
        self.patience = MOST_BROKEN

    def _take_seat(self) -> tuple[int, int]:
        table = work.participants
        mine = and_(table.c.task == self._task["id"], table.c.rater == self._rater.id)
        row = self._db.execute(select(table).where(mine)).mappings().first()
        if row:
            return row["cursor"], row["handed_out"]
        seat = {
            "task": self._task["id"], "rater": self._rater.id, "cursor": self._start,
            "handed_out": 0, "seen_at": self._now,
        }  # fmt: skip
        self._db.execute(insert(table).values(seat))
        return self._start, 0

    def leave(self) -> None:
        """Note how far the rater is."""
        table = work.participants
        mine = and_(table.c.task == self._task["id"], table.c.rater == self._rater.id)
        values = {
            "cursor": self._cursor, "handed_out": self._handed_out, "seen_at": self._now,
        }  # fmt: skip
        self._db.execute(update(table).where(mine).values(values))

    # pages leased before

    def renewed(self) -> list[HandedPage]:
        """The rater's leased pages, their leases renewed; what others took meanwhile is gone."""
        query = (
            select(work.items, *_ASSIGNMENT, self._reserved.label("reserved"))
            .join(work.assignments, _assigned.item == _items.id)
            .where(_assigned.task == self._task["id"], _assigned.rater == self._rater.id)
            .where(_assigned.state == "leased", _items.broken == false())
            .order_by(_assigned.position, _items.slot)
        )
        rows = list(self._db.execute(query).mappings())
        set_aside(self._db, [row["id"] for row in rows if not self._usable(row)])
        kept = [row for row in rows if self._still_ours(row) and self._usable(row)]
        self._set_lease([r["id"] for r in kept], "leased", self._now + LEASE_S)
        self._set_lease([r["id"] for r in rows if r not in kept], "released", 0.0)
        grouped = groupby(kept, key=lambda row: row["page"])
        return [self._page([_entry(row) for row in page]) for _, page in grouped]

    def _still_ours(self, row: Row) -> bool:
        if is_reserved(row["until"], self._now):
            return True
        return has_room(row["overlap"], row["votes"], row["reserved"])

    def _set_lease(self, items: Sequence[str], state: str, until: float) -> None:
        if items:
            mine = and_(_assigned.rater == self._rater.id, _assigned.item.in_(items))
            values = {"state": state, "until": until}
            self._db.execute(update(work.assignments).where(mine).values(values))

    # new pages

    def next_page(self) -> HandedPage | None:
        """The next page in the rater's order, leased; None if nothing is left."""
        task = self._task
        kind = control_at(
            self._handed_out, task["seed"], self._rater.name, task["gold_share"],
            task["attention_share"],
        )  # fmt: skip
        rows = self._around(kind, self._start) if kind else []
        if not rows:
            rows = self._around("", self._cursor)
            if not rows:
                return None
            self._cursor = rows[0]["rank"] + 1
        entries = [self._lease(row) for row in rows]
        self._handed_out += 1
        return self._page(entries)

    def _around(self, control: Control, start: int) -> list[Row]:
        """The items of the first free page at or after rank `start`, going round once."""
        for part in (_items.rank >= start, _items.rank < start):
            while self.patience and (rows := self._free(control, part)):
                broken = [row["id"] for row in rows if not self._usable(row)]
                if not broken:
                    return rows
                set_aside(self._db, broken)
                self.patience -= 1
        return []

    def _free(self, control: Control, part: ColumnElement[bool]) -> list[Row]:
        there = and_(
            _items.task == self._task["id"], _items.control == control, _items.open == true(),
            _items.broken == false(), ~self._mine.exists(),
            or_(_items.overlap == 0, _items.votes + self._reserved < _items.overlap),
        )  # fmt: skip
        first = select(_items.page).where(there, part).order_by(_items.rank).limit(1)
        page = self._db.scalar(first)
        if page is None:
            return []
        query = select(work.items).where(there, _items.page == page).order_by(_items.slot)
        return list(self._db.execute(query).mappings())

    @property
    def _mine(self) -> Any:
        """The rater has answered it, has it now, or does not want it."""
        taken = _assigned.state.in_(["answered", "leased", "refused"])
        return select(literal(1)).where(
            _assigned.item == _items.id, _assigned.rater == self._rater.id, taken
        )

    @property
    def _reserved(self) -> Any:
        """How many others hold a lease on the item; see `is_reserved`."""
        other = work.assignments.alias()
        return (
            select(func.count())
            .where(other.c.item == _items.id, other.c.rater != self._rater.id)
            .where(other.c.state == "leased", other.c.until > self._now)
            .where(other.c.until <= self._now + LEASE_S)
            .scalar_subquery()
        )

    def _lease(self, item: Row) -> Entry:
        mine = and_(_assigned.item == item["id"], _assigned.rater == self._rater.id)
        old = self._db.execute(select(work.assignments).where(mine)).mappings().first()
        lease = {
            "state": "leased", "until": self._now + LEASE_S, "position": self._handed_out,
        }  # fmt: skip
        if old:
            self._db.execute(update(work.assignments).where(mine).values(lease))
            return Entry(item, old["key"], old["swapped"], self._handed_out, old["vote"])
        new = {
            "item": item["id"], "rater": self._rater.id, "task": self._task["id"],
            "key": secrets.token_urlsafe(16), "swapped": self._side(item), "surplus": False,
        }  # fmt: skip
        self._db.execute(insert(work.assignments).values({**new, **lease}))
        return Entry(item, new["key"], new["swapped"], self._handed_out, None)

    def _side(self, item: Row) -> bool:
        """Whether the first set of a comparison stands right for this rater."""
        if not item["pair"]:
            return False
        by_me = _assigned.rater == self._rater.id
        same = _items.pair == item["pair"]
        coin = generator(self._task["seed"], "side", self._rater.name, item["id"]).random() < 0.5
        both = and_(by_me, same)
        return swap_sides(self._balance(by_me), self._balance(same), self._balance(both), coin)

    def _balance(self, which: ColumnElement[bool]) -> int:
        """Swapped minus unswapped assignments of this task."""
        query = (
            select(func.count(), func.coalesce(func.sum(_assigned.swapped.cast(_INTEGER)), 0))
            .join_from(work.assignments, work.items, _items.id == _assigned.item)
            .where(_assigned.task == self._task["id"], which)
        )
        total, swapped = self._db.execute(query).one()
        return 2 * swapped - total

    def _page(self, entries: list[Entry]) -> HandedPage:
        return HandedPage(entries[0].item["page"], entries, self._now + LEASE_S)


_INTEGER = work.items.c.rank.type
_ASSIGNMENT = [
    _assigned[name].label(label)
    for name, label in (
        ("key", "key"), ("swapped", "swapped"), ("position", "position"), ("vote", "newest"),
        ("until", "until"),
    )
]  # fmt: skip


def _entry(row: Row) -> Entry:
    return Entry(row, row["key"], row["swapped"], row["position"], row["newest"])
