"""The application: routes, headers, errors. Nothing here leads outside this machine."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sayso.base.errors import UserError
from sayso.feedback.database import StoreError
from sayso.web.admin.routes import admin
from sayso.web.api import api
from sayso.web.decisions import Splits, decisions
from sayso.web.pages import pages, show_message
from sayso.web.proxies import UnderPath, counted, relative
from sayso.web.site import Refusal, Site, is_loopback

log = logging.getLogger("sayso.web")

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
MOST_BYTES = 256 * 1024
"""Larger requests are refused; the largest is a guideline."""

_CODES = {400: "invalid", 404: "not_found", 405: "not_allowed", 413: "too_large"}


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
    splits = Splits(site)
    app.include_router(api(site))
    app.include_router(decisions(site, splits))
    app.include_router(pages(site))
    app.include_router(admin(site, splits))
    # only these files: a packed page with a secret in it would tell its length
    static = GZipMiddleware(_Static(directory=Path(__file__).parent / "static"))
    app.mount("/static", static, name="static")
    _answer_errors(app, site)
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

        head = scope["method"] == "HEAD"  # answered as GET is, without the body

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
        return _json(400, "invalid", outside)
    if "\0" in request.scope["path"]:
        return _json(400, "invalid", "An address cannot hold the character NUL.")
    length = request.headers.get("content-length", "0")
    if not length.isdigit() or int(length) > MOST_BYTES:
        return _json(413, "too_large", f"A request may have {MOST_BYTES} bytes.")
    return None


def _from_outside(request: Request) -> str:
    """Why a server without sign-in does not answer; "" for requests of this machine's own."""
    if not is_loopback(_host(request)):
        # a foreign name that leads here would let a foreign page speak as the local rater
        return "This server answers only to localhost and the other names of this machine's own."
    if any(name in _FORWARDED or name.startswith("x-forwarded-") for name in request.headers):
        return (
            "This server asks nobody to sign in, so it answers no proxy; "
            "add the raters first: sayso raters STUDY add NAME."
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


# errors


def _json(
    status: int, code: str, message: str, retry: bool = False, more: Mapping[str, Any] | None = None
) -> JSONResponse:
    error = {"code": code, "message": message, "retry": retry, **(more or {})}
    return JSONResponse({"error": error}, status)


def _answer_errors(app: FastAPI, site: Site) -> None:
    def answer(request: Request, refusal: Refusal) -> Response:
        if request.url.path.startswith(("/api/", "/i/")):  # asked for by scripts
            return _json(refusal.status, refusal.code, refusal.message, refusal.retry, refusal.more)
        return show_message(site, request, refusal)

    def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refusal)
        return answer(request, error)

    def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = _CODES.get(error.status_code, "error")
        response = answer(request, Refusal(error.status_code, code, f"{error.detail}."))
        response.headers.update(error.headers or {})
        return response

    def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        said = "; ".join(f"{_place(e['loc'])}: {e['msg']}" for e in error.errors()[:3])
        return answer(request, Refusal(422, "invalid", f"This request is not valid: {said}."))

    def unavailable(request: Request, error: Exception) -> Response:
        log.error("%s", error)
        message = "The answers cannot be stored at the moment; they are kept in your browser."
        return answer(request, Refusal(503, "store_unavailable", message, retry=True))

    def user_error(request: Request, error: Exception) -> Response:
        log.error("%s", error)
        return answer(request, Refusal(409, "refused", "This is not possible now."))

    def bug(request: Request, error: Exception) -> Response:
        log.exception("a bug", exc_info=error)
        response = answer(request, Refusal(500, "bug", "Something went wrong here.", retry=True))
        response.headers.update(HEADERS)
        return response

    app.add_exception_handler(Refusal, refused)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(StoreError, unavailable)
    app.add_exception_handler(UserError, user_error)
    app.add_exception_handler(Exception, bug)


def _place(loc: tuple[Any, ...]) -> str:
    return ".".join(str(part) for part in loc if part != "body") or "body"
