"""Hand out pages: a rater's own leased ones first, then new ones in the order of the queue."""

import secrets
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import (
    Connection,
    Integer,
    and_,
    bindparam,
    func,
    insert,
    select,
    true,
    update,
)

from sayso.feedback import work_tables as work
from sayso.feedback.work_tables import Row
from sayso.web.work.assigned import Page, asked_too, by_page, free_pages, given_back, held
from sayso.web.work.counting import votes_of
from sayso.web.work.leases import Usable, set_aside
from sayso.web.work.people import Person
from sayso.web.work.queue import (
    CHECKS,
    LEASE_S,
    Control,
    control_at,
    first_rank,
    generator,
    has_room,
    is_reserved,
    swap_sides,
)

_items, _assigned = work.items.c, work.assignments.c


_LOOKED_AT = 1000  # items set aside, when nothing else is left
MOST_BROKEN = 20
"""Items with unreadable pictures that one request sets aside before it gives up."""


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


def hand_out(
    db: Connection, task: Row, rater: Person, have: Sequence[str], n: int, now: float,
    usable: Usable,
) -> tuple[list[HandedPage], bool]:  # fmt: skip
    """Up to `n` pages for a rater, who keeps the leases of the pages `have`.

    When nothing else is left, items that were set aside are looked at again.

    Args:
        task: from `locked_task`.
        now: seconds since the epoch.
    Returns: the pages, and whether so many pictures could not be read that the search was given up.
    """
    turn = _HandingOut(db, task, rater, now, usable)
    pages = [page for page in turn.renewed() if page.id not in have][:n]
    pages += turn.new_pages(n - len(pages))
    if not pages and _take_back(db, task, usable):
        pages = turn.new_pages(n)
    turn.leave()
    # a page that the rater still has, and somebody else had meanwhile, is leased anew, not sent
    return [page for page in pages if page.id not in have], turn.patience == 0


def _take_back(db: Connection, task: Row, usable: Usable) -> bool:
    """Hand out again what was set aside and can be read now: whether there was any."""
    aside = select(work.items).where(_items.task == task["id"], _items.broken == true())
    mended = [row["id"] for row in db.execute(aside.limit(_LOOKED_AT)).mappings() if usable(row)]
    set_aside(db, mended, broken=False)
    return bool(mended)


_participants = work.participants.c
_WHO = and_(
    _participants.task == bindparam("of_task"), _participants.rater == bindparam("by_rater")
)
_PARTICIPANT = select(work.participants).where(_WHO)
_LEAVE = update(work.participants).where(_WHO)
_LEASE = insert(work.assignments)
_SET_LEASE = update(work.assignments).where(
    _assigned.rater == bindparam("by_rater"),
    _assigned.item.in_(bindparam("of_items", expanding=True)),
)
_BALANCE = (
    select(
        func.count().label("total"),
        func.coalesce(func.sum(_assigned.swapped.cast(Integer)), 0).label("swapped"),
    )
    .join_from(work.assignments, work.items, _items.id == _assigned.item)
    # a vote taken over from another task was not handed out here
    .where(_items.task == bindparam("of_task"), _assigned.position >= 0)
    .where(_items.id == bindparam("of_item"))
)


