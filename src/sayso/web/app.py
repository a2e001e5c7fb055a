"""The application: routes and headers. Nothing here leads outside this machine."""

import re
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import MutableHeaders
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sayso.feedback.database import StoreError
from sayso.web import api, decisions, pages
from sayso.web.admin import (
    agreement,
    audit_log,
    checks,
    disagreements,
    export,
    guideline,
    item_pictures,
    progress,
    raters,
)
from sayso.web.errors import error_json, handle_errors
from sayso.web.proxies import UnderPath, counted, relative
from sayso.web.site import Site, is_loopback

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; worker-src 'self'; manifest-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # with "no-referrer" browsers send forms as of origin "null"
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
ADMIN_PAGES = (
    progress, raters, checks, agreement, disagreements, guideline, export, audit_log, item_pictures,
)  # fmt: skip
MOST_BYTES = 256 * 1024
"""Larger requests are refused; the largest is a guideline."""


class _Static(StaticFiles):
    """The page's own files; browsers ask each time whether they changed."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response


def create_app(site: Site) -> FastAPI:
    """The app of one study."""
    app = FastAPI(
        title="Sayso rating app",
        version=site.app_version,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # its redirects name the host that the request claims
        servers=[{"url": site.root_path}] if site.root_path else None,
        description="Work and votes of raters. Every change needs the header X-CSRF-Token.",
    )
    app.state.site = site
    for part in (api, decisions, pages, *ADMIN_PAGES):
        app.include_router(part.router)
    # only these files: a packed page with a secret in it would tell its length
    static = GZipMiddleware(_Static(directory=Path(__file__).parent / "static"))
    app.mount("/static", static, name="static")
    handle_errors(app, HEADERS)
    app.add_middleware(_Guard, site=site)
    app.add_middleware(UnderPath, root_path=site.root_path)
    return app


class _Guard:
    """What holds for every request, around the routes."""

    def __init__(self, app: ASGIApp, site: Site) -> None:
        self._app, self._site = app, site

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        head = scope["method"] == "HEAD"  # served as GET is, without the body

        async def send_guarded(message: Message) -> None:
            if head and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        refusal = _refuse_request(self._site, Request(scope))
        asked = {**scope, "method": "GET"} if head else scope
        receive = counted(receive, MOST_BYTES)
        return await (refusal or self._app)(asked, receive, relative(scope["path"], send_guarded))


def _refuse_request(site: Site, request: Request) -> Response | None:
    outside = site.local and _from_outside(request)
    if outside and _is_local(site):
        return error_json(400, "invalid", outside)
    if "\0" in request.scope["path"]:
        return error_json(400, "invalid", "An address must not contain the character NUL.")
    length = request.headers.get("content-length", "0")
    if not length.isdigit() or int(length) > MOST_BYTES:
        return error_json(413, "too_large", f"Requests are limited to {MOST_BYTES} bytes.")
    return None


def _from_outside(request: Request) -> str:
    """Why a server without sign-in refuses a request; "" for requests of this machine's own."""
    if not is_loopback(_host(request)):
        # a foreign name that leads here would let a foreign page speak as the local rater
        return (
            "This server accepts requests only at localhost and the other names of its own machine."
        )
    if any(name in _FORWARDED or name.startswith("x-forwarded-") for name in request.headers):
        return (
            "This server does not ask anyone to sign in, so it accepts no requests from a proxy. "
            "Add raters first: sayso raters STUDY add NAME."
        )
    return ""


_FORWARDED = {"forwarded", "via", "x-real-ip"}


def _is_local(site: Site) -> bool:
    try:
        return site.still_local()
    except StoreError:
        return True


def _host(request: Request) -> str:
    """The name or address that was asked for, without port and brackets."""
    host = re.fullmatch(r"(?:\[([^\]]*)\]|([^:]*))(?::\d*)?", request.headers.get("host", ""))
    return (host[1] or host[2] or "").lower() if host else ""
