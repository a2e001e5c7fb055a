"""The same item in several tasks: a rater's answer to it counts in all of them.

The store has one live vote per item, rater and question, whichever task it was given in.
"""

import secrets
from typing import Any

from sqlalchemy import Connection, Table, and_, false, insert, literal, select

from sayso import work_tables as work
from sayso.vote_tables import RETRACTED, VOTE_TABLES
from sayso.web.counting import assign, count
from sayso.web.people import Person
from sayso.web.tasks import TaskOptions
from sayso.work_tables import Row


def take_over_votes(db: Connection, task: str, options: TaskOptions) -> None:
    """Whoever judged an item in another task has done so here; people and programs are apart."""
    query = _votes_on_items(task, options.kind).where(work.raters.c.simulated == options.simulated)
    found = db.execute(query).mappings().all()
    if found:
        db.execute(insert(work.assignments), [_answered(task, row) for row in found])


def _votes_on_items(task: str, kind: str) -> Any:
    table, items, people, done = VOTE_TABLES[kind], work.items, work.raters, work.assignments
    later = table.alias()
    there = and_(done.c.item == items.c.id, done.c.rater == people.c.id)
    return (
        select(items.c.id.label("item"), people.c.id.label("rater"), table.c.id.label("vote"))
        .join_from(table, people, people.c.name == table.c.rater)
        .join(items, and_(items.c.task == task, items.c.content == _content(table)))
        .where(~select(literal(1)).where(later.c.supersedes == table.c.id).exists())
        .where(~select(literal(1)).where(there).exists())
        .where(table.c.value != RETRACTED, table.c.attention == false())
    )


def _content(table: Table) -> Any:
    """As `Draft.content` of ordinary and gold items."""
    key = table.c.sample_id if "sample_id" in table.c else table.c.pair
    return table.c.question + ":" + key


def _answered(task: str, row: Row) -> dict[str, Any]:
    return {
        **row, "task": task, "key": secrets.token_urlsafe(16), "state": "answered", "until": 0.0,
        "swapped": False, "position": -1, "surplus": False,
    }  # fmt: skip


def newest_vote(db: Connection, kind: str, item: Row, rater: Person) -> str | None:
    """The rater's newest vote, from any task, on what an item shows; a first one here replaces it.

    None for checks of attention: they are not about what they show.
    """
    if item["control"] == "attention":
        return None
    table = VOTE_TABLES[kind]
    asked = (table.c.rater == rater.name, table.c.question == item["question"])
    if kind == "rate":
        shown = (table.c.sample_id == item["samples"][0][0],)
    else:
        shown = (table.c.prompt_id == item["prompt_id"], table.c.pair == item["pair"])
    first = and_(*shown, *asked, table.c.supersedes.is_(None), table.c.attention == false())
    vote, later = db.scalar(select(table.c.id).where(first)), None
    while vote is not None:
        later, vote = vote, db.scalar(select(table.c.id).where(table.c.supersedes == vote))
    return later


def follow(db: Connection, item: Row, rater: Person, replaced: str, vote: str, ends: bool) -> None:
    """Where the replaced vote counts in other tasks, the new one does; or none, if it `ends` it."""
    items, given = work.items, work.assignments
    others = select(work.tasks.c.id).where(work.tasks.c.id != item["task"])
    here = and_(given.c.item == items.c.id, given.c.rater == rater.id, given.c.vote == replaced)
    query = (
        select(items, given.c.state.label("my_state"), given.c.surplus.label("my_surplus"))
        .join(given, here)
        .where(items.c.task.in_(others), items.c.content == item["content"])
    )
    for other in db.execute(query).mappings().all():
        state = "released" if ends else "answered"
        assign(db, other["id"], rater.id, vote=vote, state=state, until=0.0)
        change = (not ends) - (other["my_state"] == "answered")
        if change:
            count(db, other, rater.id, change, counts=not other["my_surplus"])
