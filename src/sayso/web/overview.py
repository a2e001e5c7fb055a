"""What the admin pages show: numbers read from the store, no pages and no forms."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from statistics import median
from typing import Any

from sqlalchemy import Connection, Table, func, select, true

from sayso import work_tables as work
from sayso.vote_tables import RETRACTED, VOTE_TABLES
from sayso.web.people import LOCAL_NAME, everyone
from sayso.web.queue import LEASE_S, generator, opposite
from sayso.work_tables import Row

HOURS = 24


def tasks(db: Connection) -> list[Row]:
    """All tasks, newest first."""
    return list(db.execute(select(work.tasks).order_by(work.tasks.c.created_at.desc())).mappings())


def live_votes(db: Connection, task: Row) -> list[Row]:
    """The live answers that a task has collected, oldest first."""
    table: Table = VOTE_TABLES[task["kind"]]
    later = table.alias()
    query = (
        select(table)
        .where(table.c.task_id == task["id"], table.c.value != RETRACTED)
        .where(~select(later.c.seq).where(later.c.supersedes == table.c.id).exists())
        .order_by(table.c.seq)
    )
    return list(db.execute(query).mappings())


def progress(db: Connection, task: Row, votes: list[Row], now: float) -> dict[str, Any]:
    """How far a task is, how fast, and when it may end."""
    recent = [vote for vote in votes if now - vote["shown"]["received_at"] < 3600]
    counted = [v for v in recent if not v["surplus"] and not _expected(v)]
    left = task["wanted"] - task["votes"]
    return {
        "votes": task["votes"],
        "votes_needed": task["wanted"],
        "items_done": _count(db, task, ~work.items.c.open, work.items.c.control == ""),
        "items": task["n_items"],
        "raters_active": len({vote["rater"] for vote in recent}),
        "votes_last_hour": len(recent),
        "eta_hours": left / len(counted) if counted and left else None,
        "surplus": sum(vote["surplus"] for vote in votes),
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
    """Answers of each of the last hours, oldest first."""
    counts = Counter(int((now - vote["shown"]["received_at"]) // 3600) for vote in votes)
    end = datetime.fromtimestamp(now)
    return [
        {"label": (end - timedelta(hours=ago)).strftime("%H:00"), "votes": counts[ago]}
        for ago in reversed(range(HOURS))
    ]


def rates(votes: Iterable[Row]) -> list[dict[str, Any]]:
    """How often each answer was given to each question, checks left out."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for vote in votes:
        if not vote["attention"]:
            counts[vote["question"]][vote["value"]] += 1
    return [
        {"question": question, "value": value, "n": n, "share": n / sum(values.values())}
        for question, values in sorted(counts.items())
        for value, n in values.most_common()
    ]


def raters(db: Connection, votes: Iterable[Row], now: float) -> list[dict[str, Any]]:
    """Who did how much, how fast, and how well on the checks."""
    by_name: dict[str, list[Row]] = defaultdict(list)
    for vote in votes:
        by_name[vote["rater"]].append(vote)
    seen: dict[str, float] = dict(db.execute(_last_seen()).all())  # type: ignore[arg-type]
    return [
        _rater(person, by_name[person["name"]], seen.get(person["id"]), now)
        for person in everyone(db)
        if person["name"] != LOCAL_NAME or by_name[LOCAL_NAME]
    ]


def _last_seen() -> Any:
    table = work.participants
    return select(table.c.rater, func.max(table.c.seen_at)).group_by(table.c.rater)


def _rater(person: Row, votes: list[Row], seen: float | None, now: float) -> dict[str, Any]:
    gold, attention = _right(votes, "gold"), _right(votes, "attention")
    waits = [vote["shown"]["latency_ms"] / 1000 for vote in votes]
    skips = sum(vote["value"] == "skip" for vote in votes)
    return {
        "name": person["name"],
        "role": person["role"],
        "active": person["active"],
        "votes": len(votes),
        "today": sum(now - vote["shown"]["received_at"] < 86400 for vote in votes),
        "median_s": median(waits) if waits else None,
        "skip_share": skips / len(votes) if votes else None,
        "gold_right": gold[0],
        "gold_n": gold[1],
        "attention_right": attention[0],
        "attention_n": attention[1],
        "last_seen": datetime.fromtimestamp(seen) if seen else None,
        "flagged": _flag(gold, attention),
    }


def _right(votes: Iterable[Row], check: str) -> tuple[int, int]:
    """How many checks of a kind were answered right, and how many there were."""
    answers = [(v["value"], v["shown"][check]) for v in votes if check in v["shown"]]
    return sum(value == expected for value, expected in answers), len(answers)


def _flag(gold: tuple[int, int], attention: tuple[int, int]) -> str:
    """Why an admin should look at a rater, by the rules of `sayso agreement`; "" for no reason."""
    from sayso.votes.rater_table import Checks, fails

    for name, (right, n) in (("attention checks", attention), ("gold", gold)):
        if fails(Checks(n, right)):
            return f"only {right} of {n} {name} right"
    return ""


def _expected(vote: Mapping[str, Any]) -> str:
    shown = vote["shown"]
    return shown.get("gold") or shown.get("attention") or ""


# checks and disagreements


def check_rows(
    db: Connection, votes: Iterable[Row], check: str
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Totals of one kind of check, and a row for each item that was answered, worst first."""
    by_item: dict[str, list[Row]] = defaultdict(list)
    for vote in votes:
        if check in vote["shown"]:
            by_item[vote["item_id"]].append(vote)
    found = items_by_id(db, by_item)
    rows = [_check_row(found[item], asked, check) for item, asked in by_item.items()]
    rows.sort(key=lambda row: row["right"] / row["votes"])
    total = {
        "items": len(rows), "votes": sum(r["votes"] for r in rows),
        "right": sum(r["right"] for r in rows),
    }  # fmt: skip
    return total, rows


def _check_row(item: Row, votes: list[Row], check: str) -> dict[str, Any]:
    right, n = _right(votes, check)
    answers = Counter(vote["value"] for vote in votes)
    return {
        "image_url": f"/admin/i/{item['id']}/0",
        "prompt": item["prompt"],
        "question": item["question"],
        "expected": item["expected"],
        "votes": n,
        "right": right,
        "answers": [{"value": value, "n": k} for value, k in answers.most_common()],
    }


def items_by_id(db: Connection, ids: Iterable[str]) -> dict[str, Row]:
    """Rows of items."""
    wanted, found = list(ids), {}
    for i in range(0, len(wanted), 500):
        query = select(work.items).where(work.items.c.id.in_(wanted[i : i + 500]))
        found |= {row["id"]: row for row in db.execute(query).mappings()}
    return found


def disagreements(
    db: Connection, task: Row, votes: Iterable[Row], reviewer: str = ""
) -> list[dict[str, Any]]:
    """Items on which raters disagree, undecided ones first; sides as `reviewer_sees_swapped`.

    Args:
        reviewer: name of who asks; `judged` marks the items on which this person has an answer.
    """
    by_item: dict[str, list[Row]] = defaultdict(list)
    for vote in votes:
        if not _expected(vote):
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
    return bool(vote["shown"].get("adjudication"))


def _chosen(vote: Row) -> str:
    """The answer, of a comparison the sets it prefers, whichever stood left."""
    if vote["value"] in ("left", "right"):
        return "|".join(vote[f"{vote['value']}_ids"])
    return vote["value"]


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
