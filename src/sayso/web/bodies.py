"""The bodies that the rating page gets, whether a rater or a deciding reviewer is asking."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection

from sayso.feedback.work_tables import Row
from sayso.web.messages import (
    ComparePage,
    ImageBody,
    Progress,
    RateItem,
    RatePage,
    RaterBody,
    SessionBody,
    StudyBody,
    TaskBody,
)
from sayso.web.pictures import size_of
from sayso.web.sessions import form_token, public_id
from sayso.web.site import Asker, Site
from sayso.web.work import people
from sayso.web.work.guideline_text import to_html
from sayso.web.work.people import Guideline, Person
from sayso.web.work.tasks import QUESTIONS_OF
from sayso.web.work.voting import offered


class Shown(NamedTuple):
    """An item on a page: its sides, left to right, and the vote that a new one replaces."""

    item: Row
    sides: list[list[ImageBody]]
    supersedes: str | None = None


def session_body(
    site: Site, asker: Asker, task: TaskBody | None, progress: Progress | None,
    overlap: int | None, outbox: str = "",
) -> SessionBody:  # fmt: skip
    """Who is signed in, what the task is, and how far it is.

    Args:
        outbox: where the browser keeps what is not sent yet, if apart from ratings.
    """
    return SessionBody(
        rater=RaterBody(name=asker.person.name, role=asker.person.role),
        csrf=form_token(site.secret, asker.session),
        local=site.local,
        study=StudyBody(id=f"{site.store_id}{outbox}", name=site.study.info.name),
        task=task,
        progress=progress,
        overlap=overlap,
        app_version=site.app_version,
    )


def task_body(site: Site, db: Connection, task: Row, person: Person) -> TaskBody:
    """A task as raters see it."""
    guideline = people.guideline(db)
    return TaskBody(
        id=public_id(site.secret, task["id"]),
        kind=task["kind"],
        questions=list(QUESTIONS_OF[task["kind"]]),
        values=offered(task["kind"], site.split_tie),
        images_per_page=task["images_per_page"],
        guideline_version=guideline.version,
        guideline_html=to_html(guideline.text),
        guideline_accepted=has_read(db, guideline, person),
        paused=task["state"] == "paused",
        closed=task["state"] == "closed",
    )


def has_read(db: Connection, guideline: Guideline, person: Person) -> bool:
    """Whether a rater may begin."""
    return not guideline.text or people.has_accepted(db, person.id, guideline.version)


def page_body(
    kind: str, page_id: str, shown: Sequence[Shown], lease_until_ms: int
) -> RatePage | ComparePage:
    """One screen: several images of a prompt, or one comparison."""
    first = shown[0]
    common: dict[str, Any] = {
        "page_id": page_id,
        "prompt": first.item["prompt"],
        "question": first.item["question"],
        "lease_until": lease_until_ms,
    }
    if kind == "rate":
        items = [
            RateItem(item_id=s.item["id"], image=s.sides[0][0], supersedes=s.supersedes)
            for s in shown
        ]
        return RatePage(kind="rate", items=items, **common)
    left, right = first.sides
    return ComparePage(
        kind="compare", item_id=first.item["id"], left=left, right=right,
        supersedes=first.supersedes, **common,
    )  # fmt: skip


def image_body(site: Site, url: str, path: str) -> ImageBody:
    """A picture: where the page gets it, and its size in pixels."""
    width, height = size_of(site.picture(path))
    return ImageBody(url=url, width=width, height=height)
