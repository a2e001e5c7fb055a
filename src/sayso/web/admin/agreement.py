"""The page on agreement: the numbers of `sayso agreement`, without intervals, while people vote."""

import time
from typing import Any, NamedTuple

from fastapi import Response

from sayso.base.types import QUESTIONS
from sayso.study.generations import Generations
from sayso.study.study import Study
from sayso.web.admin.view import ReviewerView, admin_router

router = admin_router()


class Sections(NamedTuple):
    """Those of people and of simulated raters, as `votes.rater_report.plain` gives them."""

    people: list[dict[str, Any]]
    simulated: list[dict[str, Any]]


@router.get("/agreement")
def show_agreement(view: ReviewerView) -> Response:
    from sayso.votes.rater_table import RULES

    study = view.site.study
    counted = view.site.counts.get(
        "agreement", lambda: Sections(sections(study, False), sections(study, True))
    )
    found = counted.value
    parts = [("People", _shown(found.people)), ("Simulated raters", _shown(found.simulated))]
    return view.page(
        "agreement", parts=[part for part in parts if part[1]], rules=RULES,
        at=time.strftime("%H:%M:%S", time.localtime(counted.at)), study=str(study.path),
    )  # fmt: skip


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
    by_question = (rating_section(ratings, prompt_of, q, resamples=0) for q in QUESTIONS)
    found = [section for section in by_question if section]
    found += comparison_sections(comparisons, prompts.values(), resamples=0)
    return [plain(section) for section in found]


def _shown(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The sections with the careless raters first."""
    from sayso.votes.rater_table import in_order

    def place(row: dict[str, Any]) -> tuple[bool, list[tuple[int, str]]]:
        return not row["careless"], in_order(row["rater"])

    return [{**section, "raters": sorted(section["raters"], key=place)} for section in found]
