"""Simulated raters who work in the rating app: a real server, sign-in links, leases, checks.

A rater knows what a browser gets, the text of the prompt and the pictures, and nothing of the
study. They take turns in one thread, so that who judges what is the same every time; in a turn the
fast get through more pages than the slow.
"""

import hashlib
import http.client
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import product
from typing import Any

import numpy as np
from sqlalchemy import Connection, select

from sayso.base.errors import UserError, quoted
from sayso.base.pictures import read_picture
from sayso.base.progress import progress
from sayso.base.types import digest
from sayso.feedback.work_tables import tasks
from sayso.prompts.grammar import ASKED, load_grammar, phrase
from sayso.study.study import Study
from sayso.tinyworld.judge import Judge, as_images
from sayso.tinyworld.raters import SimulatedRater
from sayso.tinyworld.rating import Crew, RaterOptions, refuse_unfit
from sayso.tinyworld.reading import Reading, verdict
from sayso.web.serving import ATTENTION_SHARE, prepare, served
from sayso.web.site import Site
from sayso.web.work import people
from sayso.web.work.tasks import TaskOptions

_PAGES = 10
"""Pages that the fastest rater asks for at a time, as many as the API gives."""

Json = dict[str, Any]


def collect(study: Study, config: RaterOptions, options: TaskOptions) -> int:
    """Serve the study to the simulated raters until nothing is left to judge.

    Stopped half-way, it goes on where it stopped: the votes are in the store, and who had leased
    a page is given it again. As many votes come of it, not always by the same raters.

    Args:
        options: of the task; an `attention_share` left open is that of people who sign in.
    Returns: how many votes were added, those on checks too.
    Raises: UserError: if there is nothing that simulated raters can judge (nothing is stored
        then), or the app refuses the work.
    """
    refuse_unfit(study, config)
    crew = Crew(study, config)
    if config.db:
        study.use_database(config.db)
    links = _links(study, crew.everyone)
    if options.attention_share is None:
        options = replace(options, attention_share=ATTENTION_SHARE)
    site = replace(prepare(study, "", options), local=False)
    fastest = min(rater.pace_s for rater in crew.everyone)
    with served(site) as port, ExitStack() as lines:
        workers = [
            _Worker(
                rater,
                crew,
                lines.enter_context(closing(_Browser(port, link))),
                round(_PAGES * fastest / rater.pace_s) or 1,
            )
            for rater, link in zip(crew.everyone, links, strict=True)
        ]
        added = _work(workers, _Eyes())
        _refuse_unfinished(site)
        return added


def _refuse_unfinished(site: Site) -> None:
    with site.read() as db:
        task = db.execute(select(tasks).where(tasks.c.id == site.task)).mappings().one()
    left = task["wanted"] - task["votes"]
    if left:
        raise UserError(
            f"{left} votes are still missing, on pages that raters of an earlier run hold or "
            "returned as broken; run the command again in ten minutes"
        )


def _links(study: Study, raters: Sequence[SimulatedRater]) -> list[str]:
    """A sign-in link for each; raters who are not known yet are added."""
    with study.feedback.database.write() as db:
        return [_link(db, rater.name, study) for rater in raters]


def _link(db: Connection, name: str, study: Study) -> str:
    known = people.find(db, name)
    if known is None:
        return people.add(db, name, "rater", simulated=True)
    if not known["active"]:
        raise UserError(
            f"{name} is switched off; let it rate with: sayso raters {quoted(study.path)} on "
            f"{quoted(name)}"
        )
    return people.new_link(db, name)


def _work(workers: "Sequence[_Worker]", eyes: "_Eyes") -> int:
    """All raters in turn lease pages; the pictures are read together; all in turn vote."""
    added, state = 0, workers[0].session["progress"]
    kind = workers[0].session["task"]["kind"]
    with progress(kind, state["project_total"], "votes", done=state["project"]) as advance:
        while leased := [(w, page) for w in workers for page in w.lease()]:
            eyes.look(picture for _, page in leased for picture in page.pictures)
            for worker, page in leased:
                for vote in worker.votes(page, eyes):
                    new = worker.browser.post("/api/votes", vote)["progress"]
                    advance(new["project"] - state["project"])
                    added, state = added + 1, new
    return added


# what a rater does


@dataclass(frozen=True, slots=True)
class _Page:
    """A leased page: what the API said, its items in order, and each item's pictures."""

    body: Json
    items: list[Json]
    sides: list[list[bytes]]

    @property
    def pictures(self) -> Iterator[bytes]:
        return (picture for side in self.sides for picture in side)


