"""The API under /api: session, work, votes. A reply to a vote goes out after the commit."""

import logging
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response
from sqlalchemy import Connection, bindparam, select

from sayso.feedback import work_tables as work
from sayso.feedback.database import ConflictError
from sayso.feedback.work_tables import Row
from sayso.web.messages import (
    AcceptBody,
    Accepted,
    ComparePage,
    ErrorAnswer,
    ImageBody,
    NextAnswer,
    NextBody,
    Progress,
    RateItem,
    RatePage,
    RaterBody,
    ReleaseBody,
    Released,
    SessionAnswer,
    StudyBody,
    TaskBody,
    VoteAnswer,
    VoteBody,
)
from sayso.web.pictures import size_of
from sayso.web.proxies import require_same_site
from sayso.web.sessions import form_token, public_id
from sayso.web.site import Asker, Refusal, Site
from sayso.web.work import people
from sayso.web.work.assigned import is_anything_left
from sayso.web.work.counting import answers_so_far
from sayso.web.work.guideline_text import to_html
from sayso.web.work.handing_out import Entry, HandedPage, hand_out, locked_task, release, set_aside
from sayso.web.work.people import Person
from sayso.web.work.queue import told, told_at_the_end
from sayso.web.work.tasks import QUESTIONS_OF
from sayso.web.work.voting import Circumstances, Vote, VoteRefused, cast_vote, offered

log = logging.getLogger("sayso.web")

_WHY = {
    400: "not a request of this API", 401: "not signed in", 403: "not allowed, or a stale page",
    404: "unknown item", 409: "stored with another body, or answered already",
    410: "the task is closed", 413: "too large", 415: "not JSON", 422: "not valid", 423: "paused",
    428: "a new guideline must be read", 503: "the store cannot be used now; try again",
}  # fmt: skip


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    always = (400, 401, 403, 413, 422, 503)
    return {s: {"model": ErrorAnswer, "description": _WHY[s]} for s in (*always, *statuses)}


_TASK = select(work.tasks).where(work.tasks.c.id == bindparam("of_task"))
_given = work.assignments.c
_PICTURE = (
    select(work.items.c.id, work.items.c.images, _given.swapped)
    .join_from(work.assignments, work.items, work.items.c.id == _given.item)
    .where(_given.key == bindparam("by_key"), _given.rater == bindparam("by_rater"))
)
_STATUS = {"unknown_item": 404, "vote_conflict": 409, "invalid": 422}
Token = Annotated[str, Header(alias="X-CSRF-Token", description="`csrf` of GET /api/session")]


def api(site: Site) -> APIRouter:
    """The routes of the API."""
    router = APIRouter(prefix="/api")

    def changing(request: Request, token: str) -> Asker:
        require_same_site(request)
        asker = site.require(request)
        site.check_token(asker, token)
        return asker

    @router.get("/session", responses=_errors())
    def session(request: Request, response: Response) -> SessionAnswer:
        """Who is signed in, what the task is, and how far it is."""
        asker = site.require(request)
        site.remember(request, response, asker)
        return _session(site, asker)

    @router.post("/guideline/accept", responses=_errors(409))
    def accept(request: Request, body: AcceptBody, token: Token = "") -> Accepted:
        """Say that the newest guideline was read."""
        asker = changing(request, token)
        with site.write() as db:
            if body.version != people.guideline(db).version:
                raise Refusal(409, "guideline_changed", "The guideline has changed; read it again.")
            people.accept(db, asker.person.id, body.version)
        return Accepted(version=body.version)

    @router.post("/next", responses=_errors(410, 423, 428))
    def next_pages(request: Request, body: NextBody, token: Token = "") -> NextAnswer:
        """Lease pages: those that the rater holds and the browser lost first, then new ones."""
        asker = changing(request, token)
        with site.write(shares=True) as db:
            task = _open_task(site, db, asker.person)
            pages, gave_up = hand_out(
                db, task, asker.person, body.have, body.n, site.clock(), site.usable
            )
            if gave_up and not pages:  # nothing is set aside: the folder may be back soon
                log.error("many pictures of %s cannot be read", site.study.path)
                message = (
                    "The pictures cannot be read at the moment; please tell the study's admin."
                )
                raise Refusal(503, "pictures_missing", message, retry=True)
            done = not pages and not is_anything_left(db, task, asker.person.id)
            return NextAnswer(
                pages=[_page(site, task["kind"], page) for page in pages],
                done=done,
                progress=_progress(db, task, asker.person, done),
            )

    @router.post("/votes", responses=_errors(404, 409, 410))
    def votes(request: Request, body: VoteBody, token: Token = "") -> VoteAnswer:
        """Store one answer; the same id and body again gets the same reply."""
        asker = changing(request, token)
        answer, closed = _store_vote(site, asker, Vote(**body.model_dump()))
        if closed:
            message = "This task is closed; the answer was kept all the same."
            raise Refusal(410, "task_closed", message, stored=True)
        return answer

    @router.post("/release", responses=_errors())
    def give_back(request: Request, body: ReleaseBody, token: Token = "") -> Released:
        """Give pages back that the rater will not answer."""
        asker = changing(request, token)
        with site.write() as db:
            items = release(db, asker.person, body.page_ids, body.broken)
            if body.broken:
                bad = [item["id"] for item in items if not site.usable(item)]
                set_aside(db, bad)
                log.warning("%s could not see %s: %r", asker.person.name, bad, body.message)
        return Released(items=len(items))

    return router


