"""The API of the rating page for reviewers, who decide what raters disagree about.

It speaks as `sayso.web.api` does, so the page is the same: blind, with the same keys. Nothing is
leased; what somebody else has decided meanwhile is refused in a sentence.
"""

from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response
from sqlalchemy import Connection, select

from sayso.feedback import work_tables as work
from sayso.feedback.database import ConflictError
from sayso.feedback.work_tables import Row
from sayso.web.admin.agreement import newest_votes
from sayso.web.admin.counts import Counter
from sayso.web.admin.overview import items_by_id
from sayso.web.messages import (
    ComparePage,
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
from sayso.web.work import audit, people
from sayso.web.work.deciding import decide
from sayso.web.work.disagreements import Split, Standing, disagreements, standing
from sayso.web.work.guideline_text import to_html
from sayso.web.work.handing_out import set_aside
from sayso.web.work.item_pictures import picture_urls, sides
from sayso.web.work.tasks import QUESTIONS_OF
from sayso.web.work.voting import Circumstances, Vote, VoteRefused, offered

STATUS = {"unknown_item": 404, "vote_conflict": 409, "judged": 409, "decided": 409, "invalid": 422}
Token = Annotated[str, Header(alias="X-CSRF-Token", description="`csrf` of the session")]


class Splits:
    """The items of each task on which raters disagree, counted as often as their cost allows."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._counters: dict[str, Counter[list[Split]]] = {}

    def of(self, task: Row) -> list[Split]:
        counter = self._counters.setdefault(task["id"], Counter(self._site.clock))
        with self._site.read() as db:
            newest = newest_votes(db)
        return counter.count(lambda: self._count(task), newest).value

    def _count(self, task: Row) -> list[Split]:
        with self._site.read() as db:
            return disagreements(db, task)


def decisions(site: Site, splits: Splits) -> APIRouter:
    """The routes under /api/decisions."""
    router = APIRouter(prefix="/api/decisions/{task}", include_in_schema=False)
    unseen: set[tuple[str, str]] = set()  # reviewer and item whose pictures the browser cannot show

    def changing(request: Request, token: str) -> Asker:
        require_same_site(request)
        asker = site.require(request, "reviewer")
        site.check_token(asker, token)
        return asker

    def far(db: Connection, task: Row, asker: Asker) -> Standing:
        return standing(db, task, splits.of(task), asker.person.name)

    @router.get("/session")
    def session(request: Request, response: Response, task: str) -> SessionAnswer:
        asker = site.require(request, "reviewer")
        site.remember(request, response, asker)
        with site.read() as db:
            row = _task(db, task)
            return SessionAnswer(
                rater=RaterBody(name=asker.person.name, role=asker.person.role),
                csrf=form_token(site.secret, asker.session),
                local=site.local,
                # what waits in the browser as a rater's answer is no decision
                study=StudyBody(id=f"{site.store_id}/decisions", name=site.study.info.name),
                task=_task_body(site, db, row),
                progress=_progress(far(db, row, asker)),
                overlap=row["overlap"],
                app_version=site.app_version,
            )

    @router.post("/next")
    def next_pages(request: Request, body: NextBody, task: str, token: Token = "") -> NextAnswer:
        asker = changing(request, token)
        with site.read() as db:
            row = _task(db, task)
            so_far = far(db, row, asker)
            wanted = (s for s in so_far.waiting if s.item not in body.have)
            mine = (s for s in wanted if (asker.person.id, s.item) not in unseen)
            pages = list(_pages(site, db, row, mine, body.n))
        known = {s.item for s in so_far.waiting} & set(body.have)
        return NextAnswer(pages=pages, done=not pages and not known, progress=_progress(so_far))

    @router.post("/votes")
    def votes(request: Request, body: VoteBody, task: str, token: Token = "") -> VoteAnswer:
        asker = changing(request, token)
        around = Circumstances(asker.session.id, site.app_version, site.clock(), adjudication=True)
        try:
            with site.write() as db:
                receipt = decide(db, asker.person, Vote(**body.model_dump()), around)
                if not receipt.repeated:
                    audit.note(db, asker.person.name, "decide", receipt.task["name"])
        except VoteRefused as refused:
            raise Refusal(STATUS[refused.code], refused.code, str(refused)) from None
        except ConflictError:
            message = "You have decided this already elsewhere; the first decision stands."
            raise Refusal(409, "vote_conflict", message) from None
        with site.read() as db:
            progress = _progress(far(db, _task(db, task), asker))
        return VoteAnswer(id=receipt.id, progress=progress)

    @router.post("/release")
    def give_back(request: Request, body: ReleaseBody, token: Token = "") -> Released:
        asker = changing(request, token)
        if body.broken:
            unseen.update((asker.person.id, item) for item in body.page_ids)
            with site.write() as db:
                items = items_by_id(db, body.page_ids).values()
                set_aside(db, [item["id"] for item in items if not site.usable(item)])
        return Released(items=len(body.page_ids))

    return router


def _task(db: Connection, task: str) -> Row:
    row = db.execute(select(work.tasks).where(work.tasks.c.id == task)).mappings().first()
    if row is None:
        raise Refusal(404, "not_found", "There is no such task.")
    return row


def _task_body(site: Site, db: Connection, task: Row) -> TaskBody:
    guideline = people.guideline(db)
    return TaskBody(
        id=public_id(site.secret, f"decisions of {task['id']}"),
        kind=task["kind"],
        questions=list(QUESTIONS_OF[task["kind"]]),
        answers=offered(task["kind"], site.split_tie),
        images_per_page=1,
        guideline_version=guideline.version,
        guideline_html=to_html(guideline.text),
        guideline_accepted=True,
        paused=False,
        closed=False,
    )


def _progress(so_far: Standing) -> Progress:
    done, left = len(so_far.decided), len(so_far.waiting)
    return Progress(
        mine=so_far.mine,
        mine_total=so_far.mine + left,
        project=done,
        project_total=done + left + len(so_far.judged),
    )


# pages


def _pages(
    site: Site, db: Connection, task: Row, splits: Iterator[Split], n: int
) -> Iterator[RatePage | ComparePage]:
    """Up to `n` pages whose pictures can be read."""
    for split in splits:
        item = items_by_id(db, [split.item])[split.item]
        if n and site.usable(item):
            n -= 1
            yield _page(site, task, item)
        if not n:
            return


def _page(site: Site, task: Row, item: Row) -> RatePage | ComparePage:
    images = _images(site, item, task["seed"])
    common: dict[str, Any] = {
        "page_id": item["id"],
        "prompt": item["prompt"],
        "question": item["question"],
        "lease_until": 0,
    }
    if len(images) == 1:
        only = RateItem(item_id=item["id"], image=images[0][0], supersedes=None)
        return RatePage(kind="rate", items=[only], **common)
    left, right = images
    return ComparePage(
        kind="compare", item_id=item["id"], left=left, right=right, supersedes=None, **common
    )


def _images(site: Site, item: Row, seed: int) -> list[list[ImageBody]]:
    urls, paths = picture_urls(item, seed), sides(item, seed)
    return [
        [_image(site, url, path) for url, path in zip(*side, strict=True)]
        for side in zip(urls, paths, strict=True)
    ]


def _image(site: Site, url: str, path: str) -> ImageBody:
    width, height = size_of(site.picture(path))
    return ImageBody(url=url, width=width, height=height)