class _HandingOut:
    """One rater at one task in one transaction."""

    def __init__(
        self, db: Connection, task: Row, rater: Person, now: float, usable: Usable
    ) -> None:
        self._db, self._task, self._rater, self._now = db, task, rater, now
        self._usable = usable
        self._who = {"of_task": task["id"], "by_rater": rater.id}
        self._start = first_rank(task["n_ranks"], task["seed"], rater.name)
        self._cursor, self._handed_out, self._leaning = self._participate()
        self._new: list[dict[str, Any]] = []
        self.patience = MOST_BROKEN

    def _participate(self) -> tuple[int, int, int]:
        row = self._db.execute(_PARTICIPANT, self._who).mappings().first()
        if row:
            return row["cursor"], row["handed_out"], row["leaning"]
        new = {
            "task": self._task["id"], "rater": self._rater.id, "cursor": self._start,
            "handed_out": 0, "seen_at": self._now,
            "all_votes": votes_of(self._db, self._task["id"], self._rater.id),
        }  # fmt: skip
        self._db.execute(insert(work.participants).values(new))
        return self._start, 0, 0

    def leave(self) -> None:
        """Write the new leases, and how far the rater is."""
        self._write_leases()
        seen = {
            "cursor": self._cursor, "handed_out": self._handed_out, "leaning": self._leaning,
            "seen_at": self._now,
        }  # fmt: skip
        self._db.execute(_LEAVE, {**seen, **self._who})

    # pages leased before

    def renewed(self) -> list[HandedPage]:
        """The rater's leased pages, their leases renewed; what others took meanwhile is gone."""
        rows = held(self._db, self._task, self._rater.id, self._now)
        broken = [row["id"] for row in rows if not self._usable(row)]
        set_aside(self._db, broken)
        kept = [row for row in rows if row["id"] not in broken and self._still_ours(row)]
        ids = {row["id"] for row in kept}
        self._set_lease(list(ids), "leased", self._now + LEASE_S)
        self._set_lease([r["id"] for r in rows if r["id"] not in ids], "released", 0.0)
        return [self._page([_entry(row) for row in page]) for page in by_page(kept)]

    def _still_ours(self, row: Row) -> bool:
        if is_reserved(row["my_until"], self._now):
            return True
        return has_room(row["overlap"], row["votes"], row["reserved"])

    def _set_lease(self, items: Sequence[str], state: str, until: float) -> None:
        if items:
            these = {"by_rater": self._rater.id, "of_items": items}
            self._db.execute(_SET_LEASE, {**these, "state": state, "until": until})

    # new pages

    def new_pages(self, n: int) -> list[HandedPage]:
        """Up to `n` more pages in the rater's order, leased; fewer if nothing is left.

        What was given back comes first, a check like any other page: if one of them came again at
        another time than the other, raters could tell them.
        """
        back = self._given_back(n)
        return [*back, *self._unseen_pages(n - len(back))]

    def _given_back(self, n: int) -> list[HandedPage]:
        pages = given_back(self._db, self._task, self._rater.id, self._now, n)
        broken = [row["id"] for page in pages for row in page if not self._usable(row)]
        set_aside(self._db, broken)
        whole = [page for page in pages if all(row["id"] not in broken for row in page)]
        found = [self._hand(page, is_check=True) for page in whole]
        self._write_leases()  # they are not free any more
        return found

    def _unseen_pages(self, n: int) -> list[HandedPage]:
        kinds: list[Control] = [self._kind(self._handed_out + i) for i in range(n)]
        checks: dict[Control, deque[Page]] = {
            c: deque(self._free(c, self._start, kinds.count(c))) for c in CHECKS if c in kinds
        }
        ordinary = deque(self._free("", self._cursor, n - sum(map(len, checks.values()))))
        found: list[HandedPage] = []
        for kind in kinds:
            line = checks.get(kind) or ordinary
            if not line:
                break
            found.append(self._hand(line.popleft(), is_check=line is not ordinary))
        if len(found) < n and not ordinary:  # what stands beside gold, and must be rated too
            beside = self._free("gold", self._start, n - len(found), also_known=False)
            found += [self._hand(page, is_check=True) for page in beside]
        return found

    def _kind(self, position: int) -> Control:
        task = self._task
        shares = task["gold_share"], task["attention_share"]
        return control_at(position, task["seed"], self._rater.name, *shares)

    def _free(self, control: Control, start: int, n: int, also_known: bool = True) -> list[Page]:
        """The first `n` free pages at or after rank `start`, going round once."""
        found: list[Page] = []
        for ranks in (range(start, self._task["n_ranks"]), range(start)):
            if len(found) < n:
                found += self._whole(control, ranks, n - len(found), also_known)
        return found

    def _whole(self, control: Control, ranks: range, n: int, also_known: bool) -> list[Page]:
        """Free pages whose pictures can be read; the others are set aside while patience lasts."""
        while True:
            who = self._rater.id
            wanted = (control, ranks, n, also_known)
            pages = free_pages(self._db, self._task, who, self._now, *wanted)
            broken = [row["id"] for page in pages for row in page if not self._usable(row)]
            if not broken:
                return pages
            if not self.patience:
                return [page for page in pages if all(map(self._usable, page))]
            given_up = broken[: self.patience]
            set_aside(self._db, given_up)
            self.patience -= len(given_up)

    def _hand(self, rows: Page, is_check: bool) -> HandedPage:
        if not is_check:
            self._cursor = rows[0]["rank"] + 1
        page = self._page([self._lease(row) for row in rows])
        self._handed_out += 1
        return page

    def _lease(self, item: Row) -> Entry:
        lease = {
            "state": "leased", "until": self._now + LEASE_S, "position": self._handed_out,
        }  # fmt: skip
        if item["my_key"]:  # given back earlier
            again = {"by_rater": self._rater.id, "of_items": [item["id"]]}
            self._db.execute(_SET_LEASE, {**lease, **again})
            return _entry(item)._replace(position=self._handed_out)
        key, swapped = secrets.token_urlsafe(16), self._side(item)
        self._new.append({
            "item": item["id"], "rater": self._rater.id, "task": self._task["id"], "key": key,
            "swapped": swapped, "surplus": False, **lease,
        })  # fmt: skip
        if item["control"] == "attention":
            self._bar_picture(item["id"])
        return Entry(item, key, swapped, self._handed_out, None)

    def _bar_picture(self, check: str) -> None:
        """Whoever saw a picture in a check is not asked about it, should it be wanted once more."""
        item = asked_too(self._db, check)
        if item is not None:
            self._new.append({
                "item": item, "rater": self._rater.id, "task": self._task["id"],
                "key": secrets.token_urlsafe(16), "swapped": False, "surplus": False,
                "state": "refused", "until": 0.0, "position": -1,
            })  # fmt: skip

    def _write_leases(self) -> None:
        if self._new:
            self._db.execute(_LEASE, self._new)
            self._new = []

    def _side(self, item: Row) -> bool:
        """Whether the first set of a comparison stands right for this rater."""
        if not item["pair"]:
            return False
        self._write_leases()  # they count
        drawn = generator(self._task["seed"], "side", self._rater.name, item["id"]).random()
        swapped = swap_sides(self._leaning, self._balance(item["id"]), drawn)
        self._leaning += 1 if swapped else -1
        return swapped

    def _balance(self, item: str) -> int:
        """Swapped minus unswapped assignments of an item."""
        which = {"of_task": self._task["id"], "of_item": item}
        row = self._db.execute(_BALANCE, which).mappings().one()
        return 2 * row["swapped"] - row["total"]

    def _page(self, entries: list[Entry]) -> HandedPage:
        return HandedPage(entries[0].item["page"], entries, self._now + LEASE_S)


def _entry(row: Row) -> Entry:
    """What the rater's own assignment says of a page leased before."""
    return Entry(row, row["my_key"], row["my_swapped"], row["my_position"], row["my_vote"])
