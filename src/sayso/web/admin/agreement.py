"""The page on agreement: the numbers of `sayso agreement`, without intervals, while people vote."""

import time
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Depends, Request, Response
from sqlalchemy import Connection, func, select

from sayso.base.types import QUESTIONS
from sayso.feedback.vote_tables import VOTE_TABLES, exclusions
from sayso.study.generations import Generations
from sayso.study.study import Study
from sayso.web.admin.counts import Count, Counter
from sayso.web.admin.view import View, view_of
from sayso.web.site import Site


class Sections(NamedTuple):
    """Those of people and of simulated raters, as `votes.rater_report.plain` gives them."""

    people: list[dict[str, Any]]
    simulated: list[dict[str, Any]]


def count(site: Site, counter: Counter[Sections]) -> Count[Sections]:
    """The newest count of all votes, or the last one while a new one would cost too much."""
    with site.read() as db:
        newest = newest_votes(db)
    return counter.count(
        lambda: Sections(*(sections(site.study, s) for s in (False, True))), newest
    )


def newest_votes(db: Connection) -> tuple[object, ...]:
    """Changes with every row that is added to the votes, and with who is excluded."""
    newest = [db.scalar(select(func.max(table.c.seq))) or 0 for table in VOTE_TABLES.values()]
    excluded = db.scalars(select(exclusions.c.rater).order_by(exclusions.c.rater))
    return (*newest, *excluded)


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
    generations = Generations(study)
    comparisons = list(generations.labelled(comparisons))
    prompt_of = {sample.id: prompts[sample.prompt_id] for sample in generations.samples}
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
    counter = Counter[Sections](site.clock)

    def reviewer(request: Request) -> View:
        return view_of(site, request, "reviewer")

    @router.get("/agreement")
    def show_agreement(view: Annotated[View, Depends(reviewer)]) -> Response:
        from sayso.votes.rater_table import RULES

        counted = count(site, counter)
        found = counted.value
        parts = [("People", _shown(found.people)), ("Simulated raters", _shown(found.simulated))]
        return view.page(
            "agreement", parts=[part for part in parts if part[1]], rules=RULES,
            at=time.strftime("%H:%M:%S", time.localtime(counted.at)), study=str(site.study.path),
        )  # fmt: skip

    return router
