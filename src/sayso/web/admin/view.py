"""What every admin page is given: who asks, for which task, the pages that this role may see."""

from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response

from sayso.feedback.work_tables import Row
from sayso.web.admin import overview
from sayso.web.pages import render
from sayso.web.proxies import require_same_site
from sayso.web.site import Asker, Refusal, Site
from sayso.web.work.people import Role
from sayso.web.work.tasks import QUESTIONS_OF

PAGES: tuple[tuple[str, str, str, Role], ...] = (
    ("overview", "Progress", "/admin", "reviewer"),
    ("raters", "Raters", "/admin/raters", "admin"),
    ("gold", "Checks", "/admin/gold", "reviewer"),
    ("agreement", "Agreement", "/admin/agreement", "reviewer"),
    ("disagreements", "Disagreements", "/admin/disagreements", "reviewer"),
    ("guideline", "Guideline", "/admin/guideline", "admin"),
    ("export", "Export", "/admin/export", "admin"),
    ("audit", "Audit", "/admin/audit", "admin"),
)


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

    def check_form(self, request: Request, form: dict[str, str]) -> None:
        """Refuse a form that no page of ours has sent.

        Raises: Refusal: 403.
        """
        require_same_site(request)
        self.site.check_token(self.asker, form.get("csrf", ""))


def view_of(site: Site, request: Request, role: Role) -> View:
    """The view of a request.

    Raises: Refusal: 401 or 403 without the role, 404 for an unknown task.
    """
    asker = site.require(request, role)
    with site.read() as db:
        tasks = overview.tasks(db)
    wanted = request.query_params.get("task", site.task)
    chosen = next((task for task in tasks if task["id"] == wanted), None)
    if chosen is None:
        raise Refusal(404, "not_found", "There is no such task.")
    return View(site, asker, chosen, tasks)


def _task_context(task: Row) -> dict[str, Any]:
    kept = ("id", "name", "kind", "images_per_page", "overlap", "state")
    return {"questions": list(QUESTIONS_OF[task["kind"]]), **{key: task[key] for key in kept}}
