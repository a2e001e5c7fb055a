"""What reviewers decide on: items on which raters disagree, and what became of them."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    Table,
    and_,
    case,
    func,
    literal,
    select,
    true,
)

from sayso.base.types import Choice, outcome
from sayso.feedback import work_tables as work
from sayso.feedback.vote_queries import counting, is_live
from sayso.feedback.vote_tables import VOTE_TABLES
from sayso.feedback.work_tables import VOTED, Row
from sayso.web.work.across_tasks import content_of
from sayso.web.work.item_pictures import as_seen, items_by_id, picture_urls


class Split(NamedTuple):
    """An item on which raters disagree: its id, and what it asks of what (`Draft.content`)."""

    item: str
    content: str


@dataclass(frozen=True, slots=True)
class Standing:
    """How far the decisions are, of the items in the order of the task.

    `waiting` may go to the reviewer; the reviewer has `rated` the others as a rater.
    """

    decided: list[Split]
    waiting: list[Split]
    rated: list[Split]
    mine: int


def disagreements(db: Connection, task: Row) -> list[Split]:
    """The items on which raters disagree; it takes a second for a hundred thousand votes."""
    table, items, given = VOTE_TABLES[task["kind"]], work.items.c, work.assignments.c
    voted = and_(given.item == items.id, given.state == VOTED)
    query = (
        select(items.id, items.content)
        .join_from(work.items, work.assignments, voted)
        .join(table, table.c.id == given.vote)
        .where(items.task == task["id"], items.control != "attention", counting(table, "label"))
        .group_by(items.id, items.content, items.rank, items.slot)
        .having(func.count(_chosen(table).distinct()) > 1)
        .order_by(items.rank, items.slot)
    )
    return [Split(*row) for row in db.execute(query)]


def _chosen(table: Table) -> ColumnElement[str]:
    """The value, of a comparison the model it prefers, whichever stood left."""
    if "left_model" not in table.c:
        return table.c.value
    sides = {"left": table.c.left_model, "right": table.c.right_model}
    ties = {value: literal("tie") for value in get_args(Choice) if outcome(value) == "tie"}
    return case({**sides, **ties}, value=table.c.value, else_=table.c.value)


def standing(db: Connection, task: Row, split: Sequence[Split], reviewer: str) -> Standing:
    """What is decided, and what waits for this reviewer, who is named."""
    table = VOTE_TABLES[task["kind"]]
    by = _contents(db, task, counting(table, "decision"))
    passed = and_(is_live(table), table.c.decision == true(), table.c.value == "skip")
    mine = {content for content, raters in by.items() if reviewer in raters}
    own = {*_contents(db, task, and_(table.c.rater == reviewer, counting(table, "opinion")))}
    skipped = {c for c, raters in _contents(db, task, passed).items() if reviewer in raters}
    decided = [s for s in split if s.content in by]
    left = [s for s in split if s.content not in by]
    return Standing(
        decided,
        waiting=[s for s in left if s.content not in own | skipped],
        rated=[s for s in left if s.content in own],
        mine=sum(s.content in mine for s in split),
    )


def _contents(db: Connection, task: Row, which: ColumnElement[bool]) -> dict[str, set[str]]:
    """What votes are about → who cast them."""
    table = VOTE_TABLES[task["kind"]]
    found: dict[str, set[str]] = defaultdict(set)
    for content, rater in db.execute(select(content_of(table), table.c.rater).where(which)):
        found[content].add(rater)
    return found


# what was decided


def decided_rows(db: Connection, task: Row, part: Collection[Split]) -> list[dict[str, Any]]:
    """Items that were decided, with the raters' votes and the decisions, in the given order."""
    found = items_by_id(db, [split.item for split in part])
    return [_decided(db, task, found[split.item]) for split in part]


def _decided(db: Connection, task: Row, item: Row) -> dict[str, Any]:
    table = VOTE_TABLES[task["kind"]]
    votes = db.execute(_votes(table, item)).mappings().all()
    by_content = and_(content_of(table) == item["content"], counting(table, "decision"))
    decisions = db.execute(select(table).where(by_content).order_by(table.c.seq)).mappings().all()
    return {
        "item_id": item["id"],
        "prompt": item["prompt"],
        "question": item["question"],
        "kind": task["kind"],
        "sides": picture_urls(item, task["seed"]),
        "votes": [
            {
                "rater": f"Rater {n}",
                "value": as_seen(v, item, task["seed"]),
                "reason": v["shown"].get("reason", ""),
            }
            for n, v in enumerate(votes, 1)
        ],
        "decisions": [
            {"by": v["rater"], "value": as_seen(v, item, task["seed"])} for v in decisions
        ],
    }


def _votes(table: Table, item: Row) -> Select[Any]:
    given = work.assignments.c
    return (
        select(table)
        .join(work.assignments, given.vote == table.c.id)
        .where(given.item == item["id"], given.state == VOTED, counting(table, "vote"))
        .order_by(table.c.seq)
    )
