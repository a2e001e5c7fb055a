"""The pages of admins and reviewers: progress, raters, checks, disagreements, guideline."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import RedirectResponse
from sqlalchemy import Connection, select, update
from starlette.concurrency import run_in_threadpool

from sayso.base.errors import UserError
from sayso.feedback import work_tables as work
from sayso.feedback.work_tables import Row
from sayso.web.admin import overview
from sayso.web.admin.adjudication import adjudication
from sayso.web.admin.agreement import agreement
from sayso.web.admin.checks import checks_page
from sayso.web.admin.counts import Count, Counter
from sayso.web.admin.export import export
from sayso.web.admin.raters import raters
from sayso.web.admin.view import View, view_of
from sayso.web.decisions import Splits
from sayso.web.pages import Fields
from sayso.web.picture_answers import PictureAnswers, Range
from sayso.web.site import Refusal, Site
from sayso.web.work import audit, people
from sayso.web.work.guideline_text import to_html
from sayso.web.work.item_pictures import picture_paths

_STATES = {"pause": "paused", "resume": "open", "close": "closed"}


def admin(site: Site, splits: Splits) -> APIRouter:
    """The routes under /admin."""
    router = APIRouter(prefix="/admin", include_in_schema=False)
    router.include_router(agreement(site))
    router.include_router(checks_page(site))
    router.include_router(export(site))
    router.include_router(adjudication(site, splits))
    totals = _Totals(site)
    router.include_router(raters(site, totals.of))

    def reviewer(request: Request) -> View:
        return view_of(site, request, "reviewer")

    def administrator(request: Request) -> View:
        return view_of(site, request, "admin")

    @router.get("")
    def show_overview(view: Annotated[View, Depends(reviewer)]) -> Response:
        return _overview(view, totals.of(view.task))

    @router.post("/task")
    def change_task(
        view: Annotated[View, Depends(administrator)], request: Request, form: Fields
    ) -> Response:
        view.check_form(request, form)
        state = _STATES.get(form.get("action", ""))
        if state is None:
            raise Refusal(422, "invalid", "Pause, resume or close?")
        with site.write() as db:
            task = str(form.get("task", view.task["id"]))
            mine = work.tasks.c.id == task
            if db.execute(update(work.tasks).where(mine).values(state=state)).rowcount == 0:
                raise Refusal(404, "not_found", "There is no such task.")
            audit.note(db, view.asker.person.name, form["action"], _name_of(db, task))
        return RedirectResponse(f"/admin?task={task}", 303)

    @router.get("/guideline")
    def show_guideline(view: Annotated[View, Depends(administrator)]) -> Response:
        return _guideline(view)

    @router.post("/guideline")
    def save_guideline(
        view: Annotated[View, Depends(administrator)], request: Request, form: Fields
    ) -> Response:
        view.check_form(request, form)
        text, base = form.get("text", ""), form.get("base_version", "")
        try:
            with site.write() as db:
                author = view.asker.person.name
                known = overview.whole_number(base)
                version = people.write_guideline(db, text, author, known)
                if version != known:
                    audit.note(db, author, "guideline", f"as version {version}")
        except UserError as error:
            return _guideline(view, error=str(error), kept=text, status=409)
        return _guideline(view, saved=True)

    @router.get("/audit")
    def show_audit(view: Annotated[View, Depends(administrator)], page: int = 1) -> Response:
        return _audit(view, page)

    answers = PictureAnswers(site)

    def path_of(item: str, place: int) -> str:
        with site.read() as db:
            paths = picture_paths(db, item)
        if not 0 <= place < len(paths):
            raise Refusal(404, "unknown_item", "There is no such picture.")
        return paths[place]

    @router.get("/i/{item}/{place}", dependencies=[Depends(reviewer)])
    async def picture(item: str, place: int, px: int = 0, wanted: Range = None) -> Response:
        path = await run_in_threadpool(path_of, item, place)
        return await answers.answer(item, path, px, wanted)

    return router


def _name_of(db: Connection, task: str) -> str:
    return str(db.scalar(select(work.tasks.c.name).where(work.tasks.c.id == task)))


AUDIT_SIZE = 100


def _audit(view: View, page: int) -> Response:
    with view.site.read() as db:
        pages = max(1, -(-audit.count(db) // AUDIT_SIZE))
        page = min(max(page, 1), pages)
        found = audit.lines(db, (page - 1) * AUDIT_SIZE, AUDIT_SIZE)
    rows = [
        {**row, "at": datetime.fromtimestamp(row["at"]), "words": audit.WORDS[row["action"]]}
        for row in found
    ]
    return view.page("audit", rows=rows, page=page, pages_total=pages)


class _Totals:
    """The totals of each task, counted as often as their cost allows."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._counters: dict[str, Counter[overview.Totals]] = {}

    def of(self, task: Row) -> Count[overview.Totals]:
        counter = self._counters.setdefault(task["id"], Counter(self._site.clock))
        return counter.count(lambda: self._count(task))

    def _count(self, task: Row) -> overview.Totals:
        with self._site.read() as db:
            return overview.totals(overview.live_votes(db, task), self._site.clock())


def _overview(view: View, counted: Count[overview.Totals]) -> Response:
    so_far = counted.value
    with view.site.read() as db:
        progress = overview.progress(db, view.task, so_far, view.site.clock())
    return view.page(
        "overview", progress=progress, hours=so_far.hours, rates=so_far.rates,
        counted_at=_counted_at(counted),
    )  # fmt: skip


def _counted_at(counted: Count[overview.Totals]) -> str:
    """When the numbers were counted; "" if just now."""
    return datetime.fromtimestamp(counted.at).strftime("%H:%M:%S") if counted.kept else ""


def _guideline(
    view: View, saved: bool = False, error: str = "", kept: str | None = None, status: int = 200
) -> Response:
    with view.site.read() as db:
        versions = people.guidelines(db)
    newest = versions[0] if versions else people.Guideline(0, "")
    text = newest.text if kept is None else kept
    history = [
        {"version": v.version, "at": datetime.fromtimestamp(v.created_at), "by": v.author,
         "text": v.text}
        for v in versions
    ]  # fmt: skip
    return view.page(
        "guideline", status, version=newest.version, text=text, html=to_html(text),
        history=history, saved=saved, error=error,
    )  # fmt: skip
