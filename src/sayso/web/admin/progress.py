"""The page Progress: how far a task is, what people vote, and pause, resume or close."""

from fastapi import Response
from fastapi.responses import RedirectResponse
from sqlalchemy import Connection, select, update

from sayso.feedback import work_tables as work
from sayso.feedback.work_tables import Row
from sayso.web.admin import numbers
from sayso.web.admin.view import AdminForm, AdminView, ReviewerView, admin_router, counted_at
from sayso.web.site import Refusal, Site
from sayso.web.slow_counts import Count
from sayso.web.work import audit

router = admin_router()

_STATES = {"pause": "paused", "resume": "open", "close": "closed"}


@router.get("")
def show_progress(view: ReviewerView) -> Response:
    counted = totals_of(view.site, view.task)
    so_far = counted.value
    with view.site.read() as db:
        progress = numbers.progress(db, view.task, so_far, view.site.clock())
    return view.page(
        "progress", progress=progress, hours=so_far.hours, rates=so_far.rates,
        counted_at=counted_at(counted),
    )  # fmt: skip


@router.post("/task")
def change_task(view: AdminView, form: AdminForm) -> Response:
    state = _STATES.get(form.get("action", ""))
    if state is None:
        raise Refusal(422, "invalid", f"Unknown action; use {', '.join(_STATES)}.")
    with view.site.write() as db:
        task = str(form.get("task", view.task["id"]))
        mine = work.tasks.c.id == task
        if db.execute(update(work.tasks).where(mine).values(state=state)).rowcount == 0:
            raise Refusal(404, "not_found", "There is no such task.")
        audit.note(db, view.asker.person.name, form["action"], _name_of(db, task))
    return RedirectResponse(f"/admin?task={task}", 303)


def totals_of(site: Site, task: Row) -> Count[numbers.Totals]:
    """The totals of a task."""

    def count() -> numbers.Totals:
        with site.read() as db:
            return numbers.totals(numbers.live_votes(db, task), site.clock())

    return site.counts.get(("totals", task["id"]), count)


def _name_of(db: Connection, task: str) -> str:
    return str(db.scalar(select(work.tasks.c.name).where(work.tasks.c.id == task)))
