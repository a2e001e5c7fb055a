"""What routes depend on: the site, who is asking, the fields of a form."""

from collections.abc import Callable
from typing import Annotated
from urllib.parse import parse_qsl

from fastapi import Depends, Header, Request

from sayso.web.proxies import require_same_site
from sayso.web.site import Asker, Refusal, Site
from sayso.web.work.people import Role


async def _site(request: Request) -> Site:
    return request.app.state.site


TheSite = Annotated[Site, Depends(_site)]
Token = Annotated[str, Header(alias="X-CSRF-Token", description="`csrf` of the session")]


def asking(role: Role) -> Callable[..., Asker]:
    """The dependency that finds out who is asking, and refuses who has a weaker role."""

    def asker(request: Request, site: TheSite) -> Asker:
        return site.require(request, role)

    return asker


def changing(role: Role) -> Callable[..., Asker]:
    """As `asking`, for calls that change something: only a page of this site may make them."""

    def asker(request: Request, site: TheSite, token: Token = "") -> Asker:
        require_same_site(request)
        found = site.require(request, role)
        site.check_token(found, token)
        return found

    return asker


async def read_form(request: Request) -> dict[str, str]:
    """The fields of a form; a name given twice has its last value.

    Raises: Refusal: 422 for the character NUL, which PostgreSQL cannot store.
    """
    text = (await request.body()).decode(errors="replace")
    fields = dict(parse_qsl(text, keep_blank_values=True))
    if any("\0" in value for value in fields.values()):
        raise Refusal(422, "invalid", "A form must not contain the character NUL.")
    return fields


Fields = Annotated[dict[str, str], Depends(read_form)]
