"""The API under /api: session, work, votes. A reply to a vote goes out after the commit."""

import logging
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from sqlalchemy import Connection, bindparam, select

from sayso.feedback import work_tables as work
from sayso.feedback.database import ConflictError
from sayso.feedback.work_tables import Row
from sayso.web import messages as m
from sayso.web.bodies import Shown, has_read, image_body, page_body, session_body, task_body
from sayso.web.dependencies import TheSite, asking, changing
from sayso.web.site import Asker, Refusal, Site
from sayso.web.work import people
from sayso.web.work.assigned import is_anything_left
from sayso.web.work.counting import votes_so_far
from sayso.web.work.handing_out import Entry, HandedPage, hand_out
from sayso.web.work.leases import locked_task, release, set_aside
from sayso.web.work.people import Person
from sayso.web.work.queue import told, told_at_the_end
from sayso.web.work.voting import Context, Vote, VoteRefused, cast_vote

log = logging.getLogger("sayso.web")
router = APIRouter(prefix="/api")

_WHY = {
    400: "not a request of this API", 401: "not signed in", 403: "not allowed, or a stale page",
    404: "unknown item", 409: "stored with other content, or already rated",
    410: "the task is closed", 413: "too large", 415: "not JSON", 422: "not valid", 423: "paused",
    428: "a new guideline must be read", 503: "the store cannot be used now; try again",
}  # fmt: skip


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    always = (400, 401, 403, 413, 422, 503)
    return {s: {"model": m.ErrorReply, "description": _WHY[s]} for s in (*always, *statuses)}


_TASK = select(work.tasks).where(work.tasks.c.id == bindparam("of_task"))
_given = work.assignments.c
_PICTURE = (
    select(work.items.c.id, work.items.c.images, _given.swapped)
    .join_from(work.assignments, work.items, work.items.c.id == _given.item)
    .where(_given.key == bindparam("by_key"), _given.rater == bindparam("by_rater"))
)
_STATUS = {"unknown_item": 404, "vote_conflict": 409, "invalid": 422}

Asking = Annotated[Asker, Depends(asking("rater"))]
Changing = Annotated[Asker, Depends(changing("rater"))]


@router.get("/session", responses=_errors())
def session(request: Request, response: Response, site: TheSite, asker: Asking) -> m.SessionBody:
    """Who is signed in, what the task is, and how far it is."""
    site.remember(request, response, asker)
    if not site.task:
        return session_body(site, asker, None, None, None)
    with site.read() as db:
        task = db.execute(_TASK, {"of_task": site.task}).mappings().one()
        shown = task_body(site, db, task, asker.person)
        return session_body(site, asker, shown, _progress(db, task, asker.person), task["overlap"])


@router.post("/guideline/accept", responses=_errors(409))
def accept(body: m.AcceptBody, site: TheSite, asker: Changing) -> m.Accepted:
    """Say that the newest guideline was read."""
    with site.write() as db:
        if body.version != people.guideline(db).version:
            raise Refusal(409, "guideline_changed", "The guideline has changed; read it again.")
        people.accept(db, asker.person.id, body.version)
    return m.Accepted(version=body.version)


@router.post("/next", responses=_errors(410, 423, 428))
def next_pages(body: m.NextBody, site: TheSite, asker: Changing) -> m.NextReply:
    """Lease pages: those that the rater holds and the browser lost first, then new ones."""
    with site.write(shares=True) as db:
        task = _open_task(site, db, asker.person)
        pages, gave_up = hand_out(
            db, task, asker.person, body.have, body.n, site.clock(), site.usable
        )
        if gave_up and not pages:  # nothing is set aside: the folder may be back soon
            log.error("many images of %s cannot be read", site.study.path)
            message = "The images cannot be read at the moment; please tell the study's admin."
            raise Refusal(503, "pictures_missing", message, retry=True)
        done = not pages and not is_anything_left(db, task, asker.person.id)
        return m.NextReply(
            pages=[_page(site, task["kind"], page) for page in pages],
            done=done,
            progress=_progress(db, task, asker.person, done),
        )


@router.post("/votes", responses=_errors(404, 409, 410))
def votes(body: m.VoteBody, site: TheSite, asker: Changing) -> m.VoteReply:
    """Store one vote; the same id and body again gets the same reply."""
    vote, context = Vote(**body.model_dump()), _context(site, asker)
    try:
        with site.write(shares=True) as db:
            stored = cast_vote(db, asker.person, vote, context)
            progress = _progress(db, stored.task, asker.person)
    except VoteRefused as refused:
        raise Refusal(_STATUS[refused.code], refused.code, str(refused)) from None
    except ConflictError:
        message = "You have already rated this elsewhere; the first vote stands."
        raise Refusal(409, "vote_conflict", message) from None
    if stored.closed:
        message = "This task is closed; the vote was kept anyway."
        raise Refusal(410, "task_closed", message, stored=True)
    return m.VoteReply(id=vote.id, progress=progress)


@router.post("/release", responses=_errors())
def give_back(body: m.ReleaseBody, site: TheSite, asker: Changing) -> m.Released:
    """Give pages back that the rater will not rate."""
    with site.write() as db:
        items = release(db, asker.person, body.page_ids, body.broken)
        if body.broken:
            bad = [item["id"] for item in items if not site.usable(item)]
            set_aside(db, bad)
            log.warning("%s could not see %s: %r", asker.person.name, bad, body.message)
    return m.Released(items=len(items))


def _context(site: Site, asker: Asker) -> Context:
    return Context(asker.session.id, site.app_version, site.clock())


def _open_task(site: Site, db: Connection, person: Person) -> Row:
    if not site.task:
        raise Refusal(410, "task_closed", "There is no task here now.")
    task = locked_task(db, site.task)
    if task["state"] == "closed":
        raise Refusal(410, "task_closed", "This task is closed. Thank you for your work.")
    if task["state"] == "paused":
        raise Refusal(423, "paused", "This task is paused; come back later.", retry=True)
    if not has_read(db, people.guideline(db), person):
        raise Refusal(428, "guideline_required", "Please read the guideline first.")
    return task


def _progress(db: Connection, task: Row, person: Person, done: bool = False) -> m.Progress:
    mine = votes_so_far(db, task["id"], person.id)
    so_far = told(mine, task["all_votes"], task["n_items"], task["wanted"], task["check_share"])
    if done:
        so_far = told_at_the_end(so_far, complete=task["votes"] >= task["wanted"])
    return m.Progress(**asdict(so_far))


# pages


def _page(site: Site, kind: str, page: HandedPage) -> m.RatePage | m.ComparePage:
    shown = [Shown(e.item, _sides(site, e), e.newest) for e in page.entries]
    return page_body(kind, page.id, shown, round(page.lease_until * 1000))


def _sides(site: Site, entry: Entry) -> list[list[m.ImageBody]]:
    """The pictures as they stand, left to right; their addresses tell no set, only the place."""
    sides = entry.item["images"][:: -1 if entry.swapped else 1]
    place, found = 0, []
    for side in sides:
        found.append([])
        for path in side:
            found[-1].append(image_body(site, f"/i/{entry.key}/{place}", path))
            place += 1
    return found


def picture_path(db: Connection, rater: str, key: str, place: int) -> tuple[str, str] | None:
    """The item and the path of a picture that was handed to this rater."""
    row = db.execute(_PICTURE, {"by_key": key, "by_rater": rater}).mappings().first()
    if row is None:
        return None
    sides = row["images"][:: -1 if row["swapped"] else 1]
    paths = [path for side in sides for path in side]
    return (row["id"], paths[place]) if 0 <= place < len(paths) else None
