"""Accept votes: each is stored once, in one transaction with everything that follows from it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, get_args

from sqlalchemy import Connection, bindparam, insert, select, union_all

from sayso.base.types import Choice, Comparison, Question, Rating, Value, digest
from sayso.feedback.store import flags, vote_row
from sayso.feedback.vote_tables import RETRACTED, VOTE_TABLES
from sayso.feedback.work_tables import VOTED, Row
from sayso.votes.counted import ADJUDICATION
from sayso.web.work.across_tasks import follow, newest_vote
from sayso.web.work.assigned import given, locked_task_of, reserved
from sayso.web.work.counting import assign, count
from sayso.web.work.people import Person
from sayso.web.work.queue import LEASE_S, Newest, has_room, is_reserved, opposite, superseded

VALUES: Mapping[str, tuple[str, ...]] = {"rate": get_args(Value), "compare": get_args(Choice)}
"""What is stored; a page offers one tie or both kinds of it."""


_STORED = union_all(*(
    select(t.c.id, t.c.body, t.c.rater, t.c.surplus, t.c.shown).where(t.c.id == bindparam("of_id"))
    for t in VOTE_TABLES.values()
))  # fmt: skip
_INSERT = {kind: insert(table) for kind, table in VOTE_TABLES.items()}


def offered(kind: str, split_tie: bool) -> list[str]:
    """The values that a page offers."""
    hidden = ("tie",) if split_tie else ("both_good", "both_bad")
    return [value for value in VALUES[kind] if value not in hidden]


@dataclass(frozen=True, slots=True)
class Vote:
    """A vote as the page sends it; times in milliseconds, absolute ones by the page's clock."""

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
class Context:
    """What a vote is stored with and the page does not decide; `now` in seconds since the epoch."""

    session: str
    app_version: str
    now: float
    adjudication: bool = False


@dataclass(frozen=True, slots=True)
class Stored:
    """A vote that was stored, and its task after it.

    `closed`: the task takes no more votes, this one is kept as surplus. `repeated`: it was stored
    before.
    """

    id: str
    task: Row
    surplus: bool
    closed: bool = False
    repeated: bool = False


