"""Hand out pictures: made ready once, in parts after a break, and never in the way of votes."""

import re
from typing import Annotated

from anyio import to_thread
from fastapi import Header, Response
from starlette.concurrency import run_in_threadpool

from sayso.web.pictures import BrokenPicture, Served, read
from sayso.web.site import Refusal, Site
from sayso.web.work.leases import set_aside

Range = Annotated[str | None, Header(alias="Range")]


async def picture_response(
    site: Site, item: str, path: str, shown_px: int, wanted: str | None
) -> Response:
    """The picture of an item; one that is broken sets its item aside.

    Making one ready takes tens of milliseconds of a processor, so half of the processors do that
    (`Pictures.makers`) and the other threads of the server stay free for votes.

    Args:
        path: relative to the study.
        shown_px: see `pictures.as_shown`.
        wanted: the header Range; the rest of a picture of which a part has come.
    Raises: Refusal: 404 if it is gone or not whole.
    """
    try:
        content, found = await run_in_threadpool(_ready, site, path, shown_px)
        if found is None:
            make, makers = site.pictures.make, site.pictures.makers
            found = await to_thread.run_sync(make, content, shown_px, limiter=makers)
    except BrokenPicture:
        await run_in_threadpool(_set_aside, site, item)
        raise Refusal(404, "image_gone", "This image is missing.") from None
    return _response(found, wanted)


def _ready(site: Site, path: str, shown_px: int) -> tuple[bytes, Served | None]:
    content = read(site.picture(path))
    return content, site.pictures.ready(content, shown_px)


def _set_aside(site: Site, item: str) -> None:
    with site.write() as db:
        set_aside(db, [item])


def _response(picture: Served, wanted: str | None) -> Response:
    total = len(picture.content)
    headers = {"Accept-Ranges": "bytes"}
    asked = re.fullmatch(r"bytes=(\d{1,12})-", wanted or "")
    first = int(asked[1]) if asked else 0
    if not 0 < first < total:
        return Response(picture.content, media_type=picture.media_type, headers=headers)
    headers["Content-Range"] = f"bytes {first}-{total - 1}/{total}"
    rest = picture.content[first:]
    return Response(rest, 206, media_type=picture.media_type, headers=headers)
