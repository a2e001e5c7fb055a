"""Stage `agreement`: how far raters agree, who is careless, what their labels are worth."""

import importlib.util
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from sayso.base.errors import UserError, quoted
from sayso.base.progress import console
from sayso.base.types import QUESTIONS, Comparison, Prompt, Rating, Sample
from sayso.study.generations import Generations
from sayso.study.run import Run
from sayso.study.study import Study
from sayso.votes.ballots import fingerprint
from sayso.votes.counted import GOLD, is_for
from sayso.votes.labels import METHODS, judgements
from sayso.votes.rater_print import show
from sayso.votes.rater_report import (
    Section,
    comparison_sections,
    label_gain,
    label_quality,
    plain,
    rating_section,
)


@dataclass(frozen=True)
class AgreementConfig:
    """Whose votes are looked at, and how sure the intervals are."""

    name: str = ""
    """Name of the run, runs/agreement-NAME; default: made of the votes, so that new votes make a
    new run and the same votes are not counted twice."""
    raters: Literal["auto", "people", "simulated"] = "auto"
    """Whose votes; auto: people's if there are any, else those of simulated raters. Both are never
    mixed."""
    resamples: int = 999
    """How often raters and prompts are drawn anew for the intervals; 0 leaves the intervals out."""
    judge: Literal["auto", "tinyworld", "none"] = "auto"
    """What else than gold items to hold the labels of several simulated raters against: the tiny
    world's judge. auto is tinyworld in a study of the tiny world where torch is installed. People's
    labels are never held against it."""


class _Votes(NamedTuple):
    """The live votes of one kind of raters, and the images and prompts they are about."""

    kind: str
    ratings: list[Rating]
    comparisons: list[Comparison]
    left_out: dict[str, int]
    samples: dict[str, Sample]
    prompts: dict[str, Prompt]

    @property
    def prompt_of(self) -> dict[str, Prompt]:
        return {s.id: self.prompts[s.prompt_id] for s in self.samples.values()}

    @property
    def digest(self) -> str:
        return fingerprint([*self.ratings, *self.comparisons])


def agreement(study: Study, config: AgreementConfig | None = None) -> Run:
    """Measure agreement and write runs/agreement-<name>/result.json.

    It holds a section for each question on single images and for each pair of models: alpha, kappa
    and rates by category with intervals, a row for each rater, and how Dawid and Skene's labels
    differ from the majority's.

    Raises: UserError: if there are no votes, an option is out of range, or the named run tells of
        other votes.
    """
    config = config or AgreementConfig()
    votes = _gather(study, config)
    run = study.run("agreement", config.name or f"{votes.kind}-{votes.digest[:8]}", config)
    if not run.finished:
        started = time.perf_counter()
        result = _result(study, config, votes)
        run.finish({**result, "seconds": time.perf_counter() - started})
    elif run.result["votes"] != votes.digest:
        raise UserError(
            f"{run.name} tells of other votes than there are now; choose another --name, or none"
        )
    show(run.result)
    console.print(f"{run.name}/result.json holds all of it; docs/agreement.md explains it")
    return run


def plan(study: Study, config: AgreementConfig) -> dict[str, object]:
    """Whose votes there are, and how many."""
    votes = _gather(study, config)
    ratings, comparisons = len(votes.ratings), len(votes.comparisons)
    return {"raters": votes.kind, "ratings": ratings, "comparisons": comparisons}


def _gather(study: Study, config: AgreementConfig) -> _Votes:
    if config.raters not in ("auto", "people", "simulated"):
        raise UserError(f"raters {config.raters!r}; choose auto, people or simulated")
    if config.judge not in ("auto", "tinyworld", "none"):
        raise UserError(f"judge {config.judge!r}; choose auto, tinyworld or none")
    if config.resamples < 0:
        raise UserError(f"resamples {config.resamples} is negative; give 0 or more, 999 is usual")
    store = study.feedback
    kinds = {"people": False, "simulated": True}
    asked = [config.raters] if config.raters in kinds else list(kinds)
    for kind in asked:
        ratings, comparisons = store.ratings(kinds[kind]), store.comparisons(kinds[kind])
        if ratings or comparisons:
            left_out = store.left_out(kinds[kind])
            generations = Generations(study)
            comparisons = list(generations.labelled(comparisons))
            prompts = {prompt.id: prompt for prompt in study.prompts()}
            return _Votes(kind, ratings, comparisons, left_out, generations.by_id, prompts)
    who = {"people": "people", "simulated": "simulated raters"}.get(config.raters, "anybody")
    raise UserError(
        f"there are no votes by {who} yet; collect some with: sayso rate {quoted(study.path)}"
    )


