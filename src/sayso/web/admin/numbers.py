"""What the admin pages show: numbers read from the store, no pages and no forms."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import median
from typing import Any

from sqlalchemy import Connection, Table, func, select, true

from sayso.feedback import work_tables as work
from sayso.feedback.vote_queries import counting, is_excluded, is_struck
from sayso.feedback.vote_tables import VOTE_TABLES, exclusions
from sayso.feedback.work_tables import Row
from sayso.votes.counted import Purpose, counts, is_right, standing_of
from sayso.web.work.item_pictures import items_by_id
from sayso.web.work.people import LOCAL_NAME, everyone
from sayso.web.work.queue import LEASE_S

HOURS = 24


def tasks(db: Connection) -> list[Row]:
    """All tasks, newest first."""
    return list(db.execute(select(work.tasks).order_by(work.tasks.c.created_at.desc())).mappings())


def live_votes(db: Connection, task: Row) -> list[Row]:
    """The live votes that a task has collected, checks among them, oldest first.

    `excluded` says that the vote is of a rater whose votes do not count.
    """
    table: Table = VOTE_TABLES[task["kind"]]
    query = (
        select(
            table, is_excluded(table.c.rater).label("excluded"), is_struck(table).label("struck")
        )
        .where(table.c.task_id == task["id"], counting(table, "work"))
        .order_by(table.c.seq)
    )
    return list(db.execute(query).mappings())


def is_for(vote: Row, purpose: Purpose) -> bool:
    """Whether a row of `live_votes` counts for a purpose."""
    known = {"excluded": vote["excluded"], "struck": vote["struck"]}
    return counts(standing_of(vote["shown"], vote["value"], **known), purpose)


@dataclass(frozen=True, slots=True)
class Totals:
    """What the live votes of a task amount to.

    Attributes:
        raters_active, votes_last_hour: of the last hour.
        wanted_last_hour: votes of the last hour that the overlap asks for, checks left out.
        surplus: votes beyond the overlap.
        excluded: votes of raters whose votes do not count.
        hours, rates: see the functions of these names.
        raters: numbers of each rater by name.
    """

    raters_active: int
    votes_last_hour: int
    wanted_last_hour: int
    surplus: int
    excluded: int
    hours: list[dict[str, Any]]
    rates: list[dict[str, Any]]
    raters: dict[str, dict[str, Any]]


def totals(votes: list[Row], now: float) -> Totals:
    """Totals of the live votes; it takes seconds for a hundred thousand."""
    recent = [vote for vote in votes if now - vote["shown"]["received_at"] < 3600]
    by_name: dict[str, list[Row]] = defaultdict(list)
    for vote in votes:
        by_name[vote["rater"]].append(vote)
    return Totals(
        raters_active=len({vote["rater"] for vote in recent}),
        votes_last_hour=len(recent),
        wanted_last_hour=sum(is_for(v, "place") for v in recent),
        surplus=sum(v["surplus"] and is_for(v, "vote") for v in votes),
        excluded=sum(v["excluded"] for v in votes),
        hours=hours(votes, now),
        rates=rates(votes),
        raters={name: _work(given, now) for name, given in by_name.items()},
    )


def progress(db: Connection, task: Row, so_far: Totals, now: float) -> dict[str, Any]:
    """How far a task is, how fast, and when it may end."""
    left, speed = task["wanted"] - task["votes"], so_far.wanted_last_hour
    return {
        "votes": task["votes"],
        "votes_needed": task["wanted"],
        "items_done": _count(db, task, ~work.items.c.open, work.items.c.control == ""),
        "items": task["n_items"],
        "raters_active": so_far.raters_active,
        "votes_last_hour": so_far.votes_last_hour,
        "eta_hours": left / speed if speed and left else None,
        "surplus": so_far.surplus,
        "excluded": so_far.excluded,
        "waiting_leases": _leases(db, task, now),
        "broken": _count(db, task, work.items.c.broken == true()),
    }


def _count(db: Connection, task: Row, *where: Any) -> int:
    query = select(func.count()).select_from(work.items)
    return db.scalar(query.where(work.items.c.task == task["id"], *where)) or 0


def _leases(db: Connection, task: Row, now: float) -> int:
    table = work.assignments
    query = select(func.count()).where(
        table.c.task == task["id"], table.c.state == "leased", table.c.until > now,
        table.c.until <= now + LEASE_S,
    )  # fmt: skip
    return db.scalar(query) or 0


def hours(votes: Iterable[Row], now: float) -> list[dict[str, Any]]:
    """Votes of each of the last hours, oldest first."""
    counts = Counter(int((now - vote["shown"]["received_at"]) // 3600) for vote in votes)
    end = datetime.fromtimestamp(now)
    return [
        {"label": (end - timedelta(hours=ago)).strftime("%H:00"), "votes": counts[ago]}
        for ago in reversed(range(HOURS))
    ]


def rates(votes: Iterable[Row]) -> list[dict[str, Any]]:
    """How often each value was voted on each question, of votes that count."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for vote in votes:
        if is_for(vote, "vote"):
            counts[vote["question"]][vote["value"]] += 1
    return [
        {"question": question, "value": value, "n": n, "share": n / sum(values.values())}
        for question, values in sorted(counts.items())
        for value, n in values.most_common()
    ]


