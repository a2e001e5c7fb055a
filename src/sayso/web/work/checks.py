"""Attention checks: pictures under a prompt that they surely do not show, drafted and decided on.

A check is used at once only if the slots of both prompts say that no picture of one is true of the
other (`foreign_prompts`). What is drafted of plain prompts waits until an admin has looked at it.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from sqlalchemy import Connection, exists, func, select, update

from sayso.base.types import Prompt, Sample
from sayso.feedback import work_tables as work
from sayso.study.study import Study
from sayso.web.work.assigned import ASKED_OF
from sayso.web.work.counting import set_check_share
from sayso.web.work.foreign_prompts import Fits
from sayso.web.work.queue import Standing, generator
from sayso.web.work.tasks import Draft, Page, TaskOptions, draft

MOST_CHECKS = 500
"""Attention checks made for a task, at most; nobody gets one twice."""
_LOOKED_AT = 50  # prompts, or sets, in search of one that does not fit
_Group = tuple[Prompt, tuple[Sample, ...]]
"""Images of one prompt that one page shows, of one model."""


def draft_with_checks(study: Study, options: TaskOptions, seed: int) -> list[Page]:
    """The pages of a task: the ordinary ones, then gold, then attention checks.

    Args:
        seed: of the checks; raters must not know it.
    Raises: UserError: see `tasks.draft`.
    """
    pages = draft(study, options)
    n = min(MOST_CHECKS, math.ceil((options.attention_share or 0.0) * len(pages)))
    if n == 0:
        return pages
    make = _of_ratings if options.kind == "rate" else _of_comparisons
    return [*pages, *make(study, options, pages, n, seed)]


# of one's own prompts


def _of_ratings(
    study: Study, options: TaskOptions, pages: Sequence[Page], n: int, seed: int
) -> Iterator[Page]:
    """Images of one prompt under another; those that no ordinary page shows come first.

    The others are no checks for who was or may be asked about them: see `assigned`.
    """
    asked = list({page[0].prompt.id: page[0].prompt for page in pages}.values())
    fits = Fits([*asked, *study.prompts()])
    spare = _spare(study, options.model, pages, options.images_per_page)
    shown = ((p[0].prompt, tuple(i.sets[0][0] for i in p)) for p in pages if not p[0].control)
    groups = [*_in_order(spare, seed), *_in_order(shown, seed)]
    made = (_rating(fits, group, asked, seed) for group in groups)
    return islice((page for page in made if page is not None), n)


def _rating(fits: "Fits", group: _Group, asked: Sequence[Prompt], seed: int) -> Page | None:
    of, samples = group
    rng = generator(seed, "foreign", samples[0].id)
    looked_at = rng.sample(asked, min(_LOOKED_AT, len(asked)))
    found = fits.first_foreign(of, looked_at, lambda prompt: prompt)
    if found is None:
        return None
    prompt, standing = found
    return [
        Draft(prompt, "alignment", ((sample,),), "attention", "bad", standing=standing)
        for sample in samples
    ]


def _in_order(groups: Iterable[_Group], seed: int) -> list[_Group]:
    """In an order that seed and images decide, whatever else is drawn later."""

    def place(group: _Group) -> bytes:
        return hashlib.sha256(f"{seed}\nattention\n{group[1][0].id}".encode()).digest()

    return sorted(groups, key=place)


# of comparisons


def _of_comparisons(
    study: Study, options: TaskOptions, pages: Sequence[Page], n: int, seed: int
) -> Iterator[Page]:
    """One set with its prompt, and one of another; each in one check, and on no ordinary page.

    Which model keeps its prompt is drawn, of each two checks one for either, or raters would learn
    which model's look is right.
    """
    fits = Fits(study.prompts())
    models = options.left, options.right
    spare = [_in_order(_spare(study, m, pages, options.set_size), seed) for m in models]
    for i in range(n):
        keeps = (generator(seed, "keeps", i // 2).random() < 0.5) ^ (i % 2)
        check = _comparison(fits, spare, keeps)
        if check is None:
            return
        yield [check]


def _comparison(fits: "Fits", spare: list[list[_Group]], keeps: int) -> Draft | None:
    """A check in which the model `keeps` has its own prompt; its sets are taken from `spare`."""
    others = spare[1 - keeps]
    for own in spare[keeps][:_LOOKED_AT]:
        found = fits.first_foreign(own[0], others[:_LOOKED_AT], lambda g: g[0], shown=True)
        if found is not None:
            foreign, standing = found
            spare[keeps].remove(own)
            others.remove(foreign)
            sets = (own[1], foreign[1]) if keeps == 0 else (foreign[1], own[1])
            expected = "left" if keeps == 0 else "right"
            return Draft(own[0], "alignment", sets, "attention", expected, standing=standing)
    return None


def _spare(study: Study, model: str, pages: Sequence[Page], size: int) -> Iterator[_Group]:
    """Images of a model that no page shows, in groups of `size` of one prompt."""
    shown = {s.path for page in pages for item in page for side in item.sets for s in side}
    prompts = {prompt.id: prompt for prompt in study.prompts()}
    left: dict[str, list[Sample]] = {}
    for sample in study.samples(model):
        if sample.path not in shown and sample.prompt_id in prompts:
            left.setdefault(sample.prompt_id, []).append(sample)
    for prompt, samples in left.items():
        for i in range(0, len(samples) - size + 1, size):
            yield prompts[prompt], tuple(samples[i : i + size])


# what became of them


@dataclass(frozen=True, slots=True)
class Tally:
    """How many attention checks a task has: used, waiting for an admin's word, struck.

    Of the used ones, those whose pictures are asked about too come `later`: to raters who were not
    asked about them, when others have rated them.
    """

    used: int
    proposed: int
    struck: int
    later: int = 0


def tally(db: Connection, task: str) -> Tally:
    """Count the attention checks of a task."""
    items = work.items.c
    mine = (items.task == task, items.control == "attention")
    by = select(items.standing, func.count()).where(*mine).group_by(items.standing)
    n: dict[str, int] = dict(db.execute(by).all())  # type: ignore[arg-type]
    later = select(func.count()).where(*mine, items.standing == "", exists().where(ASKED_OF))
    return Tally(n.get("", 0), n.get("proposed", 0), n.get("struck", 0), db.scalar(later) or 0)


def warning(kind: str, n: Tally) -> str:
    """Why a task that shall have checks has none in use, and what to do; "" if it has."""
    if n.used > n.later:
        return ""
    if n.used:
        return (
            "every attention check shows an image that is also rated, so it comes up only after "
            "others have rated the image, and never for a rater who works alone; generate more "
            "images, for example with sayso generate --prompts test, or rate fewer (--per-prompt)"
        )
    none = "no attention check is in use"
    if n.proposed:
        return f"{none}: an admin must confirm the {n.proposed} proposed ones on the page Checks"
    if n.struck:
        return f"{none}: all {n.struck} were struck, on the page Checks"
    if kind == "compare":
        return (
            f"{none}: a check needs images that no other page shows; generate more images of both "
            "models than a set has, such as 8 per prompt: sayso generate --per-prompt 8"
        )
    return f"{none}: no two prompts differ enough; use gold items instead (--gold FILE)"


def decide(db: Connection, task: str, items: Sequence[str], standing: Standing) -> int:
    """Use attention checks from now on, or strike them: how many there were of these.

    The votes on struck ones count as no checks and nothing else (`Feedback`).
    """
    table = work.items
    these = table.c.id.in_(items), table.c.task == task, table.c.control == "attention"
    values = {"standing": standing, "open": standing == ""}
    changed = db.execute(update(table).where(*these).values(values)).rowcount
    set_check_share(db, task)
    return changed
