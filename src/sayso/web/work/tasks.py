"""What a task asks: pages of items drafted from a study, gold and attention checks among them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sayso.base.errors import UserError
from sayso.base.types import QUESTIONS, Prompt, Question, Sample, Value, digest
from sayso.base.user_files import read_json_lines
from sayso.study.generations import Generations
from sayso.study.info import PromptChoice
from sayso.study.rated_images import images_to_rate, sets_to_compare
from sayso.study.study import Study
from sayso.web.work.queue import Control, Standing, overlap_of

QUESTIONS_OF: Mapping[str, tuple[Question, ...]] = {"rate": QUESTIONS[:1], "compare": QUESTIONS}
"""What each kind of task asks."""


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """What is asked; `sayso.stages.rate.RateConfig` explains each.

    A task is of people or of simulated raters: the votes of one use up no place of the other.
    """

    kind: Literal["rate", "compare"] = "rate"
    prompts: PromptChoice = "train"
    model: str = "base"
    per_prompt: int = 0
    images_per_page: int = 1
    left: str = "base"
    right: str = ""
    set_size: int = 4
    overlap: int = 1
    shared_overlap: int = 0
    gold: Mapping[str, Value] = field(default_factory=dict[str, Value])
    gold_share: float = 0.05
    attention_share: float | None = None
    seed: int = 0
    simulated: bool = False
    split_tie: bool = False

    @property
    def identity(self) -> str:
        """The same options have the same one; overlap and shares may change."""
        if self.kind == "compare":
            split = ["split tie"] if self.split_tie else []
            asked: list[object] = [sorted([self.left, self.right]), self.set_size, *split]
        else:
            asked = [self.model, self.per_prompt, self.images_per_page, dict(self.gold)]
        whose = ["simulated"] if self.simulated else []
        return digest([self.kind, self.prompts, asked, self.seed, *whose])

    @property
    def name(self) -> str:
        """What the admin reads."""
        who = ", simulated raters" if self.simulated else ""
        if self.kind == "compare":
            return f"compare {self.left} with {self.right}, {self.prompts} prompts{who}"
        return f"rate {self.model}, {self.prompts} prompts{who}"


@dataclass(frozen=True, slots=True)
class Draft:
    """One item before it has a place in the order. `sets` holds one image, or two sets."""

    prompt: Prompt
    question: Question
    sets: tuple[tuple[Sample, ...], ...]
    control: Control = ""
    expected: str = ""
    overlap: int = 0
    standing: Standing = ""

    @property
    def pair(self) -> str:
        """As `Comparison.pair` in the store: the sets, whichever stands left."""
        return digest(sorted([s.id for s in side] for side in self.sets))

    @property
    def content(self) -> str:
        """What is asked; unique in a task."""
        key = self.sets[0][0].id if len(self.sets) == 1 else self.pair
        if self.control == "attention":
            return f"attention:{self.prompt.id}:{key}"
        return f"{self.question}:{key}"


Page = list[Draft]


def task_identity(study: Study, options: TaskOptions) -> str:
    """The id of the task: the same options on the same models find it again.

    Models that were made anew under their old names have a task of their own.
    """
    models = {options.model} if options.kind == "rate" else {options.left, options.right}
    generations = Generations(study)
    own = [s for s in generations.samples if s.model in models and generations.is_present(s)]
    recorded = sorted({s.model_identity for s in own} - {""})
    return digest([options.identity, *recorded]) if recorded else options.identity


def draft(study: Study, options: TaskOptions) -> list[Page]:
    """The pages of a task: the ordinary ones, then gold; `checks` has those of attention.

    Raises: UserError: if there are no such images, or a gold item is not among them.
    """
    prompts = study.prompts(options.prompts)
    return (_rated if options.kind == "rate" else _compared)(study, options, prompts)


# ratings


def _rated(study: Study, options: TaskOptions, prompts: Sequence[Prompt]) -> list[Page]:
    rated = images_to_rate(study, options.model, prompts, options.prompts, options.per_prompt)
    step = options.images_per_page
    pages = [
        _rate_page(prompt, samples[i : i + step], options)
        for prompt, samples in rated
        for i in range(0, len(samples), step)
    ]
    _refuse_unknown_gold(options.gold, pages)
    return sorted(pages, key=lambda page: bool(page[0].control))


def _rate_page(prompt: Prompt, samples: Sequence[Sample], options: TaskOptions) -> Page:
    """A page with a gold image is for everyone, its other images too."""
    control: Control = "gold" if any(s.id in options.gold for s in samples) else ""
    wanted = overlap_of(samples[0].id, options.overlap, options.shared_overlap, options.seed)
    return [
        Draft(
            prompt, "alignment", ((sample,),), control, options.gold.get(sample.id, ""),
            0 if control else wanted,
        )
        for sample in samples
    ]  # fmt: skip


def _refuse_unknown_gold(gold: Mapping[str, Value], pages: Sequence[Page]) -> None:
    missing = gold.keys() - {item.sets[0][0].id for page in pages for item in page}
    if missing:
        raise UserError(
            f"the gold file names {len(missing)} images that the task does not show, such as "
            f"{min(missing)}; give only images of its model and prompts"
        )


def read_gold(path: Path) -> dict[str, Value]:
    """Gold items from JSON lines with `sample_id` and `value` (good or bad).

    Raises: UserError: naming the first line that is wrong, or if there are none.
    """
    gold: dict[str, Value] = {}
    for where, row in read_json_lines(path):
        sample, value = row.get("sample_id"), row.get("value")
        if not isinstance(sample, str) or value not in ("good", "bad"):
            raise UserError(f"{where} is not a gold item; give sample_id, and value good or bad")
        gold[sample] = "good" if value == "good" else "bad"
    if not gold:
        raise UserError(
            f"{path} has no gold items; give lines of sample_id and value, or no --gold"
        )
    return gold


# comparisons


def _compared(study: Study, options: TaskOptions, prompts: Sequence[Prompt]) -> list[Page]:
    models = (options.left, options.right)
    sets = sets_to_compare(study, models, prompts, options.prompts, options.set_size)
    return [
        [Draft(prompt, question, both, overlap=options.overlap)]
        for prompt, both in sets
        for question in QUESTIONS
    ]