@dataclass
class _Worker:
    """One rater in the app, who rates so many pages in a turn."""

    rater: SimulatedRater
    crew: Crew
    browser: "_Browser"
    pages: int
    session: Json = field(init=False)
    done: int = 0

    def __post_init__(self) -> None:
        self.session = self.browser.get_json("/api/session")
        self.browser.token = self.session["csrf"]
        task = self.session["task"]
        if not task["guideline_accepted"]:
            version = {"version": task["guideline_version"]}
            self.browser.post("/api/guideline/accept", version)

    def lease(self) -> list[_Page]:
        """The next pages with their pictures; none if nothing is left for this rater."""
        pages = self.browser.post("/api/next", {"n": self.pages})["pages"]
        return [self._opened(page) for page in pages]

    def _opened(self, page: Json) -> _Page:
        if page["kind"] == "compare":
            items, sides = [page], [page["left"], page["right"]]
        else:
            items, sides = page["items"], [[item["image"]] for item in page["items"]]
        pictures = [[self.browser.get(image["url"]) for image in side] for side in sides]
        return _Page(page, items, pictures)

    def votes(self, page: _Page, eyes: "_Eyes") -> Iterator[Json]:
        """A vote on each item of the page, as the rating page would send it."""
        slots = _slots(page.body["prompt"])
        views = [[verdict(eyes.readings[_key(p)], slots) for p in side] for side in page.sides]
        for item, view in zip(page.items, views, strict=False):
            rng = self.crew.rng(self.rater.name, item["item_id"])
            if page.body["kind"] == "compare":
                value = self.rater.compare(views[0], views[1], page.body["question"], rng)
            else:
                value = self.rater.rate(view[0], rng)
            yield self._vote(page, item, value, rng)
        self.done += 1

    def _vote(self, page: _Page, item: Json, value: str, rng: np.random.Generator) -> Json:
        """The body; the time it took is simulated like the rest, and ends now."""
        now, took = time.time(), self.rater.seconds(rng)
        replaced = item["supersedes"]
        return {
            "id": digest([self.session["task"]["id"], self.rater.name, item["item_id"], replaced]),
            "item_id": item["item_id"],
            "question": page.body["question"],
            "value": value,
            "shown_at": (now - took) * 1000,
            "answered_at": now * 1000,
            "latency_ms": took * 1000,
            "position": self.done,
            "guideline_version": self.session["task"]["guideline_version"],
            "supersedes": replaced,
        }


class _Eyes:
    """What the raters see: every picture is read once, many together."""

    def __init__(self) -> None:
        self.readings: dict[str, Reading] = {}
        self._judge = Judge.load()

    def look(self, pictures: Iterable[bytes]) -> None:
        new = {key: p for p in pictures if (key := _key(p)) not in self.readings}
        if new:
            arrays = [np.asarray(read_picture(p)) for p in new.values()]
            self.readings |= zip(new, self._judge.read(as_images(arrays)), strict=True)


def _key(picture: bytes) -> str:
    return hashlib.sha256(picture).hexdigest()


def _slots(prompt: str) -> Mapping[str, str | int]:
    known = _readable().get(prompt)
    if known is None:
        raise UserError(f"simulated raters cannot read the prompt {prompt!r}")
    return known


@cache
def _readable() -> Mapping[str, Mapping[str, str | int]]:
    """Every prompt of the tiny world's grammar, and what it asks for."""
    grammar = load_grammar("tinyworld")
    objects = grammar.seen_objects + grammar.unseen_objects
    asked = [
        dict(zip(names, values, strict=True))
        for names in ASKED.values()
        for values in product(*(grammar.values(name, objects) for name in names))
    ]
    return {phrase(grammar, slots): slots for slots in asked}


# over HTTP


class _Browser:
    """A signed-in browser on one connection that stays open; `token` goes with every change.

    Of the standard library, for no client is in the dependencies.
    """

    def __init__(self, port: int, link: str) -> None:
        self._line = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self._cookie, self.token = "", ""
        self._cookie = self._ask("GET", f"/in/{link}")[0].split(";")[0]

    def close(self) -> None:
        self._line.close()

    def get(self, path: str) -> bytes:
        return self._ask("GET", path)[1]

    def get_json(self, path: str) -> Json:
        return json.loads(self.get(path))

    def post(self, path: str, body: Json) -> Json:
        return json.loads(self._ask("POST", path, json.dumps(body))[1])

    def _ask(self, method: str, path: str, body: str | None = None) -> tuple[str, bytes]:
        """The cookie that was set, and the content."""
        headers = {"Cookie": self._cookie, "X-CSRF-Token": self.token}
        if body is not None:
            headers["Content-Type"] = "application/json"
        self._line.request(method, path, body, headers)
        with closing(self._line.getresponse()) as response:
            content = response.read()
        if response.status >= 400:
            raise UserError(f"{_message(content)} (rating app, {response.status}, {path})")
        return response.headers.get("Set-Cookie", ""), content


def _message(content: bytes) -> str:
    try:
        return json.loads(content)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return "the rating app cannot continue"
