"""Accept votes: each is stored once, in one transaction with everything that follows from it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, get_args

from sqlalchemy import Connection, Table, insert, select, update

from sayso import work_tables as work
from sayso.feedback import vote_row
from sayso.types import Choice, Comparison, Question, Rating, Value, digest
from sayso.vote_tables import RETRACTED
from sayso.web.handing_out import locked_task
from sayso.web.opening import VOTE_TABLES
from sayso.web.people import Person
from sayso.web.queue import LEASE_S, Newest, has_room, is_reserved, opposite, superseded
from sayso.work_tables import Row

ANSWERS: Mapping[str, tuple[str, ...]] = {"rate": get_args(Value), "compare": get_args(Choice)}


@dataclass(frozen=True, slots=True)
class Vote:
    """An answer as the page sends it; times in milliseconds, absolute ones by the page's clock."""

    id: str
    item_id: str
    question: Question
    value: str
    shown_at: float
    answered_at: float
    latency_ms: float
    hidden_ms: float
    position: int
    reason: str = ""
    guideline_version: int = 0
    supersedes: str | None = None


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What a vote is stored with and the page does not decide; `now` in seconds since the epoch."""

    session: str
    app_version: str
    now: float
    adjudication: bool = False


@dataclass(frozen=True, slots=True)
class Receipt:
    """What was stored. `closed`: the task takes no more votes, this one is kept as surplus."""

    id: str
    task: str
    surplus: bool
    closed: bool = False


class VoteRefused(Exception):  # noqa: N818 - it is an answer, not a failure
    """Why a vote is not stored: a code of the API and a sentence for the rater."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def cast_vote(db: Connection, rater: Person, vote: Vote, around: Circumstances) -> Receipt:
    """Store a vote in the open writing transaction; the same vote again changes nothing.

    Raises: VoteRefused: for an unknown item, an id stored with another body, a second live vote,
        or an answer that does not fit the question.
    """
    where = db.scalar(select(work.items.c.task).where(work.items.c.id == vote.item_id))
    if where is None:
        raise VoteRefused("unknown_item", "This page is unknown here; reload to go on.")
    task = locked_task(db, where)
    item = _item(db, vote.item_id)  # after the lock: its counters must be the newest
    stored = _stored(db, vote)
    if stored is not None:
        return _repeated(stored, vote, rater)
    assigned = _assignment(db, item, rater)
    if assigned is None:
        raise VoteRefused("unknown_item", "This page was not given to you; reload to go on.")
    _check(vote, item, task)
    replaced = _replaced(db, assigned, vote, task["kind"])
    counted = _counts(db, item, assigned, task, around)
    surplus = not counted and not around.adjudication
    _insert(db, rater, vote, around, item, task, assigned, replaced, surplus)
    _follow_up(db, item, task, assigned, vote, around.now, counted)
    return Receipt(vote.id, task["id"], surplus, task["state"] == "closed")


def _item(db: Connection, item_id: str) -> Row:
    return db.execute(select(work.items).where(work.items.c.id == item_id)).mappings().one()


def _stored(db: Connection, vote: Vote) -> Row | None:
    for table in VOTE_TABLES.values():
        row = db.execute(select(table).where(table.c.id == vote.id)).mappings().first()
        if row is not None:
            return row
    return None


def _repeated(stored: Row, vote: Vote, rater: Person) -> Receipt:
    if stored["body"] != _body(vote) or stored["rater"] != rater.name:
        raise VoteRefused(
            "vote_conflict", "An answer with this id is stored already, with another content."
        )
    closed = bool(stored["shown"].get("closed"))
    return Receipt(stored["id"], stored["task_id"], stored["surplus"], closed)


def _body(vote: Vote) -> str:
    return digest(asdict(vote), 32)


def _assignment(db: Connection, item: Row, rater: Person) -> Row | None:
    table = work.assignments
    mine = select(table).where(table.c.item == item["id"], table.c.rater == rater.id)
    return db.execute(mine).mappings().first()


def _check(vote: Vote, item: Row, task: Row) -> None:
    allowed = (*ANSWERS[task["kind"]], RETRACTED)
    if vote.question != item["question"]:
        raise VoteRefused("invalid", f"This page asks for {item['question']}.")
    if vote.value not in allowed:
        raise VoteRefused("invalid", f"{vote.value!r} is no answer; allowed: {', '.join(allowed)}.")


def _replaced(db: Connection, assigned: Row, vote: Vote, kind: str) -> str | None:
    table, newest = VOTE_TABLES[kind], None
    if assigned["vote"] is not None:
        value = db.scalar(select(table.c.value).where(table.c.id == assigned["vote"]))
        newest = Newest(assigned["vote"], value == RETRACTED)
    try:
        return superseded(newest, vote.value == RETRACTED, vote.supersedes)
    except ValueError as error:
        message = str(error)
        raise VoteRefused(
            "vote_conflict", f"{message[0].upper()}{message[1:]}; the first answer stands."
        ) from None


