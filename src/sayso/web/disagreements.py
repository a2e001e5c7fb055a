"""What reviewers decide on: items on which raters disagree, shown without telling any model."""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Connection, select

from sayso import work_tables as work
from sayso.types import outcome
from sayso.votes.ballots import ADJUDICATION
from sayso.web.overview import expected, items_by_id
from sayso.web.queue import generator, opposite
from sayso.work_tables import Row


def disagreements(
    db: Connection, task: Row, votes: Iterable[Row], reviewer: str = ""
) -> list[dict[str, Any]]:
    """Items on which raters disagree, undecided ones first; sides as `reviewer_sees_swapped`.

    Args:
        reviewer: name of who asks; `judged` marks the items on which this person has an answer.
    """
    by_item: dict[str, list[Row]] = defaultdict(list)
    for vote in votes:
        if not expected(vote):
            by_item[vote["item_id"]].append(vote)
    split = {item: asked for item, asked in by_item.items() if _is_split(asked)}
    found = items_by_id(db, split)
    swapped = _swaps(db, task)
    rows = [
        {
            **_disagreement(found[item], task, asked, swapped),
            "judged": any(v["rater"] == reviewer and not _is_decision(v) for v in asked),
        }
        for item, asked in split.items()
    ]
    return sorted(rows, key=lambda row: row["decided"] is not None)


def _is_split(votes: list[Row]) -> bool:
    """Whether the raters' answers differ, skips and a reviewer's decision left out."""
    plain = {_chosen(v) for v in votes if not _is_decision(v)} - {"skip"}
    return len(plain) > 1


def _is_decision(vote: Row) -> bool:
    return bool(vote["shown"].get(ADJUDICATION))


def _chosen(vote: Row) -> str:
    """The answer, of a comparison the sets it prefers, whichever stood left."""
    if vote["value"] in ("left", "right"):
        return "|".join(vote[f"{vote['value']}_ids"])
    return outcome(vote["value"])


def _swaps(db: Connection, task: Row) -> dict[tuple[str, str], bool]:
    table, people = work.assignments, work.raters
    query = (
        select(table.c.item, people.c.name, table.c.swapped)
        .join_from(table, people, people.c.id == table.c.rater)
        .where(table.c.task == task["id"])
    )
    return {(item, name): swapped for item, name, swapped in db.execute(query)}


def _disagreement(
    item: Row, task: Row, votes: list[Row],
    swapped: Mapping[tuple[str, str], bool],
) -> dict[str, Any]:  # fmt: skip
    def value(vote: Row) -> str:
        seen = swapped.get((vote["item_id"], vote["rater"]), False)
        turned = seen != reviewer_sees_swapped(item["id"], task["seed"])
        return opposite(vote["value"]) if turned else vote["value"]

    decisions = [value(v) for v in votes if _is_decision(v)]
    others = [v for v in votes if not _is_decision(v)]
    return {
        "item_id": item["id"],
        "prompt": item["prompt"],
        "question": item["question"],
        "kind": task["kind"],
        "votes": [
            {"rater": f"Rater {n}", "value": value(v), "reason": v["shown"].get("reason", "")}
            for n, v in enumerate(others, 1)
        ],
        "decided": decisions[-1] if decisions else None,
        **_pictures(item, reviewer_sees_swapped(item["id"], task["seed"])),
    }


def reviewer_sees_swapped(item: str, seed: int) -> bool:
    """Whether a reviewer is shown the first set right: by chance, so reviewers are blind too."""
    return generator(seed, "reviewer", item).random() < 0.5


def _pictures(item: Row, swapped: bool) -> dict[str, list[str]]:
    """The addresses of the pictures as the reviewer sees them; they tell the place, and no set."""
    places = itertools.count()
    sides = _sides(item, swapped)
    urls = [[f"/admin/i/{item['id']}/{next(places)}" for _ in side] for side in sides]
    if len(urls) == 1:
        return {"images": urls[0]}
    return dict(zip(("left", "right"), urls, strict=True))


def _sides(item: Row, swapped: bool) -> list[list[str]]:
    return item["images"][::-1] if swapped else item["images"]


def reviewer_pictures(db: Connection, item: str) -> list[str]:
    """The paths of an item's pictures in the order in which reviewers see them."""
    query = select(work.items, work.tasks.c.seed).join(work.tasks).where(work.items.c.id == item)
    row = db.execute(query).mappings().first()
    if row is None:
        return []
    sides = _sides(row, reviewer_sees_swapped(item, row["seed"]))
    return [path for side in sides for path in side]
