"""The pages for raters: rating, sign-in, pictures."""

import json
import re
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool

from sayso.base.types import digest
from sayso.feedback import work_tables as work
from sayso.web import sessions
from sayso.web.api import picture_path
from sayso.web.dependencies import Fields, TheSite
from sayso.web.picture_responses import Range, picture_response
from sayso.web.proxies import require_same_site
from sayso.web.rendering import environment, render
from sayso.web.site import Refusal, Site
from sayso.web.work import people
from sayso.web.work.leases import release_all

router = APIRouter(include_in_schema=False)

STATIC = Path(__file__).parent / "static"
OFFLINE = ("offline", *(f"static/{name}" for name in (
    "offline.js", "store.js", "style.css", "theme.js", "icon.svg",
)))  # fmt: skip
"""All that the browser keeps for a reload without a connection; the page comes first.

Addresses relative to where the site begins."""


@router.get("/")
def rating_page(request: Request, site: TheSite) -> Response:
    asker = site.welcome(request)
    if asker is None:
        return render(site, "sign_in.html", None, error="", next="/")
    response = render(site, "rate.html", asker)
    site.remember(request, response, asker)
    return response


@router.get("/sign-in")
def sign_in_page(request: Request, site: TheSite, next: str = "/") -> Response:
    if site.welcome(request) is not None:
        return RedirectResponse(_own_path(next), 303)
    return render(site, "sign_in.html", None, error="", next=_own_path(next))


@router.get("/in/{secret}")
def sign_in_by_link(request: Request, site: TheSite, secret: str) -> Response:
    return _sign_in(site, request, secret, "/")


@router.post("/sign-in")
def sign_in(request: Request, site: TheSite, form: Fields) -> Response:
    require_same_site(request)
    site.check_token(site.asker(request), form.get("csrf", ""))
    secret = re.split(r"[?#]", form.get("link", "").strip())[0].rsplit("/", 1)[-1]
    return _sign_in(site, request, secret, _own_path(form.get("next", "/")))


@router.post("/out")
def sign_out(request: Request, site: TheSite, form: Fields) -> Response:
    asker = site.require(request)
    site.check_token(asker, form.get("csrf", ""))
    with site.write() as db:
        release_all(db, asker.person)
        people.end_sessions(db, asker.person.id)
    response = RedirectResponse("/", 303)
    response.delete_cookie(site.cookie, path=site.cookie_path)
    return response


@router.get("/i/{key}/{place}")
async def picture(
    request: Request, site: TheSite, key: str, place: int, px: int = 0, wanted: Range = None
) -> Response:
    """The picture for a frame with `px` pixels of the screen; without it the original."""
    item, path = await run_in_threadpool(_handed, site, request, key, place)
    return await picture_response(site, item, path, px, wanted)


@router.get("/offline")
def offline_page() -> Response:
    """What the browser keeps for a reload without a connection: it names nobody."""
    return HTMLResponse(environment().get_template("offline.html").render())


@router.get("/worker.js")
def worker() -> Response:
    headers = {"Cache-Control": "no-cache"}
    return Response(worker_script(), media_type="text/javascript", headers=headers)


@router.get("/healthz")
def health(site: TheSite) -> JSONResponse:
    """Whether the server and its database respond."""
    with site.read() as db:
        db.execute(select(work.store.c.id)).one()
    return JSONResponse({"ok": True})


@router.get("/favicon.ico")
def icon() -> Response:
    return Response(status_code=204)


@cache
def worker_script() -> str:
    """worker.js with the files it keeps and a hash of them; any change makes it another worker."""
    page = environment().get_template("offline.html").render()
    kept = [page, *((STATIC / Path(url).name).read_text(encoding="utf-8") for url in OFFLINE[1:])]
    script = (STATIC / "worker.js").read_text(encoding="utf-8")
    version = digest([*kept, script])
    return f'const VERSION = "{version}";\nconst FILES = {json.dumps(OFFLINE)};\n{script}'


def _handed(site: Site, request: Request, key: str, place: int) -> tuple[str, str]:
    """Item and path of a picture that was handed to who is asking."""
    asker = site.require(request)
    with site.read() as db:
        found = picture_path(db, asker.person.id, key, place)
    if found is None:
        raise Refusal(404, "unknown_item", "There is no such image.")
    return found


def _own_path(path: str) -> str:
    """Where to go after signing in: never to another site."""
    return path if path.startswith("/") and not path.startswith(("//", "/\\")) else "/"


def _sign_in(site: Site, request: Request, secret: str, then: str) -> Response:
    with site.read() as db:
        person = people.by_link(db, secret)
    if person is None:
        error = "This link does not work. Ask the organiser for a new one."
        return render(site, "sign_in.html", None, status=403, error=error, next=then)
    response = RedirectResponse(then, 303)
    site.set_cookie(request, response, sessions.begin(person.id, person.epoch))
    return response