def raters(db: Connection, so_far: Totals) -> list[dict[str, Any]]:
    """Who did how much, how fast, and how well on the checks."""
    seen: dict[str, float] = dict(db.execute(_last_seen()).all())  # type: ignore[arg-type]
    out = set(db.scalars(select(exclusions.c.rater)))
    nothing = _work([], 0.0)
    return [
        {
            **_rater(person, so_far.raters.get(person["name"], nothing), seen.get(person["id"])),
            "excluded": person["name"] in out,
        }
        for person in everyone(db)
        if person["name"] != LOCAL_NAME or LOCAL_NAME in so_far.raters
    ]


def _last_seen() -> Any:
    table = work.participants
    return select(table.c.rater, func.max(table.c.seen_at)).group_by(table.c.rater)


def _rater(person: Row, done: dict[str, Any], seen: float | None) -> dict[str, Any]:
    return {
        "name": person["name"],
        "role": person["role"],
        "active": person["active"],
        "last_seen": datetime.fromtimestamp(seen) if seen else None,
        **done,
    }


def _work(votes: list[Row], now: float) -> dict[str, Any]:
    """What one rater's live votes amount to."""
    gold, attention = _right(votes, "gold"), _right(votes, "attention")
    waits = [vote["shown"]["latency_ms"] / 1000 for vote in votes]
    skips = sum(vote["value"] == "skip" for vote in votes)
    return {
        "votes": len(votes),
        "today": sum(now - vote["shown"]["received_at"] < 86400 for vote in votes),
        "median_s": median(waits) if waits else None,
        "skip_share": skips / len(votes) if votes else None,
        "gold_right": gold[0],
        "gold_n": gold[1],
        "attention_right": attention[0],
        "attention_n": attention[1],
        "flagged": _flag(gold, attention),
    }


def _right(votes: Iterable[Row], check: str) -> tuple[int, int]:
    """How many checks of a kind were voted right, and how many right or wrong."""
    found = [is_right(v["value"], v["shown"][check]) for v in votes if _is_check(v, check)]
    clear = [right for right in found if right is not None]
    return sum(clear), len(clear)


def _is_check(vote: Row, check: str) -> bool:
    """Also of who is excluded: the table of raters shows why."""
    known = standing_of(vote["shown"], vote["value"], struck=vote["struck"])
    return check in vote["shown"] and counts(known, "check")


def _flag(gold: tuple[int, int], attention: tuple[int, int]) -> str:
    """Why an admin should look at a rater, by the rules of `sayso agreement`; "" for no reason."""
    from sayso.votes.rater_table import Checks, fails

    for name, (right, n) in (("attention checks", attention), ("gold", gold)):
        if fails(Checks(n, right)):
            return f"only {right} of {n} {name} right"
    return ""


# checks


def check_rows(
    db: Connection, votes: Iterable[Row], check: str
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Totals of one kind of check, and a row for each item that has votes, worst first."""
    by_item: dict[str, list[Row]] = defaultdict(list)
    for vote in votes:
        if check in vote["shown"] and is_for(vote, "check"):
            by_item[vote["item_id"]].append(vote)
    found = items_by_id(db, by_item)
    rows = [_check_row(found[item], asked, check) for item, asked in by_item.items()]
    rows.sort(key=lambda row: row["right"] / max(1, row["votes"]))
    total = {
        "items": len(rows), "votes": sum(r["votes"] for r in rows),
        "right": sum(r["right"] for r in rows),
    }  # fmt: skip
    return total, rows


def _check_row(item: Row, votes: list[Row], check: str) -> dict[str, Any]:
    right, n = _right(votes, check)
    by_value = Counter(vote["value"] for vote in votes)
    return {
        "image_url": f"/admin/i/{item['id']}/0",
        "prompt": item["prompt"],
        "question": item["question"],
        "expected": item["expected"],
        "votes": n,
        "right": right,
        "values": [{"value": value, "n": k} for value, k in by_value.most_common()],
    }


def whole_number(text: str) -> int:
    """What a form says; -1, which no page and no guideline has, for what is no number."""
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else -1
