"""The API of the rating page for reviewers, who decide what raters disagree about.

It speaks as `sayso.web.api` does, so the page is the same: blind, with the same keys. Nothing is
leased; what somebody else has decided meanwhile is refused in a sentence.
"""

from collections.abc import Iterator
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from sqlalchemy import Connection, select

from sayso.feedback import work_tables as work
from sayso.feedback.database import ConflictError
from sayso.feedback.work_tables import Row
from sayso.web import messages as m
from sayso.web.bodies import Shown, image_body, page_body, session_body, task_body
from sayso.web.dependencies import TheSite, asking, changing
from sayso.web.sessions import public_id
from sayso.web.site import Asker, Refusal, Site
from sayso.web.work import audit
from sayso.web.work.deciding import decide
from sayso.web.work.disagreements import Split, Standing, disagreements, standing
from sayso.web.work.item_pictures import items_by_id, picture_urls, sides
from sayso.web.work.leases import set_aside
from sayso.web.work.voting import Context, Vote, VoteRefused

router = APIRouter(prefix="/api/decisions/{task}", include_in_schema=False)

_STATUS = {"unknown_item": 404, "vote_conflict": 409, "rated": 409, "decided": 409, "invalid": 422}

Asking = Annotated[Asker, Depends(asking("reviewer"))]
Changing = Annotated[Asker, Depends(changing("reviewer"))]


def splits_of(site: Site, task: Row) -> list[Split]:
    """The items of a task on which raters disagree."""

    def count() -> list[Split]:
        with site.read() as db:
            return disagreements(db, task)

    return site.counts.get(("disagreements", task["id"]), count).value


def standing_of(site: Site, db: Connection, task: Row, reviewer: str) -> Standing:
    """How far the decisions are, for a reviewer who is named."""
    return standing(db, task, splits_of(site, task), reviewer)


@router.get("/session")
def session(
    request: Request, response: Response, task: str, site: TheSite, asker: Asking
) -> m.SessionBody:
    site.remember(request, response, asker)
    with site.read() as db:
        row = _task(db, task)
        so_far = standing_of(site, db, row, asker.person.name)
        # what waits in the browser as a rater's vote is no decision
        return session_body(
            site, asker, _task_body(site, db, row, asker), _progress(so_far), row["overlap"],
            outbox="/decisions",
        )  # fmt: skip


@router.post("/next")
def next_pages(body: m.NextBody, task: str, site: TheSite, asker: Changing) -> m.NextReply:
    with site.read() as db:
        row = _task(db, task)
        so_far = standing_of(site, db, row, asker.person.name)
        wanted = (s for s in so_far.waiting if s.item not in body.have)
        mine = (s for s in wanted if (asker.person.id, s.item) not in site.unseen)
        pages = list(_pages(site, db, row, mine, body.n))
    known = {s.item for s in so_far.waiting} & set(body.have)
    return m.NextReply(pages=pages, done=not pages and not known, progress=_progress(so_far))


@router.post("/votes")
def votes(body: m.VoteBody, task: str, site: TheSite, asker: Changing) -> m.VoteReply:
    context = Context(asker.session.id, site.app_version, site.clock(), adjudication=True)
    try:
        with site.write() as db:
            stored = decide(db, asker.person, Vote(**body.model_dump()), context)
            if not stored.repeated:
                audit.note(db, asker.person.name, "decide", stored.task["name"])
    except VoteRefused as refused:
        raise Refusal(_STATUS[refused.code], refused.code, str(refused)) from None
    except ConflictError:
        message = "You have already decided this elsewhere; the first decision stands."
        raise Refusal(409, "vote_conflict", message) from None
    with site.read() as db:
        so_far = standing_of(site, db, _task(db, task), asker.person.name)
    return m.VoteReply(id=stored.id, progress=_progress(so_far))


@router.post("/release")
def give_back(body: m.ReleaseBody, site: TheSite, asker: Changing) -> m.Released:
    if body.broken:
        site.unseen.update((asker.person.id, item) for item in body.page_ids)
        with site.write() as db:
            items = items_by_id(db, body.page_ids).values()
            set_aside(db, [item["id"] for item in items if not site.usable(item)])
    return m.Released(items=len(body.page_ids))


def _task(db: Connection, task: str) -> Row:
    row = db.execute(select(work.tasks).where(work.tasks.c.id == task)).mappings().first()
    if row is None:
        raise Refusal(404, "not_found", "There is no such task.")
    return row


def _task_body(site: Site, db: Connection, task: Row, asker: Asker) -> m.TaskBody:
    """A reviewer decides one image at a time, whatever the state of the task."""
    as_decided = {
        "id": public_id(site.secret, f"decisions of {task['id']}"), "images_per_page": 1,
        "guideline_accepted": True, "paused": False, "closed": False,
    }  # fmt: skip
    return task_body(site, db, task, asker.person).model_copy(update=as_decided)


def _progress(so_far: Standing) -> m.Progress:
    done, left = len(so_far.decided), len(so_far.waiting)
    return m.Progress(
        mine=so_far.mine,
        mine_total=so_far.mine + left,
        project=done,
        project_total=done + left + len(so_far.rated),
    )


def _pages(
    site: Site, db: Connection, task: Row, splits: Iterator[Split], n: int
) -> Iterator[m.RatePage | m.ComparePage]:
    """Up to `n` pages whose pictures can be read."""
    for split in splits:
        item = items_by_id(db, [split.item])[split.item]
        if n and site.usable(item):
            n -= 1
            shown = [Shown(item, _sides(site, item, task["seed"]))]
            yield page_body(task["kind"], item["id"], shown, lease_until_ms=0)
        if not n:
            return


def _sides(site: Site, item: Row, seed: int) -> list[list[m.ImageBody]]:
    urls, paths = picture_urls(item, seed), sides(item, seed)
    return [
        [image_body(site, url, path) for url, path in zip(*side, strict=True)]
        for side in zip(urls, paths, strict=True)
    ]
