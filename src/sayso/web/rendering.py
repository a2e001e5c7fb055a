"""Render the templates."""

from functools import cache
from pathlib import Path
from typing import Any

from fastapi import Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from sayso.web import sessions
from sayso.web.site import Asker, Refusal, Site

TEMPLATES = Path(__file__).parent / "templates"
_TITLES = {404: "Not found", 403: "Not allowed", 503: "Not possible now"}


@cache
def environment() -> Environment:
    """The templates, each read once."""
    return Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined
    )


def render(
    site: Site, template: str, asker: Asker | None, status: int = 200, **context: Any
) -> HTMLResponse:
    """A page; see the templates for what each is given."""
    person = asker.person if asker else None
    common = {
        **_everywhere(site),
        "rater": {"name": person.name, "role": person.role} if person else None,
        "csrf": sessions.form_token(site.secret, asker.session if asker else None),
    }
    page = environment().get_template(template).render({**common, **context})
    return HTMLResponse(page, status)


def show_message(site: Site, request: Request, refusal: Refusal) -> Response:
    """A page that says what is the matter; it needs no database."""
    if refusal.status == 401:
        return RedirectResponse("/", 303)
    context = {
        **_everywhere(site), "rater": None, "csrf": "", "status": refusal.status,
        "title": _TITLES.get(refusal.status, "Sorry"), "text": refusal.message,
        "action_url": "" if request.url.path == "/" else "/", "action_label": "Start page",
    }  # fmt: skip
    page = environment().get_template("message.html").render(context)
    return HTMLResponse(page, refusal.status)


def _everywhere(site: Site) -> dict[str, Any]:
    return {
        "study_name": site.study.info.name, "app_version": site.app_version, "local": site.local,
        "nav": "",
    }  # fmt: skip