def _result(study: Study, config: AgreementConfig, votes: _Votes) -> dict[str, Any]:
    options = {"resamples": config.resamples, "seed": study.info.seed}
    marks = [
        rating_section(votes.ratings, votes.prompt_of, question, **options)
        for question in QUESTIONS
    ]
    found = [section for section in marks if section]
    found += comparison_sections(votes.comparisons, votes.prompts.values(), **options)
    return {
        "raters": votes.kind,
        "votes": votes.digest,
        "left_out": votes.left_out,
        "careless": _careless(found),
        "sections": [plain(section) for section in found],
        "labels": _labels(study, config, votes),
    }


def _careless(sections: Sequence[Section]) -> list[str]:
    """The raters that a rule speaks against in some section."""
    return sorted({row.rater for section in sections for row in section.careless})


# labels of several raters, against each other and against the truth


def _labels(study: Study, config: AgreementConfig, votes: _Votes) -> dict[str, Any]:
    ratings = [r for r in votes.ratings if r.question == "alignment"]
    marks = judgements(ratings)
    per_image = marks.counts().sum(1)
    shared = {name: i for i, name in enumerate(marks.items) if per_image[i] > 1}
    if not shared:
        return {"skipped": "no image has judgements of two raters"}
    values = {method: make(marks) for method, make in METHODS.items()}
    labels = {method: {name: v[i] for name, i in shared.items()} for method, v in values.items()}
    majority, estimate = labels["majority"], labels["dawid-skene"]
    return {
        "images": len(shared),
        "undecided_by_majority": sum(y == 0.5 for y in majority.values()),
        "changed": sum((majority[i] - 0.5) * (estimate[i] - 0.5) < 0 for i in shared),
        "truth": {
            source: _against(truth, labels, votes, config, study.info.seed)
            for source, truth in _truths(study, config, votes, ratings, list(shared)).items()
        },
    }


def _against(
    truth: Mapping[str, bool],
    labels: Mapping[str, Mapping[str, float]],
    votes: _Votes,
    config: AgreementConfig,
    seed: int,
) -> dict[str, Any]:
    """How near each kind of label comes to a truth, and how much nearer than the majority's."""
    options = {"resamples": config.resamples, "seed": seed}
    prompt_of = {name: sample.prompt_id for name, sample in votes.samples.items()}
    known = {name: true for name, true in truth.items() if name in prompt_of}
    found = {method: label_quality(own, known) for method, own in labels.items()}
    for method, own in labels.items():
        if method != "majority":
            gain = label_gain(own, labels["majority"], known, prompt_of, **options)
            found[method]["against_majority"] = gain.plain()
    return found


def _truths(
    study: Study,
    config: AgreementConfig,
    votes: _Votes,
    ratings: Sequence[Rating],
    images: Sequence[str],
) -> dict[str, Mapping[str, bool]]:
    """What is known of the images beside the votes: source → sample id → good."""
    gold = {
        r.sample_id: r.shown[GOLD] == "good"
        for r in ratings
        if GOLD in r.shown and is_for(r, "check")
    }
    known = [votes.samples[i] for i in images if i in votes.samples]
    found: dict[str, Mapping[str, bool]] = {"gold": gold} if gold else {}
    if _judged(study, config, votes.kind):
        found["tinyworld"] = _judge(study, known, votes.prompts)
    return found


def _judged(study: Study, config: AgreementConfig, kind: str) -> bool:
    torch = importlib.util.find_spec("torch") is not None
    if kind == "people":
        if config.judge == "tinyworld":
            raise UserError(
                "the judge is a program and no truth for people's labels; leave --judge out, or "
                "give --raters simulated"
            )
        return False
    if config.judge == "tinyworld" and not torch:
        raise UserError("the judge needs torch; install sayso[train], or give --judge none")
    wanted = config.judge == "auto" and study.info.base_model == "tinyworld"
    return torch and (wanted or config.judge == "tinyworld")


def _judge(
    study: Study, samples: Sequence[Sample], prompts: Mapping[str, Prompt]
) -> dict[str, bool]:
    """What the tiny world's judge reads off the pictures; prompts it does not know are left out."""
    from sayso.tinyworld.scenes import OBJECTS

    known = [s for s in samples if prompts[s.prompt_id].slots.get("object") in OBJECTS]
    verdicts = _read(study, known, [prompts[s.prompt_id] for s in known]) if known else []
    return {s.id: true for s, true in zip(known, verdicts, strict=True)}


_BATCH = 256


def _read(study: Study, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> list[bool]:
    import numpy as np

    from sayso.base.progress import progress
    from sayso.tinyworld.judge import Judge, as_images

    judge, found = Judge.load(), []
    with progress("judging images", len(samples)) as advance:
        for i in range(0, len(samples), _BATCH):
            pictures = [np.asarray(study.image(s)) for s in samples[i : i + _BATCH]]
            verdicts = judge.verdicts(as_images(pictures), prompts[i : i + _BATCH])
            found += [verdict.true for verdict in verdicts]
            advance(len(pictures))
    return found
