"""The page on raters: who works, new people and links; and the votes of one rater."""

from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import segno
from fastapi import Request, Response
from sqlalchemy import Connection, Table, func, select

from sayso.base.errors import UserError
from sayso.feedback.vote_queries import counting
from sayso.feedback.vote_tables import VOTE_TABLES, exclusions
from sayso.feedback.work_tables import Row
from sayso.votes.counted import is_right
from sayso.web.admin import numbers
from sayso.web.admin.progress import totals_of
from sayso.web.admin.view import AdminForm, AdminView, View, admin_router, counted_at, part_of
from sayso.web.proxies import own_address
from sayso.web.site import Refusal
from sayso.web.work import audit, people
from sayso.web.work.excluding import set_excluded
from sayso.web.work.item_pictures import as_seen, items_by_id, picture_urls

router = admin_router()

PAGE_SIZE = 24
MOST_NAMES = 500


@router.get("/raters")
def show_raters(request: Request, view: AdminView) -> Response:
    return _page(view, own_address(request, view.site.root_path))


@router.post("/raters")
def change_raters(request: Request, view: AdminView, form: AdminForm) -> Response:
    seen_at = own_address(request, view.site.root_path)
    address = form.get("address", "") or seen_at
    try:
        check_address(address, seen_at)
        with view.site.write() as db:
            made, refused = _change(db, form, view.asker.person.name)
    except UserError as error:
        return _page(view, address, error=str(error), status=422)
    links = [_link(name, f"{address.rstrip('/')}/in/{secret}") for name, secret in made]
    status = 422 if refused and not links else 200
    return _page(view, address, links=links, error="; ".join(refused), status=status)


@router.get("/raters/votes")
def show_votes(view: AdminView, name: str, page: int = 1) -> Response:
    """The votes of one rater."""
    table = VOTE_TABLES[view.task["kind"]]
    with view.site.read() as db:
        if people.find(db, name) is None:
            raise Refusal(404, "not_found", "There is no such rater.")
        mine = [table.c.task_id == view.task["id"], table.c.rater == name, counting(table, "work")]
        n = db.scalar(select(func.count()).select_from(table).where(*mine)) or 0
        page, pages = part_of(n, PAGE_SIZE, page)
        rows = _votes(db, table, mine, view.task, (page - 1) * PAGE_SIZE)
        excluded = db.scalar(select(exclusions.c.rater).where(exclusions.c.rater == name))
    return view.page(
        "votes", nav="raters", whose=name, rows=rows, n=n, page=page, pages_total=pages,
        excluded=excluded is not None,
    )  # fmt: skip


def check_address(address: str, seen_at: str) -> None:
    """Refuse what cannot begin a link, or leads to another path of the host than this site's.

    Raises: UserError: with what to give instead.
    """
    parts, seen = urlsplit(address), urlsplit(seen_at)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
        raise UserError(
            f"{address!r} is not a server address; give one such as https://rating.example.org"
        )
    if parts.netloc == seen.netloc and parts.path.rstrip("/") != seen.path:
        raise UserError(f"links at {address} would not work: this site is at {seen_at}")


def _link(name: str, link: str) -> dict[str, str]:
    picture = segno.make(link, error="m").svg_inline(scale=4, omitsize=True)
    return {"name": name, "link": link, "qr": picture}


def _page(
    view: View, address: str, links: list[dict[str, str]] | None = None, error: str = "",
    status: int = 200,
) -> Response:  # fmt: skip
    counted = totals_of(view.site, view.task)
    with view.site.read() as db:
        rows = numbers.raters(db, counted.value)
    return view.page(
        "raters", status, raters=rows, links=links or [], error=error,
        counted_at=counted_at(counted), address=address,
    )  # fmt: skip


def _change(
    db: Connection, form: dict[str, str], author: str
) -> tuple[list[tuple[str, str]], list[str]]:
    """Do what the form says: names with the secrets of their new links, and what was refused."""
    action, name = form.get("action", ""), form.get("name", "")
    if action == "add":
        return _add(db, name, form.get("role", "rater"), author)
    if action == "link":
        made = [(name, people.new_link(db, name))]
    elif action in ("enable", "disable"):
        people.set_active(db, name, action == "enable")
        made = []
    elif action in ("exclude", "include"):
        set_excluded(db, name, action == "exclude", author)
        made = []
    else:
        raise UserError("unknown action; use add, link, enable, disable, exclude or include")
    audit.note(db, author, action, name)
    return made, []


def _add(
    db: Connection, text: str, role: Any, author: str
) -> tuple[list[tuple[str, str]], list[str]]:
    """Add everyone of a list, one name per line; what cannot be a name is refused by itself."""
    names = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if not 0 < len(names) <= MOST_NAMES:
        raise UserError(f"{len(names)} names; give 1 to {MOST_NAMES}, one per line")
    made, refused = [], []
    for name in names:
        try:
            made.append((name, people.add(db, name, role, simulated="simulated" in name)))
        except UserError as error:
            refused.append(str(error))
        else:
            audit.note(db, author, "add", f"{name}, {role}")
    return made, refused


# the votes of one rater


def _votes(
    db: Connection, table: Table, mine: list[Any], task: Row, first: int
) -> list[dict[str, Any]]:
    query = select(table).where(*mine).order_by(table.c.seq.desc()).offset(first).limit(PAGE_SIZE)
    votes = db.execute(query).mappings().all()
    items = items_by_id(db, {vote["item_id"] for vote in votes})
    return [_vote(vote, items[vote["item_id"]], task) for vote in votes]


def _vote(vote: Row, item: Row, task: Row) -> dict[str, Any]:
    expected = vote["shown"].get("gold") or vote["shown"].get("attention") or ""
    return {
        "kind": task["kind"],
        "prompt": item["prompt"],
        "question": item["question"],
        "sides": picture_urls(item, task["seed"]),
        "value": as_seen(vote, item, task["seed"]),
        "reason": vote["shown"].get("reason", ""),
        "seconds": vote["shown"].get("latency_ms", 0.0) / 1000,
        "check": item["control"] if expected else "",
        "right": is_right(vote["value"], expected),
        "struck": item["standing"] == "struck",
        "at": datetime.fromtimestamp(vote["shown"]["received_at"]),
    }
