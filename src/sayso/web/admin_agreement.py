"""The page on agreement: the numbers of `sayso agreement`, without intervals, while people vote."""

import threading
import time
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from sqlalchemy import Connection, func, select

from sayso import vote_tables
from sayso.study import Study
from sayso.types import Question
from sayso.web.admin_view import View, view_of
from sayso.web.site import Site

QUESTIONS: tuple[Question, ...] = ("alignment", "fidelity")
SHARE_OF_TIME = 0.05
"""Of the server's time the page may take at most, however often it is asked for."""
FREE_S = 0.2
"""A count that takes less is made for whoever asks."""


@dataclass(frozen=True, slots=True)
class Count:
    """The sections of people and of simulated raters, as `votes.rater_report.plain` gives them.

    Attributes:
        newest: numbers of the newest vote in each table.
        at: when it was counted, in seconds since the epoch.
        until: it stands until then whatever is voted, in seconds of `time.monotonic`.
    """

    newest: tuple[int, int]
    at: float
    until: float
    people: list[dict[str, Any]]
    simulated: list[dict[str, Any]]


class Counter:
    """Counts anew when there are new votes, and not so often that the server does little else."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._turn = threading.Lock()
        self._last: Count | None = None

    def count(self) -> Count:
        """The newest count, or the last one while a new one would cost too much."""
        with self._turn:
            with self._site.read() as db:
                newest = newest_votes(db)
            if self._last is None or self._is_stale(self._last, newest):
                self._last = self._count(newest)
            return self._last

    def _is_stale(self, last: Count, newest: tuple[int, int]) -> bool:
        return newest != last.newest and time.monotonic() >= last.until

    def _count(self, newest: tuple[int, int]) -> Count:
        at, started = self._site.clock(), time.monotonic()
        people, simulated = (sections(self._site.study, kind) for kind in (False, True))
        ended = time.monotonic()
        took_s = ended - started
        until = ended + (took_s / SHARE_OF_TIME if took_s > FREE_S else 0.0)
        return Count(newest, at, until, people, simulated)


def newest_votes(db: Connection) -> tuple[int, int]:
    """Changes with every row that is added to the votes."""
    marks, choices = (
        db.scalar(select(func.max(table.c.seq))) or 0
        for table in (vote_tables.ratings, vote_tables.comparisons)
    )
    return marks, choices


def sections(study: Study, simulated: bool) -> list[dict[str, Any]]:
    """What `sayso agreement --resamples 0` says of all votes of one kind of raters."""
    ratings, comparisons = (
        study.feedback.ratings(simulated), study.feedback.comparisons(simulated),
    )  # fmt: skip
    if not ratings and not comparisons:
        return []
    # with numpy, which would make the start of the app a tenth slower
    from sayso.votes.rater_report import comparison_sections, plain, rating_section

    prompts = {prompt.id: prompt for prompt in study.prompts()}
    prompt_of = {sample.id: prompts[sample.prompt_id] for sample in study.samples()}
    marks = (rating_section(ratings, prompt_of, q, resamples=0) for q in QUESTIONS)
    found = [section for section in marks if section]
    found += comparison_sections(comparisons, prompts.values(), resamples=0)
    return [plain(section) for section in found]


def _shown(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The sections with the careless raters first."""
    from sayso.votes.rater_table import in_order

    def place(row: dict[str, Any]) -> tuple[bool, list[tuple[int, str]]]:
        return not row["careless"], in_order(row["rater"])

    return [{**section, "raters": sorted(section["raters"], key=place)} for section in found]


def agreement(site: Site) -> APIRouter:
    """The route of the page."""
    router = APIRouter()
    counter = Counter(site)

    def reviewer(request: Request) -> View:
        return view_of(site, request, "reviewer")

    @router.get("/agreement")
    def show_agreement(view: Annotated[View, Depends(reviewer)]) -> Response:
        from sayso.votes.rater_table import RULES

        count = counter.count()
        parts = [("People", _shown(count.people)), ("Simulated raters", _shown(count.simulated))]
        return view.page(
            "agreement", parts=[part for part in parts if part[1]], rules=RULES,
            at=time.strftime("%H:%M:%S", time.localtime(count.at)), study=str(site.study.path),
        )  # fmt: skip

    return router
