"""The pages for raters: rating, sign-in, pictures."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qsl

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool

from sayso.base.types import digest
from sayso.feedback import work_tables as work
from sayso.web import sessions
from sayso.web.api import picture_path
from sayso.web.picture_answers import PictureAnswers, Range
from sayso.web.proxies import require_same_site
from sayso.web.site import Asker, Refusal, Site
from sayso.web.work import people
from sayso.web.work.handing_out import release_all
from sayso.web.work.people import Person

TEMPLATES = Path(__file__).parent / "templates"
STATIC = Path(__file__).parent / "static"
OFFLINE = ("offline", *(f"static/{name}" for name in (
    "offline.js", "store.js", "style.css", "theme.js", "icon.svg",
)))  # fmt: skip
"""All that the browser keeps for a reload without a connection; the page comes first.

Addresses relative to where the site begins."""


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined
    )


async def read_form(request: Request) -> dict[str, str]:
    """The fields of a form; a name given twice has its last value.

    Raises: Refusal: 422 for the character NUL, which PostgreSQL cannot store.
    """
    text = (await request.body()).decode(errors="replace")
    fields = dict(parse_qsl(text, keep_blank_values=True))
    if any("\0" in value for value in fields.values()):
        raise Refusal(422, "invalid", "This form holds a character that no text has.")
    return fields


Fields = Annotated[dict[str, str], Depends(read_form)]


@cache
def worker_script() -> str:
    """worker.js with the files it keeps and a hash of them; any change makes it another worker."""
    page = _environment().get_template("offline.html").render()
    kept = [page, *((STATIC / Path(url).name).read_text(encoding="utf-8") for url in OFFLINE[1:])]
    script = (STATIC / "worker.js").read_text(encoding="utf-8")
    version = digest([*kept, script])
    return f'const VERSION = "{version}";\nconst FILES = {json.dumps(OFFLINE)};\n{script}'


def render(
    site: Site, template: str, asker: Asker | None, status: int = 200, **context: Any
) -> HTMLResponse:
    """A page; see the templates for what each is given."""
    person = asker.person if asker else None
    common = {
        "study_name": site.study.info.name,
        "rater": {"name": person.name, "role": person.role} if person else None,
        "csrf": sessions.form_token(site.secret, asker.session if asker else None),
        "app_version": site.app_version,
        "local": site.local,
        "nav": "",
    }
    page = _environment().get_template(template).render({**common, **context})
    return HTMLResponse(page, status)


def show_message(site: Site, request: Request, refusal: Refusal) -> Response:
    """A page that says what is the matter; it needs no database."""
    if refusal.status == 401:
        return RedirectResponse("/", 303)
    title = {404: "Not found", 403: "Not allowed", 503: "Not possible now"}
    context = {
        "study_name": site.study.info.name, "rater": None, "csrf": "", "local": site.local,
        "app_version": site.app_version, "nav": "", "status": refusal.status,
        "title": title.get(refusal.status, "Sorry"), "text": refusal.message,
        "action_url": "" if request.url.path == "/" else "/", "action_label": "To the start page",
    }  # fmt: skip
    page = _environment().get_template("message.html").render(context)
    return HTMLResponse(page, refusal.status)


def pages(site: Site) -> APIRouter:
    """The routes of the raters' pages."""
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    def rating_page(request: Request) -> Response:
        asker = site.welcome(request)
        if asker is None:
            return render(site, "sign_in.html", None, error="", next="/")
        response = render(site, "rate.html", asker)
        site.remember(request, response, asker)
        return response

    @router.get("/sign-in")
    def sign_in_page(request: Request, next: str = "/") -> Response:
        if site.welcome(request) is not None:
            return RedirectResponse(_own_path(next), 303)
        return render(site, "sign_in.html", None, error="", next=_own_path(next))

    @router.get("/in/{secret}")
    def sign_in_by_link(request: Request, secret: str) -> Response:
        return _sign_in(site, request, secret, "/")

    @router.post("/sign-in")
    def sign_in(request: Request, form: Fields) -> Response:
        require_same_site(request)
        asker = site.asker(request)
        site.check_token(asker, form.get("csrf", ""))
        secret = re.split(r"[?#]", form.get("link", "").strip())[0].rsplit("/", 1)[-1]
        return _sign_in(site, request, secret, _own_path(form.get("next", "/")))

    @router.post("/out")
    def sign_out(request: Request, form: Fields) -> Response:
        asker = site.require(request)
        site.check_token(asker, form.get("csrf", ""))
        with site.write() as db:
            release_all(db, asker.person)
            people.end_sessions(db, asker.person.id)
        response = RedirectResponse("/", 303)
        response.delete_cookie(site.cookie, path=site.cookie_path)
        return response

    answers = PictureAnswers(site)

    def handed(request: Request, key: str, place: int) -> tuple[str, str]:
        asker = site.require(request)
        with site.read() as db:
            found = picture_path(db, asker.person.id, key, place)
        if found is None:
            raise Refusal(404, "unknown_item", "There is no such picture.")
        return found

    @router.get("/i/{key}/{place}")
    async def picture(
        request: Request, key: str, place: int, px: int = 0, wanted: Range = None
    ) -> Response:
        """The picture for a frame with `px` pixels of the screen; without it the original."""
        item, path = await run_in_threadpool(handed, request, key, place)
        return await answers.answer(item, path, px, wanted)

    @router.get("/offline")
    def offline_page() -> Response:
        """What the browser keeps for a reload without a connection: it names nobody."""
        return HTMLResponse(_environment().get_template("offline.html").render())

    @router.get("/worker.js")
    def worker() -> Response:
        headers = {"Cache-Control": "no-cache"}
        return Response(worker_script(), media_type="text/javascript", headers=headers)

    @router.get("/healthz")
    def health() -> JSONResponse:
        """Whether the server and its database answer."""
        with site.read() as db:
            db.execute(select(work.store.c.id)).one()
        return JSONResponse({"ok": True})

    @router.get("/favicon.ico")
    def icon() -> Response:
        return Response(status_code=204)

    return router


def _own_path(path: str) -> str:
    """Where to go after signing in: never to another site."""
    return path if path.startswith("/") and not path.startswith(("//", "/\\")) else "/"


def _sign_in(site: Site, request: Request, secret: str, then: str) -> Response:
    person = _by_link(site, secret)
    if person is None:
        error = "This link does not work; ask for a new one."
        return render(site, "sign_in.html", None, status=403, error=error, next=then)
    response = RedirectResponse(then, 303)
    site.set_cookie(request, response, sessions.begin(person.id, person.epoch))
    return response


def _by_link(site: Site, secret: str) -> Person | None:
    with site.read() as db:
        return people.by_link(db, secret)
