"""Ratings and comparisons by simulated raters, who read the tiny world's pictures."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from sayso.base.errors import UserError
from sayso.base.progress import progress
from sayso.base.types import QUESTIONS, Comparison, Prompt, Question, Rating, Sample, digest
from sayso.study.info import PromptChoice
from sayso.study.rated_images import images_to_rate, sets_to_compare
from sayso.study.study import Study

if TYPE_CHECKING:
    from sayso.tinyworld.raters import SimulatedRater
    from sayso.tinyworld.reading import Verdict

_BATCH = 256


@runtime_checkable
class RaterOptions(Protocol):
    """What simulated raters must be told; `sayso rate` has these options among others."""

    @property
    def task(self) -> str: ...
    @property
    def prompts(self) -> PromptChoice | None: ...
    @property
    def model(self) -> str: ...
    @property
    def per_prompt(self) -> int: ...
    @property
    def left(self) -> str: ...
    @property
    def right(self) -> str: ...
    @property
    def set_size(self) -> int: ...
    @property
    def raters(self) -> int: ...
    @property
    def careless(self) -> int: ...
    @property
    def overlap(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def db(self) -> str: ...


@dataclass(frozen=True, slots=True)
class _Pair:
    """One question of a comparison before its raters: two sets of images of a prompt."""

    prompt: Prompt
    sides: tuple[tuple[Sample, ...], tuple[Sample, ...]]
    models: tuple[str, str]
    question: Question


def collect(study: Study, config: "RaterOptions") -> int:
    """Make the votes that are missing.

    Returns: how many votes were added.
    Raises: UserError: if there are no such images; if an image is gone or damaged, or a prompt is
        not of the tiny world (nothing is stored then).
    """
    crew = Crew(study, config)
    return (_compare if config.task == "compare" else _rate)(study, config, crew)


def count(study: Study, config: "RaterOptions") -> int:
    """How many votes there will be in all."""
    judged = _pairs if config.task == "compare" else _images
    return len(judged(study, config)) * config.overlap


def refuse_unfit(study: Study, config: "RaterOptions") -> None:
    """Look at everything that would be judged.

    Raises: UserError: if there is nothing, an image is gone or damaged, or a prompt is not of the
        tiny world.
    """
    if config.task == "compare":
        pairs = [pair for pair in _pairs(study, config) if pair.question == QUESTIONS[0]]
        samples = [sample for pair in pairs for side in pair.sides for sample in side]
    else:
        samples = [sample for sample, _ in _images(study, config)]
    _refuse_damaged(study, samples)


def _refuse_damaged(study: Study, samples: Iterable[Sample]) -> None:
    for sample in samples:
        study.image(sample)


class Crew:
    """The simulated raters, who of them judges an item, and the randomness of each decision."""

    def __init__(self, study: Study, config: "RaterOptions") -> None:
        from sayso.tinyworld.raters import make_raters

        self._seeds = (study.info.seed, config.seed)
        self.everyone = make_raters(config.raters, config.seed, config.careless)
        self._overlap = config.overlap

    def of(self, item: str) -> "list[SimulatedRater]":
        """The raters of an item; more overlap adds raters and takes none away."""
        order = self.rng("", f"who judges {item}").permutation(len(self.everyone))
        return [self.everyone[i] for i in order[: self._overlap].tolist()]

    def rng(self, rater: str, item: str) -> np.random.Generator:
        from sayso.tinyworld.raters import decision_rng

        return decision_rng(self._seeds[0], rater, f"{self._seeds[1]} {item}")


# ratings


def _rate(study: Study, config: "RaterOptions", crew: Crew) -> int:
    there = study.feedback.ratings(excluded=True)
    done = {(r.sample_id, r.rater) for r in there if r.question == "alignment"}
    images = _images(study, config)
    missing = [(s, p) for s, p in images if any((s.id, r.name) not in done for r in crew.of(s.id))]

    def vote(sample: Sample, verdict: "Verdict", rater: "SimulatedRater") -> Rating:
        now = time.time()
        return Rating(
            id=digest([study.info.seed, rater.name, sample.id, "alignment"]),
            sample_id=sample.id,
            rater=rater.name,
            question="alignment",
            value=rater.rate(verdict, crew.rng(rater.name, sample.id)),
            simulated=True,
            shown_at=now,
            answered_at=now,
        )

    verdicts = _Verdicts(study, images)
    added = 0
    with progress("rate", len(images), done=len(images) - len(missing)) as advance:
        for i in range(0, len(missing), _BATCH):
            part = missing[i : i + _BATCH]
            judged = zip(part, verdicts.of(part), strict=True)
            votes = [
                vote(s, v, r) for (s, _), v in judged for r in crew.of(s.id)
                if (s.id, r.name) not in done
            ]  # fmt: skip
            added += study.feedback.add_ratings(votes)
            advance(len(part))
    return added


def _images(study: Study, config: "RaterOptions") -> list[tuple[Sample, Prompt]]:
    which = config.prompts or "train"
    rated = images_to_rate(study, config.model, _prompts(study, which), which, config.per_prompt)
    return [(sample, prompt) for prompt, samples in rated for sample in samples]


def _prompts(study: Study, which: PromptChoice) -> list[Prompt]:
    from sayso.tinyworld.scenes import OBJECTS

    prompts = study.prompts(which)
    for prompt in prompts:
        if prompt.slots.get("object") not in OBJECTS:
            raise UserError(
                f"simulated raters cannot rate {prompt.text!r}; they know only prompts of the set "
                "tinyworld: choose --prompts train, seen, unseen or test of such a study"
            )
    return prompts


class _Verdicts:
    """What the judge sees; made only after every picture was found whole."""

    def __init__(self, study: Study, items: Sequence[tuple[Sample, Prompt]]) -> None:
        _refuse_damaged(study, (sample for sample, _ in items))
        self._study = study
        self._judge: Callable[[list[np.ndarray], list[Prompt]], list[Verdict]] | None = None

    def of(self, items: Sequence[tuple[Sample, Prompt]]) -> "list[Verdict]":
        if self._judge is None:
            self._judge = _load_judge()
        pictures = [np.asarray(self._study.image(sample)) for sample, _ in items]
        return self._judge(pictures, [prompt for _, prompt in items])


def _load_judge() -> "Callable[[list[np.ndarray], list[Prompt]], list[Verdict]]":
    from sayso.tinyworld.judge import Judge, as_images

    judge = Judge.load()
    return lambda pictures, prompts: judge.verdicts(as_images(pictures), prompts)


# comparisons


def _compare(study: Study, config: "RaterOptions", crew: Crew) -> int:
    done = {comparison.id for comparison in study.feedback.comparisons(excluded=True)}
    pairs = _pairs(study, config)
    jobs = [
        (pair, r, _vote_id(study, pair, r.name)) for pair in pairs for r in crew.of(_item(pair))
    ]
    missing = [job for job in jobs if job[2] not in done]
    images = {s.id: (s, p.prompt) for p, _, _ in missing for side in p.sides for s in side}
    verdicts = _verdicts_by_id(study, list(images.values()))
    with progress("compare", len(jobs), unit="votes", done=len(jobs) - len(missing)) as advance:
        votes = [_comparison(*job, verdicts, crew) for job in missing]
        added = study.feedback.add_comparisons(votes)
        advance(len(votes))
    return added


def _verdicts_by_id(study: Study, items: list[tuple[Sample, Prompt]]) -> "dict[str, Verdict]":
    verdicts = _Verdicts(study, items)
    found: dict[str, Verdict] = {}
    for i in range(0, len(items), _BATCH):
        part = items[i : i + _BATCH]
        ids = [sample.id for sample, _ in part]
        found.update(zip(ids, verdicts.of(part), strict=True))
    return found


def _comparison(
    pair: _Pair, rater: "SimulatedRater", vote_id: str, verdicts: "dict[str, Verdict]", crew: Crew
) -> Comparison:
    rng = crew.rng(rater.name, _item(pair))
    swap = bool(rng.random() < 0.5)
    sides = pair.sides[::-1] if swap else pair.sides
    models = pair.models[::-1] if swap else pair.models
    seen = [[verdicts[s.id] for s in side] for side in sides]
    now = time.time()
    return Comparison(
        id=vote_id,
        prompt_id=pair.prompt.id,
        left_ids=tuple(s.id for s in sides[0]),
        right_ids=tuple(s.id for s in sides[1]),
        left_model=models[0],
        right_model=models[1],
        rater=rater.name,
        question=pair.question,
        value=rater.compare(seen[0], seen[1], pair.question, rng),
        simulated=True,
        shown_at=now,
        answered_at=now,
    )


def _vote_id(study: Study, pair: _Pair, rater: str) -> str:
    return digest([study.info.seed, rater, _item(pair)])


def _item(pair: _Pair) -> str:
    """The two sets and the question; the same whichever model was named left."""
    sets = sorted([s.id for s in side] for side in pair.sides)
    return digest([pair.prompt.id, sets, pair.question])


def _pairs(study: Study, config: "RaterOptions") -> list[_Pair]:
    which, models = config.prompts or "test", (config.left, config.right)
    sets = sets_to_compare(study, models, _prompts(study, which), which, config.set_size)
    return [_Pair(prompt, sides, models, q) for prompt, sides in sets for q in QUESTIONS]
