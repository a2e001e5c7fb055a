"""Attention checks: pictures under a prompt that they surely do not show, drafted and decided on.

A check is used at once only if the slots of both prompts say that no picture of one is true of the
other. Where prompts are plain text nobody but a person knows ("an automobile" is true of many a red
car), so what is drafted there waits until an admin has looked at it.
"""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import TypeVar

from sqlalchemy import Connection, exists, func, select, update

from sayso.base.types import Prompt, Sample
from sayso.feedback import work_tables as work
from sayso.prompts.grammar import grammar_names, load_grammar
from sayso.study.study import Study
from sayso.web.work.assigned import ASKED_OF
from sayso.web.work.counting import set_check_share
from sayso.web.work.queue import Standing, generator
from sayso.web.work.tasks import Draft, Page, TaskOptions, draft

MOST_CHECKS = 500
"""Attention checks made for a task, at most; nobody answers one twice."""
_LOOKED_AT = 50  # prompts, or sets, in search of one that does not fit
_TOO_COMMON = 0.2  # of the prompts: a word in more of them ("photo") tells none from another

T = TypeVar("T")
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


# which prompt no picture of another is true of


class Fits:
    """Whether a picture of one prompt may be true of another, judged among all `prompts`."""

    def __init__(self, prompts: Iterable[Prompt]) -> None:
        self._stems = {prompt.text: _stems(prompt.text) for prompt in prompts}
        often = Counter(stem for stems in self._stems.values() for stem in stems)
        most = max(1, _TOO_COMMON * len(self._stems))
        self._common = {stem for stem, n in often.items() if n > most}

    def first_foreign(
        self, prompt: Prompt, among: Sequence[T], of: Callable[[T], Prompt], shown: bool = False
    ) -> tuple[T, Standing] | None:
        """The first that is surely foreign to a prompt; else one that may be, to be looked at.

        Args:
            shown: whether `prompt` is the one that stands on the page and not the picture's.
        """
        perhaps: T | None = None
        for one in among:
            picture, text = (of(one), prompt) if shown else (prompt, of(one))
            if is_surely_foreign(picture, text):
                return one, ""
            if perhaps is None and self._may_be_foreign(picture, text):
                perhaps = one
        return None if perhaps is None else (perhaps, "proposed")

    def _may_be_foreign(self, one: Prompt, other: Prompt) -> bool:
        """Whether each has words that tell it from others, and none of them is the other's."""
        left, right = (self._stems[p.text] - self._common for p in (one, other))
        return bool(left) and bool(right) and not left & right


def is_surely_foreign(picture: Prompt, text: Prompt) -> bool:
    """Whether no picture of one prompt is true of another text, by the slots of both.

    Their objects differ and no value is shared; the object of the text is none that stands in many
    pictures unasked, nor one that is taken for the other.
    """
    objects = [str(prompt.slots.get("object", "")).lower() for prompt in (picture, text)]
    if not all(objects) or set(picture.slots.values()) & set(text.slots.values()):
        return False
    alike = any(all(o in group for o in objects) for group in _TAKEN_FOR_EACH_OTHER)
    return (
        not alike
        and objects[1] not in _bystanders()
        and not _stems(objects[0]) & _stems(objects[1])
    )


_TAKEN_FOR_EACH_OTHER = (
    ("dog", "wolf"), ("cat", "lion", "tiger"), ("cup", "vase"), ("vase", "rose"),
)  # fmt: skip


@cache
def _bystanders() -> frozenset[str]:
    return frozenset(word for name in grammar_names() for word in load_grammar(name).bystanders)


def _stems(text: str) -> set[str]:
    """The beginnings of the words that carry meaning, roughly."""
    return {word[:4] for word in re.findall(r"[^\W\d_]{3,}", text.lower())} - _SMALL_WORDS


_SMALL_WORDS = {
    "the", "and", "with", "colo", "for", "from", "one", "two", "thre", "four", "five",
}  # fmt: skip


# what became of them


@dataclass(frozen=True, slots=True)
class Tally:
    """How many attention checks a task has: used, waiting for an admin's word, struck.

    Of the used ones, those whose pictures are asked about too come `later`: to raters who were not
    asked about them, when others have judged them.
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
            "every attention check shows a picture that is asked about too, so it comes only when "
            "others have judged the picture, and to nobody who works alone; draw images that no "
            "page asks about, such as: sayso generate --prompts test, or rate fewer (--per-prompt)"
        )
    none = "no attention check is in use"
    if n.proposed:
        return f"{none}: an admin must look at the {n.proposed} proposed ones on the page Checks"
    if n.struck:
        return f"{none}: all {n.struck} were struck; the page Checks has them"
    if kind == "compare":
        return (
            f"{none}: a check shows sets that no other page shows; draw more images of both models "
            "than a set has, such as 8 a prompt with: sayso generate --per-prompt 8"
        )
    return f"{none}: no two prompts are different enough; give known answers with --gold FILE"


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