class VoteRefused(Exception):  # noqa: N818 - it is a reply, not a failure
    """Why a vote is not stored: a code of the API and a sentence for the rater."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def cast_vote(db: Connection, rater: Person, vote: Vote, context: Context) -> Stored:
    """Store a vote in the open writing transaction; the same vote again changes nothing.

    Raises: VoteRefused: for an unknown item, an id stored with another body, a second live vote,
        or a value that does not fit the question.
    """
    task = locked_task_of(db, vote.item_id)
    if task is None:
        raise VoteRefused("unknown_item", "This page is not known here; reload to continue.")
    # after the lock on the task: the counters of the item must be the newest
    item = given(db, task["kind"], vote.item_id, rater.id)
    stored = repeated(db, vote, rater, task)
    if stored is not None:
        return stored
    if item is None:
        raise VoteRefused("unknown_item", "This page was not given to you; reload to continue.")
    check(vote, item, task)
    newest = None
    if item["my_vote"] is not None:
        newest = Newest(item["my_vote"], item["my_value"] == RETRACTED)
    replaced = replaced_by(vote, newest)
    if item["my_vote"] is None:
        replaced = newest_vote(db, task["kind"], item, rater)
    counted = _counts(db, item, task, rater, context)
    store(db, rater, vote, context, Asked(item, task), replaced, surplus=not counted)
    change = _follow_up(db, item, rater, vote, context.now, counted)
    if replaced is not None:
        follow(db, item, rater, replaced, vote.id, ends=vote.value == RETRACTED)
    after = {**task, **{c: task[c] + change.get(c, 0) for c in ("votes", "all_votes")}}
    return Stored(vote.id, after, not counted, task["state"] == "closed")


def repeated(db: Connection, vote: Vote, rater: Person, task: Row) -> Stored | None:
    """The vote if it is stored already; None for a new one.

    Raises: VoteRefused: if the id is stored with another body.
    """
    row = db.execute(_STORED, {"of_id": vote.id}).mappings().first()
    if row is None:
        return None
    if row["body"] != _body(vote) or row["rater"] != rater.name:
        raise VoteRefused(
            "vote_conflict", "A vote with this id is already stored, with other content."
        )
    closed = bool(row["shown"].get("closed"))
    return Stored(row["id"], task, row["surplus"], closed, repeated=True)


def _body(vote: Vote) -> str:
    return digest(asdict(vote), 32)


def check(vote: Vote, item: Row, task: Row) -> None:
    """Refuse a vote that does not fit the question. Raises: VoteRefused."""
    allowed = (*VALUES[task["kind"]], RETRACTED)
    if vote.question != item["question"]:
        raise VoteRefused("invalid", f"This page asks for {item['question']}.")
    if vote.value not in allowed:
        raise VoteRefused(
            "invalid", f"{vote.value!r} is not a possible vote; allowed: {', '.join(allowed)}."
        )


def replaced_by(vote: Vote, newest: Newest | None) -> str | None:
    """The id of the vote that a new one replaces. Raises: VoteRefused."""
    try:
        return superseded(newest, vote.value == RETRACTED, vote.supersedes)
    except ValueError as error:
        message = str(error)
        raise VoteRefused(
            "vote_conflict", f"{message[0].upper()}{message[1:]}; the first vote stands."
        ) from None


def _counts(db: Connection, item: Row, task: Row, rater: Person, context: Context) -> bool:
    """Whether the vote is one of those that the overlap asks for; a change stays what it was.

    Not counted are votes on an item that has its raters already, and votes after the task was
    closed unless it is rated again.
    """
    if item["my_state"] == VOTED:
        return not item["my_surplus"]
    again = item["my_vote"] is not None and not item["my_surplus"]
    if task["state"] == "closed" and not again:
        return False
    if item["my_state"] == "leased" and is_reserved(item["my_until"], context.now):
        # a lease that did not hold while a clock was wrong may have gone to another, who voted
        return has_room(item["overlap"], item["votes"], 0)
    others = reserved(db, item["id"], rater.id, context.now)
    return has_room(item["overlap"], item["votes"], others)


# what is written


class Asked(NamedTuple):
    """What was asked: an item with `my_position` and `my_swapped`, and its task."""

    item: Row
    task: Row


def store(
    db: Connection, rater: Person, vote: Vote, context: Context, asked: Asked,
    replaced: str | None, surplus: bool = False,
) -> None:  # fmt: skip
    """Put the row of a vote in; nothing else follows from it here."""
    item, task = asked
    shown = _shown(vote, context, item, task, surplus)
    # a retraction is a row of the table but no Rating: its value is put in last
    value = VALUES[task["kind"]][0] if vote.value == RETRACTED else vote.value
    common: dict[str, Any] = {
        "id": vote.id, "rater": rater.name, "question": vote.question, "value": value,
        "simulated": rater.simulated, "shown_at": vote.shown_at / 1000,
        "answered_at": vote.answered_at / 1000, "shown": shown, "supersedes": replaced,
    }  # fmt: skip
    if task["kind"] == "rate":
        sample = item["samples"][0][0]
        made: Rating | Comparison = Rating(**common, sample_id=sample, reason=vote.reason)
    else:
        made = _comparison(common, item)
    more = {
        "task_id": task["id"], "item_id": item["id"], "body": _body(vote), "surplus": surplus,
        **flags(made),
    }  # fmt: skip
    db.execute(_INSERT[task["kind"]], {**vote_row(made), **more, "value": vote.value})


def _shown(vote: Vote, context: Context, item: Row, task: Row, surplus: bool) -> dict[str, object]:
    shown: dict[str, object] = {
        "task": task["id"], "item": item["id"], "page": item["page"], "slot": item["slot"],
        "position": item["my_position"], "page_position": vote.position,
        "images_per_page": task["images_per_page"], "latency_ms": vote.latency_ms,
        "hidden_ms": vote.hidden_ms, "session": context.session, "overlap_target": item["overlap"],
        "surplus": surplus, "guideline_version": vote.guideline_version,
        "app_version": context.app_version, "received_at": context.now, "prompt": item["prompt"],
        "prompt_id": item["prompt_id"], "reason": vote.reason,
    }  # fmt: skip
    if item["control"] and item["expected"]:
        expected = item["expected"]
        shown[item["control"]] = opposite(expected) if item["my_swapped"] else expected
    if context.adjudication:
        shown[ADJUDICATION] = True
    if task["state"] == "closed":
        shown["closed"] = True
    return shown


def _comparison(common: dict[str, Any], item: Row) -> Comparison:
    order = -1 if item["my_swapped"] else 1
    left, right = item["samples"][::order]
    left_model, right_model = item["models"][::order]
    return Comparison(
        **common, prompt_id=item["prompt_id"], left_ids=tuple(left), right_ids=tuple(right),
        left_model=left_model, right_model=right_model,
    )  # fmt: skip


def _follow_up(
    db: Connection, item: Row, rater: Person, vote: Vote, now: float, counted: bool
) -> dict[str, int]:
    """Bring the assignment and the counters in line with the vote: the change of the task's.

    A counted vote that is taken back keeps its place for the rater; an uncounted one had none.
    """
    retracts = vote.value == RETRACTED
    state, until = VOTED, 0.0
    if retracts:
        state, until = ("leased", now + LEASE_S) if counted else ("released", 0.0)
    new = {"vote": vote.id, "surplus": not counted, "state": state, "until": until}
    assign(db, item["id"], rater.id, **new)
    change = (not retracts) - (item["my_state"] == VOTED)
    if not change:
        return {}
    return count(db, item, rater.id, change, counted and not rater.excluded)
