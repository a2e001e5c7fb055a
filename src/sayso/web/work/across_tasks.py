"""The same item in several tasks: a rater's vote on it counts in all of them.

The store has one live vote per item, rater and question, whichever task it was given in.
"""

import secrets
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    Table,
    and_,
    bindparam,
    false,
    insert,
    literal,
    select,
    true,
)

from sayso.feedback import work_tables as work
from sayso.feedback.vote_queries import counting, is_live
from sayso.feedback.vote_tables import VOTE_TABLES
from sayso.feedback.work_tables import VOTED, Row
from sayso.web.work.counting import assign, count
from sayso.web.work.people import Person
from sayso.web.work.tasks import TaskOptions


def take_over_votes(db: Connection, task: str, options: TaskOptions) -> None:
    """Whoever rated an item in another task has done so here; people and programs are apart.

    Who has decided on it as a reviewer is not asked for it as a rater.
    """
    table = VOTE_TABLES[options.kind]
    votes = counting(table, "opinion"), VOTED
    decisions = and_(is_live(table), table.c.decision == true()), "refused"
    for which, state in (votes, decisions):
        query = _votes_on_items(task, options.kind, which)
        kinds = work.raters.c.simulated, table.c.simulated
        query = query.where(*(kind == options.simulated for kind in kinds))
        found = db.execute(query).mappings().all()
        if found:
            db.execute(insert(work.assignments), [_taken_over(task, row, state) for row in found])


def _votes_on_items(task: str, kind: str, which: ColumnElement[bool]) -> Any:
    table, items, people, done = VOTE_TABLES[kind], work.items, work.raters, work.assignments
    there = and_(done.c.item == items.c.id, done.c.rater == people.c.id)
    return (
        select(items.c.id.label("item"), people.c.id.label("rater"), table.c.id.label("vote"))
        .join_from(table, people, people.c.name == table.c.rater)
        .join(items, and_(items.c.task == task, items.c.content == content_of(table)))
        .where(~select(literal(1)).where(there).exists(), which)
    )


def content_of(table: Table) -> ColumnElement[str]:
    """What a vote is about, as `Draft.content` of ordinary and gold items."""
    key = table.c.sample_id if "sample_id" in table.c else table.c.pair
    return table.c.question + ":" + key


def _taken_over(task: str, row: Row, state: str) -> dict[str, Any]:
    vote = row["vote"] if state == VOTED else None
    return {
        **row, "vote": vote, "task": task, "key": secrets.token_urlsafe(16), "state": state,
        "until": 0.0, "swapped": False, "position": -1, "surplus": False,
    }  # fmt: skip


def bar(db: Connection, item: Row, rater: Person) -> None:
    """Who decides on an item is not asked for it as a rater, here and in other tasks."""
    items, given = work.items, work.assignments
    mine = and_(given.c.item == items.c.id, given.c.rater == rater.id)
    query = (
        select(items.c.id, items.c.task, given.c.state)
        .join(given, mine, isouter=True)
        .where(items.c.task.in_(select(work.tasks.c.id)), items.c.content == item["content"])
    )
    for other in db.execute(query).mappings().all():
        if other["state"] is None:
            row = {"item": other["id"], "rater": rater.id, "vote": None}
            db.execute(insert(given).values(_taken_over(other["task"], row, "refused")))
        elif other["state"] != VOTED:
            assign(db, other["id"], rater.id, state="refused", until=0.0)


def newest_vote(db: Connection, kind: str, item: Row, rater: Person) -> str | None:
    """The rater's newest vote, from any task, on what an item shows; a first one here replaces it.

    None for checks of attention: they are not about what they show.
    """
    if item["control"] == "attention":
        return None
    which = {"by_rater": rater.name, **of_item(kind, item)}
    vote, later = db.scalar(_FIRST[kind], which), None
    while vote is not None:
        later, vote = vote, db.scalar(_LATER[kind], {"of_vote": vote})
    return later


def on_item(table: Table) -> ColumnElement[bool]:
    """Whether a vote is about what an item shows and asks (`of_item`), whichever task put it."""
    if "sample_id" in table.c:
        shown = table.c.sample_id == bindparam("of_sample")
    else:
        shown = and_(
            table.c.prompt_id == bindparam("of_prompt"), table.c.pair == bindparam("of_pair")
        )
    return and_(shown, table.c.question == bindparam("of_question"))


def of_item(kind: str, item: Row) -> dict[str, str]:
    """The values for `on_item`."""
    if kind == "rate":
        return {"of_question": item["question"], "of_sample": item["samples"][0][0]}
    return {
        "of_question": item["question"], "of_prompt": item["prompt_id"], "of_pair": item["pair"],
    }  # fmt: skip


def _first(table: Table) -> Select[Any]:
    return select(table.c.id).where(
        on_item(table), table.c.rater == bindparam("by_rater"), table.c.supersedes.is_(None),
        table.c.attention == false(), table.c.decision == false(),
    )  # fmt: skip


_FIRST = {kind: _first(table) for kind, table in VOTE_TABLES.items()}
_LATER = {
    kind: select(table.c.id).where(table.c.supersedes == bindparam("of_vote"))
    for kind, table in VOTE_TABLES.items()
}


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
        state = "released" if ends else VOTED
        assign(db, other["id"], rater.id, vote=vote, state=state, until=0.0)
        change = (not ends) - (other["my_state"] == VOTED)
        if change:
            counts = not other["my_surplus"] and not rater.excluded
            count(db, other, rater.id, change, counts)
