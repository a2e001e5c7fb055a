"""Items as reviewers and admins see them: one order of the sides for each, which tells no model."""

import itertools
from collections.abc import Iterable

from sqlalchemy import Connection, select

from sayso.feedback import work_tables as work
from sayso.feedback.work_tables import Row
from sayso.web.work.queue import generator, opposite


def sees_swapped(item: str, seed: int) -> bool:
    """Whether the first set stands right: by chance, so that reviewers are blind too.

    Args:
        seed: of the item's task.
    """
    return generator(seed, "reviewer", item).random() < 0.5


def picture_urls(item: Row, seed: int) -> list[list[str]]:
    """The addresses of the pictures, side by side; they tell the place, and no set."""
    places = itertools.count()
    return [[f"/admin/i/{item['id']}/{next(places)}" for _ in side] for side in sides(item, seed)]


def picture_paths(db: Connection, item: str) -> list[str]:
    """The paths of an item's pictures in the order of `picture_urls`; none of an unknown item."""
    query = select(work.items, work.tasks.c.seed).join(work.tasks).where(work.items.c.id == item)
    row = db.execute(query).mappings().first()
    return [path for side in sides(row, row["seed"]) for path in side] if row else []


def sides(item: Row, seed: int) -> list[list[str]]:
    """The paths of the pictures, left to right."""
    return item["images"][:: -1 if sees_swapped(item["id"], seed) else 1]


def as_seen(vote: Row, item: Row, seed: int) -> str:
    """The value of a vote, with left and right as reviewers see them."""
    value = vote["value"]
    if value not in ("left", "right"):
        return value
    swapped = vote["left_ids"] != item["samples"][0]
    return opposite(value) if swapped != sees_swapped(item["id"], seed) else value


def items_by_id(db: Connection, ids: Iterable[str]) -> dict[str, Row]:
    """Rows of items."""
    wanted, found = list(ids), {}
    for i in range(0, len(wanted), 500):
        query = select(work.items).where(work.items.c.id.in_(wanted[i : i + 500]))
        found |= {row["id"]: row for row in db.execute(query).mappings()}
    return found
