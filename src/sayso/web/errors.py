"""What goes wrong in a request, as JSON for scripts and as a page for people."""

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from sayso.base.errors import UserError
from sayso.feedback.database import StoreError
from sayso.web.rendering import show_message
from sayso.web.site import Refusal

log = logging.getLogger("sayso.web")

_CODES = {400: "invalid", 404: "not_found", 405: "not_allowed", 413: "too_large"}


def error_json(
    status: int, code: str, message: str, retry: bool = False, more: Mapping[str, Any] | None = None
) -> JSONResponse:
    """The one shape of errors of the API."""
    error = {"code": code, "message": message, "retry": retry, **(more or {})}
    return JSONResponse({"error": error}, status)


def handle_errors(app: FastAPI, headers: Mapping[str, str]) -> None:
    """Let an app say what went wrong.

    Args:
        headers: for the reply to a bug, which passes no middleware.
    """
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(StoreError, _unavailable)
    app.add_exception_handler(UserError, _user_error)

    def bug(request: Request, error: Exception) -> Response:
        log.exception("a bug", exc_info=error)
        message = "Something went wrong on the server."
        response = _reply(request, Refusal(500, "bug", message, retry=True))
        response.headers.update(headers)
        return response

    app.add_exception_handler(Exception, bug)


def _reply(request: Request, refusal: Refusal) -> Response:
    if request.url.path.startswith(("/api/", "/i/")):  # asked for by scripts
        return error_json(
            refusal.status, refusal.code, refusal.message, refusal.retry, refusal.more
        )
    return show_message(request.app.state.site, request, refusal)


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return _reply(request, error)


def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = _CODES.get(error.status_code, "error")
    response = _reply(request, Refusal(error.status_code, code, f"{error.detail}."))
    response.headers.update(error.headers or {})
    return response


def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    said = "; ".join(f"{_place(e['loc'])}: {e['msg']}" for e in error.errors()[:3])
    return _reply(request, Refusal(422, "invalid", f"This request is not valid: {said}."))


def _unavailable(request: Request, error: Exception) -> Response:
    log.error("%s", error)
    message = "Votes cannot be stored at the moment; yours are kept in your browser."
    return _reply(request, Refusal(503, "store_unavailable", message, retry=True))


def _user_error(request: Request, error: Exception) -> Response:
    log.error("%s", error)
    return _reply(request, Refusal(409, "refused", "This is not possible now."))


def _place(loc: tuple[Any, ...]) -> str:
    return ".".join(str(part) for part in loc if part != "body") or "body"
