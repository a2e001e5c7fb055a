"""Reviewers' decisions on what raters disagree about: votes beside theirs that fill no place."""

from sqlalchemy import Connection, and_, select, true

from sayso.feedback import work_tables as work
from sayso.feedback.vote_queries import counting
from sayso.feedback.vote_tables import RETRACTED, VOTE_TABLES
from sayso.feedback.work_tables import Row
from sayso.web.work.across_tasks import bar, of_item, on_item
from sayso.web.work.assigned import locked_task_of
from sayso.web.work.item_pictures import sees_swapped
from sayso.web.work.people import Person
from sayso.web.work.queue import Newest
from sayso.web.work.voting import (
    Asked,
    Context,
    Stored,
    Vote,
    VoteRefused,
    check,
    repeated,
    replaced_by,
    store,
)


def decide(db: Connection, reviewer: Person, vote: Vote, context: Context) -> Stored:
    """Store a decision in the open writing transaction; the same again changes nothing.

    Raises: VoteRefused: as `cast_vote`; "rated" to who has rated the item as a rater, "decided"
        if another reviewer was faster.
    """
    task = locked_task_of(db, vote.item_id)
    item = _item(db, vote.item_id)
    if task is None or item is None or item["control"] == "attention":
        raise VoteRefused("unknown_item", "There is no such item; reload to continue.")
    stored = repeated(db, vote, reviewer, task)
    if stored is not None:
        return stored
    check(vote, item, task)
    newest = _newest(db, task["kind"], item, reviewer)
    replaced = replaced_by(vote, newest)
    if replaced is None or (newest and newest.retracted):
        _refuse_late(db, task["kind"], item, reviewer)
    swapped = sees_swapped(item["id"], task["seed"])
    asked = Asked({**item, "my_position": -1, "my_swapped": swapped}, task)
    store(db, reviewer, vote, context, asked, replaced)
    bar(db, item, reviewer)
    return Stored(vote.id, task, surplus=False)


def _item(db: Connection, item: str) -> Row | None:
    query = select(work.items).where(work.items.c.id == item)
    return db.execute(query).mappings().first()


def _newest(db: Connection, kind: str, item: Row, reviewer: Person) -> Newest | None:
    """The reviewer's newest decision on what the item shows, or how it was taken back."""
    table = VOTE_TABLES[kind]
    later = table.alias()
    mine = and_(on_item(table), table.c.rater == reviewer.name, table.c.decision == true())
    newest = ~select(later.c.seq).where(later.c.supersedes == table.c.id).exists()
    query = select(table.c.id, table.c.value).where(mine, newest)
    row = db.execute(query, of_item(kind, item)).first()
    return Newest(row.id, row.value == RETRACTED) if row else None


def _refuse_late(db: Connection, kind: str, item: Row, reviewer: Person) -> None:
    """Refuse what was settled while the page was open."""
    table = VOTE_TABLES[kind]
    here, values = on_item(table), of_item(kind, item)
    own = and_(here, table.c.rater == reviewer.name, counting(table, "opinion"))
    if db.execute(select(table.c.id).where(own), values).first():
        raise VoteRefused(
            "rated",
            "You have rated this yourself, so another reviewer decides on it; this decision was "
            "not kept.",
        )
    decided = and_(here, table.c.rater != reviewer.name, counting(table, "decision"))
    if db.execute(select(table.c.id).where(decided), values).first():
        raise VoteRefused(
            "decided",
            "Another reviewer has decided this in the meantime; this decision was not kept.",
        )