def _counts(db: Connection, item: Row, assigned: Row, task: Row, around: Circumstances) -> bool:
    """Whether the vote is one of those that the overlap asks for; a change stays what it was.

    Not counted are votes on an item that has its raters already, votes after the task was closed,
    and a reviewer's decision.
    """
    if assigned["state"] == "answered":
        return not assigned["surplus"]
    if around.adjudication or task["state"] == "closed":
        return False
    if assigned["state"] == "leased" and is_reserved(assigned["until"], around.now):
        return True
    return has_room(item["overlap"], item["votes"], _reserved(db, assigned, around.now))


def _reserved(db: Connection, assigned: Row, now: float) -> int:
    table = work.assignments
    others = select(table.c.until).where(
        table.c.item == assigned["item"], table.c.rater != assigned["rater"],
        table.c.state == "leased",
    )  # fmt: skip
    return sum(is_reserved(until, now) for until in db.scalars(others))


# what is written


def _insert(
    db: Connection, rater: Person, vote: Vote, around: Circumstances, item: Row,
    task: Row, assigned: Row, replaced: str | None, surplus: bool,
) -> None:  # fmt: skip
    shown = _shown(vote, around, item, task, assigned, surplus)
    # a retraction is a row of the table but no Rating: its value is put in last
    answer = ANSWERS[task["kind"]][0] if vote.value == RETRACTED else vote.value
    common: dict[str, Any] = {
        "id": vote.id, "rater": rater.name, "question": vote.question, "value": answer,
        "simulated": rater.simulated, "shown_at": vote.shown_at / 1000,
        "answered_at": vote.answered_at / 1000, "shown": shown, "supersedes": replaced,
    }  # fmt: skip
    if task["kind"] == "rate":
        sample = item["samples"][0][0]
        made: Rating | Comparison = Rating(**common, sample_id=sample, reason=vote.reason)
    else:
        made = _comparison(common, item, assigned["swapped"])
    more = {
        "task_id": task["id"], "item_id": item["id"], "body": _body(vote), "surplus": surplus,
        "attention": item["control"] == "attention",
    }  # fmt: skip
    table: Table = VOTE_TABLES[task["kind"]]
    db.execute(insert(table).values({**vote_row(made), **more, "value": vote.value}))


def _shown(
    vote: Vote, around: Circumstances, item: Row, task: Row, assigned: Row,
    surplus: bool,
) -> dict[str, object]:  # fmt: skip
    shown: dict[str, object] = {
        "task": task["id"], "item": item["id"], "page": item["page"], "slot": item["slot"],
        "position": assigned["position"], "page_position": vote.position,
        "images_per_page": task["images_per_page"], "latency_ms": vote.latency_ms,
        "hidden_ms": vote.hidden_ms, "session": around.session, "overlap_target": item["overlap"],
        "surplus": surplus, "guideline_version": vote.guideline_version,
        "app_version": around.app_version, "received_at": around.now, "prompt": item["prompt"],
        "prompt_id": item["prompt_id"], "reason": vote.reason,
    }  # fmt: skip
    if item["control"] and item["expected"]:
        expected = item["expected"]
        shown[item["control"]] = opposite(expected) if assigned["swapped"] else expected
    if around.adjudication:
        shown["adjudication"] = True
    if task["state"] == "closed":
        shown["closed"] = True
    return shown


def _comparison(common: dict[str, Any], item: Row, swapped: bool) -> Comparison:
    order = -1 if swapped else 1
    left, right = item["samples"][::order]
    left_model, right_model = item["models"][::order]
    return Comparison(
        **common, prompt_id=item["prompt_id"], left_ids=tuple(left), right_ids=tuple(right),
        left_model=left_model, right_model=right_model,
    )  # fmt: skip


def _follow_up(
    db: Connection, item: Row, task: Row, assigned: Row, vote: Vote,
    now: float, counted: bool,
) -> None:  # fmt: skip
    """Bring the assignment and the counters in line with the vote.

    A counted answer that is taken back keeps its place for the rater; an uncounted one had none.
    """
    retracts = vote.value == RETRACTED
    state, until = "answered", 0.0
    if retracts:
        state, until = ("leased", now + LEASE_S) if counted else ("released", 0.0)
    table = work.assignments
    mine = (table.c.item == assigned["item"], table.c.rater == assigned["rater"])
    values = {"vote": vote.id, "surplus": not counted, "state": state, "until": until}
    db.execute(update(table).where(*mine).values(values))
    change = (not retracts) - (assigned["state"] == "answered")
    if change and counted:
        _recount(db, item, task, change)


def _recount(db: Connection, item: Row, task: Row, change: int) -> None:
    overlap, votes = item["overlap"], item["votes"] + change
    is_open = has_room(overlap, votes, 0)
    here = work.items.c.id == item["id"]
    db.execute(update(work.items).where(here).values(votes=votes, open=is_open))
    if not item["control"]:
        counted = min(votes, overlap) - min(item["votes"], overlap)
        total = {"votes": work.tasks.c.votes + counted}
        db.execute(update(work.tasks).where(work.tasks.c.id == task["id"]).values(total))