def _store_vote(site: Site, asker: Asker, vote: Vote) -> tuple[VoteAnswer, bool]:
    around = Circumstances(asker.session.id, site.app_version, site.clock())
    try:
        with site.write(shares=True) as db:
            receipt = cast_vote(db, asker.person, vote, around)
            progress = _progress(db, receipt.task, asker.person)
    except VoteRefused as refused:
        raise Refusal(_STATUS[refused.code], refused.code, str(refused)) from None
    except ConflictError:
        message = "You have answered this already elsewhere; the first answer stands."
        raise Refusal(409, "vote_conflict", message) from None
    return VoteAnswer(id=vote.id, progress=progress), receipt.closed


def _session(site: Site, asker: Asker) -> SessionAnswer:
    with site.read() as db:
        task = _task(db, site.task) if site.task else None
        return SessionAnswer(
            rater=RaterBody(name=asker.person.name, role=asker.person.role),
            csrf=form_token(site.secret, asker.session),
            local=site.local,
            study=StudyBody(id=site.store_id, name=site.study.info.name),
            task=_task_body(site, db, task, asker.person) if task else None,
            progress=_progress(db, task, asker.person) if task else None,
            overlap=task["overlap"] if task else None,
            app_version=site.app_version,
        )


def _task(db: Connection, task: str) -> Row:
    return db.execute(_TASK, {"of_task": task}).mappings().one()


def _task_body(site: Site, db: Connection, task: Row, person: Person) -> TaskBody:
    guideline = people.guideline(db)
    return TaskBody(
        id=public_id(site.secret, task["id"]),
        kind=task["kind"],
        questions=list(QUESTIONS_OF[task["kind"]]),
        answers=offered(task["kind"], site.split_tie),
        images_per_page=task["images_per_page"],
        guideline_version=guideline.version,
        guideline_html=to_html(guideline.text),
        guideline_accepted=_has_read(db, guideline, person),
        paused=task["state"] == "paused",
        closed=task["state"] == "closed",
    )


def _has_read(db: Connection, guideline: people.Guideline, person: Person) -> bool:
    return not guideline.text or people.has_accepted(db, person.id, guideline.version)


def _open_task(site: Site, db: Connection, person: Person) -> Row:
    if not site.task:
        raise Refusal(410, "task_closed", "There is no task here now.")
    task = locked_task(db, site.task)
    if task["state"] == "closed":
        raise Refusal(410, "task_closed", "This task is closed. Thank you for your work.")
    if task["state"] == "paused":
        raise Refusal(423, "paused", "The work is paused; come back later.", retry=True)
    if not _has_read(db, people.guideline(db), person):
        raise Refusal(428, "guideline_required", "Please read the guideline first.")
    return task


def _progress(db: Connection, task: Row, person: Person, done: bool = False) -> Progress:
    mine = answers_so_far(db, task["id"], person.id)
    so_far = told(mine, task["answers"], task["n_items"], task["wanted"], task["check_share"])
    if done:
        so_far = told_at_the_end(so_far, complete=task["votes"] >= task["wanted"])
    return Progress(**asdict(so_far))


# pages


def _page(site: Site, kind: str, page: HandedPage) -> RatePage | ComparePage:
    first = page.entries[0]
    common: dict[str, Any] = {
        "page_id": page.id,
        "prompt": first.item["prompt"],
        "question": first.item["question"],
        "lease_until": round(page.lease_until * 1000),
    }
    if kind == "rate":
        items = [
            RateItem(item_id=e.item["id"], image=_images(site, e)[0][0], supersedes=e.newest)
            for e in page.entries
        ]
        return RatePage(kind="rate", items=items, **common)
    left, right = _images(site, first)
    return ComparePage(
        kind="compare", item_id=first.item["id"], left=left, right=right, supersedes=first.newest,
        **common,
    )  # fmt: skip


def _images(site: Site, entry: Entry) -> list[list[ImageBody]]:
    """The pictures as they stand, left to right; their addresses tell no set, only the place."""
    sides = entry.item["images"][:: -1 if entry.swapped else 1]
    place, found = 0, []
    for side in sides:
        found.append([])
        for path in side:
            width, height = size_of(site.picture(path))
            url = f"/i/{entry.key}/{place}"
            found[-1].append(ImageBody(url=url, width=width, height=height))
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
