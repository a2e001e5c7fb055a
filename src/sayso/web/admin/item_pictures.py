"""The pictures on the admin pages."""

from fastapi import Response
from starlette.concurrency import run_in_threadpool

from sayso.web.admin.view import ReviewerView, admin_router
from sayso.web.picture_responses import Range, picture_response
from sayso.web.site import Refusal, Site
from sayso.web.work.item_pictures import picture_paths

router = admin_router()


@router.get("/i/{item}/{place}")
async def picture(
    view: ReviewerView, item: str, place: int, px: int = 0, wanted: Range = None
) -> Response:
    path = await run_in_threadpool(_path_of, view.site, item, place)
    return await picture_response(view.site, item, path, px, wanted)


def _path_of(site: Site, item: str, place: int) -> str:
    with site.read() as db:
        paths = picture_paths(db, item)
    if not 0 <= place < len(paths):
        raise Refusal(404, "unknown_item", "There is no such image.")
    return paths[place]
