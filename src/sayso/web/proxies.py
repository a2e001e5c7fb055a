"""What stands between a rater's browser and this server: chunked bodies, paths, rewritten hosts."""

import logging
import re
from urllib.parse import quote, urlsplit

from fastapi import Request
from fastapi.responses import RedirectResponse
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sayso.base.errors import UserError
from sayso.web.site import Refusal

log = logging.getLogger("sayso.web")

RETRY_S = 15
_told: set[tuple[str, str]] = set()  # pairs of origin and host that were logged
_OURS = re.compile(rb'((?:href|action|src)=")/(?!/)')
OWN = frozenset((
    "admin", "api", "favicon.ico", "healthz", "i", "in", "offline", "openapi.json", "out",
    "sign-in", "static", "worker.js",
))  # fmt: skip
"""How the addresses of this site begin."""


def check_root_path(path: str) -> str:
    """The path under which a proxy serves this site, without a slash at its end; "" is none.

    Raises: UserError: if it is no path, or begins as an address of this site does.
    """
    path = path.rstrip("/")
    parts = path.split("/")
    if parts[0] or any(not re.fullmatch(r"[\w.~-]+", p, re.ASCII) or p in (".", "..")
                       for p in parts[1:]):  # fmt: skip
        raise UserError(f"--root-path {path!r} is not a valid path; give one such as /sayso")
    if parts[1:] and parts[1] in OWN:
        raise UserError(f"--root-path {path!r} clashes with a page of the app; give another path")
    return path


class UnderPath:
    """The site under a path of a proxy's, whether or not the proxy takes it off."""

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app, self._root = app, root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope.get("path", "")
        if self._root and path == self._root:  # addresses on the page are relative to the slash
            return await RedirectResponse(f"{self._root}/", 307)(scope, receive, send)
        if self._root and path.startswith(f"{self._root}/"):
            rest = path.removeprefix(self._root)
            scope = {**scope, "path": rest, "raw_path": quote(rest).encode()}
        return await self._app(scope, receive, send)


def own_address(request: Request, root_path: str) -> str:
    """Where the browser sees this site, for links to it.

    Without a `root_path` the page that led to an admin page tells what a proxy has taken off.
    """
    host = request.url.netloc
    came_from = urlsplit(request.headers.get("referer", ""))
    if not root_path and came_from.netloc == host and "/admin" in came_from.path:
        root_path = came_from.path.partition("/admin")[0]
    return f"{request.url.scheme}://{host}{root_path}"


def counted(receive: Receive, most_bytes: int) -> Receive:
    """Receive a body whose length nobody has said, as tunnels send it, and count it as it comes.

    Raises: HTTPException: 413 as soon as there are more bytes than `most_bytes`.
    """
    seen = 0

    async def next_message() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > most_bytes:
            raise HTTPException(413, f"Requests are limited to {most_bytes} bytes")
        return message

    return next_message


def relative(path: str, send: Send) -> Send:
    """Send a response whose own addresses are relative to the page.

    So they lead here as well where a proxy serves this site under a path of its own, such as
    https://example.org/rating/, and takes the path off.

    Args:
        path: of the request, as it came here.
    """
    up = "../" * (path.count("/") - 1) or "./"
    start: Message | None = None

    async def send_relative(message: Message) -> None:
        nonlocal start
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            place = headers.get("location", "")
            if place.startswith("/") and not place.startswith("//"):
                headers["location"] = up + place[1:]
            if headers.get("content-type", "").startswith("text/html"):
                start = message  # its length is not known yet
                return
        elif start is not None:
            message["body"] = _OURS.sub(rb"\1" + up.encode(), message.get("body", b""))
            MutableHeaders(scope=start)["content-length"] = str(len(message["body"]))
            await send(start)
            start = None
        await send(message)

    return send_relative


def require_same_site(request: Request) -> None:
    """Refuse a change that another site sent, as far as the browser says.

    Raises: Refusal: 403, with what a proxy that rewrites Host has to do.
    """
    origin, host = request.headers.get("origin"), request.headers.get("host", "")
    if origin is None:
        if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            raise Refusal(403, "foreign_origin", "This request came from another site.")
    elif origin.partition("://")[2] != host:
        message = (
            f"This page was opened at {origin}, but its request arrived as one to {host}: the "
            "proxy in between must pass on the Host header. Please tell the organiser."
        )
        if (origin, host) not in _told and len(_told) < 100:
            _told.add((origin, host))
            log.warning(
                "a request from %s arrived as one to %s: the proxy must pass on Host", origin, host
            )
        raise Refusal(403, "foreign_origin", message, retry=True, retry_after_s=RETRY_S)
