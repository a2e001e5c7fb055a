"""The page Checks: how raters did on them, and which attention checks are used at all."""

from collections import Counter
from typing import Any

from fastapi import Response
from fastapi.responses import RedirectResponse
from sqlalchemy import Connection, case, select

from sayso.feedback import work_tables as work
from sayso.feedback.work_tables import Row
from sayso.votes.counted import is_right
from sayso.web.admin import numbers
from sayso.web.admin.view import AdminForm, AdminView, ReviewerView, admin_router, part_of
from sayso.web.site import Refusal
from sayso.web.work import checks
from sayso.web.work.item_pictures import picture_urls, sees_swapped
from sayso.web.work.queue import Standing, opposite

router = admin_router()

PAGE_SIZE = 20
_ACTIONS: dict[str, Standing] = {"confirm": "", "strike": "struck"}
_FIRST = case({"proposed": 0, "": 1}, value=work.items.c.standing, else_=2)


@router.get("/checks")
def show_checks(view: ReviewerView, page: int = 1) -> Response:
    with view.site.read() as db:
        votes = numbers.live_votes(db, view.task)
        summary, rows = numbers.check_rows(db, votes, "gold")
        n = checks.tally(db, view.task["id"])
        page, pages = part_of(n.used + n.proposed + n.struck, PAGE_SIZE, page)
        pairs = _pairs(db, view.task, votes, page)
    shall_have = view.task["attention_share"] > 0
    return view.page(
        "checks", summary=summary, rows=rows, pairs=pairs, tally=n, page=page, pages_total=pages,
        warning=checks.warning(view.task["kind"], n) if shall_have else "",
    )  # fmt: skip


@router.post("/checks")
def decide(view: AdminView, form: AdminForm) -> Response:
    """Confirm or strike the checks named in `items`, with commas between them."""
    action = form.get("action", "")
    if action not in _ACTIONS:
        raise Refusal(422, "invalid", f"Unknown action; use {', '.join(_ACTIONS)}.")
    items, task = form.get("items", "").split(","), form.get("task") or str(view.task["id"])
    with view.site.write() as db:
        if not checks.decide(db, task, items, _ACTIONS[action]):
            raise Refusal(404, "unknown_item", "There is no such check.")
    page = numbers.whole_number(form.get("page", "1"))
    return RedirectResponse(f"/admin/checks?task={task}&page={page}#pairs-title", 303)


def _pairs(db: Connection, task: Row, votes: list[Row], page: int) -> list[dict[str, Any]]:
    """Attention checks, those that wait for an admin's word first: what is shown and expected."""
    items = work.items.c
    query = (
        select(work.items)
        .where(items.task == task["id"], items.control == "attention")
        .order_by(_FIRST, items.rank, items.slot)
        .limit(PAGE_SIZE)
        .offset((page - 1) * PAGE_SIZE)
    )
    found = list(db.execute(query).mappings())
    asked = [(v, v["shown"]["attention"]) for v in votes if "attention" in v["shown"]]
    right = Counter((v["item_id"], is_right(v["value"], expected)) for v, expected in asked)
    return [_pair(item, task, right[item["id"], True], right[item["id"], False]) for item in found]


def _pair(item: Row, task: Row, right: int, wrong: int) -> dict[str, Any]:
    swapped = sees_swapped(item["id"], task["seed"])
    return {
        "item_id": item["id"], "prompt": item["prompt"], "standing": item["standing"],
        "expected": opposite(item["expected"]) if swapped else item["expected"],
        "right": right, "votes": right + wrong, "sides": picture_urls(item, task["seed"]),
    }  # fmt: skip
