"""What every admin page is given: who asks, for which task, the pages that this role may see."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from sayso.feedback.work_tables import Row
from sayso.web.admin import numbers
from sayso.web.dependencies import Fields, TheSite
from sayso.web.proxies import require_same_site
from sayso.web.rendering import render
from sayso.web.site import Asker, Refusal, Site
from sayso.web.slow_counts import Count
from sayso.web.work.people import Role
from sayso.web.work.tasks import QUESTIONS_OF

PAGES: tuple[tuple[str, str, str, Role], ...] = (
    ("progress", "Progress", "/admin", "reviewer"),
    ("raters", "Raters", "/admin/raters", "admin"),
    ("checks", "Checks", "/admin/checks", "reviewer"),
    ("agreement", "Agreement", "/admin/agreement", "reviewer"),
    ("disagreements", "Disagreements", "/admin/disagreements", "reviewer"),
    ("guideline", "Guideline", "/admin/guideline", "admin"),
    ("export", "Export", "/admin/export", "admin"),
    ("audit", "Audit log", "/admin/audit", "admin"),
)


def admin_router() -> APIRouter:
    """A router for some of the admin pages."""
    return APIRouter(prefix="/admin", include_in_schema=False)


@dataclass(frozen=True, slots=True)
class View:
    """A request for an admin page: who asks, and for which task."""

    site: Site
    asker: Asker
    task: Row
    tasks: list[Row]

    def page(self, name: str, status: int = 200, **context: Any) -> Response:
        """The page `name`; see its template for what it is given."""
        allowed = [p for p in PAGES if self.asker.person.may(p[3])]
        common = {
            "nav": name,
            "pages": [{"key": key, "title": title, "url": url} for key, title, url, _ in allowed],
            "task": _task_context(self.task),
            "tasks": [_task_context(task) for task in self.tasks],
        }
        template = f"admin/{name}.html"
        return render(self.site, template, self.asker, status, **{**common, **context})


def _viewing(role: Role) -> Callable[..., View]:
    """The dependency that makes the view of a request.

    Raises: Refusal: 401 or 403 without the role, 404 for an unknown task.
    """

    def view(request: Request, site: TheSite) -> View:
        asker = site.require(request, role)
        with site.read() as db:
            tasks = numbers.tasks(db)
        wanted = request.query_params.get("task", site.task)
        chosen = next((task for task in tasks if task["id"] == wanted), None)
        if chosen is None:
            raise Refusal(404, "not_found", "There is no such task.")
        return View(site, asker, chosen, tasks)

    return view


ReviewerView = Annotated[View, Depends(_viewing("reviewer"))]
AdminView = Annotated[View, Depends(_viewing("admin"))]


def _sent_form(request: Request, view: AdminView, form: Fields) -> dict[str, str]:
    """The fields of a form that an admin has sent from a page of this site.

    Raises: Refusal: 403 for any other.
    """
    require_same_site(request)
    view.site.check_token(view.asker, form.get("csrf", ""))
    return form


AdminForm = Annotated[dict[str, str], Depends(_sent_form)]


def part_of(n: int, size: int, page: int) -> tuple[int, int]:
    """Page and number of pages when `n` rows stand `size` on a page; at least one, none beyond."""
    pages = max(1, -(-n // size))
    return min(max(page, 1), pages), pages


def counted_at(count: Count[Any]) -> str:
    """When slow numbers were counted; "" if just now."""
    return datetime.fromtimestamp(count.at).strftime("%H:%M:%S") if count.is_slow else ""


def _task_context(task: Row) -> dict[str, Any]:
    kept = ("id", "name", "kind", "images_per_page", "overlap", "state")
    return {"questions": list(QUESTIONS_OF[task["kind"]]), **{key: task[key] for key in kept}}
