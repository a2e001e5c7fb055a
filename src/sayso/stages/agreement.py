"""Stage `agreement`: how far raters agree, who is careless, what their labels are worth."""

import importlib.util
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from sayso.base.errors import UserError, quoted
from sayso.base.progress import console
from sayso.base.records import check_choices
from sayso.base.types import QUESTIONS, Comparison, Prompt, Rating, Sample
from sayso.judges import Judge, load_judge, named_judge, world_judge
from sayso.study.generations import Generations
from sayso.study.identity import canonical_config
from sayso.study.run import Run
from sayso.study.study import Study
from sayso.votes.counted import GOLD, is_for
from sayso.votes.item_votes import fingerprint
from sayso.votes.labels import METHODS, good_and_bad
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
    """Which votes to analyse, and how precise the intervals are."""

    name: str = ""
    """Name of the run, runs/agreement-NAME; default: derived from the votes, so new votes make a
    new run and the same votes are not analysed twice."""
    raters: Literal["auto", "people", "simulated"] = "auto"
    """Whose votes to use; auto: people's if there are any, otherwise those of simulated raters. The
    two are never mixed."""
    resamples: int = 999
    """How often raters and prompts are resampled for the intervals; 0 = no intervals."""
    judge: str = "auto"
    """What the labels of simulated raters are compared with, besides gold items: a judge plug-in,
    or your own, such as ./mine.py. auto: the judge of the world that the base model belongs to, if
    torch is installed; none: gold items only. People's labels are never compared with a judge."""


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


def agreement(
    study: Study, config: AgreementConfig | None = None, judge: Judge | None = None
) -> Run:
    """Measure agreement and write runs/agreement-<name>/result.json.

    It holds a section for each question on single images and for each pair of models: alpha, kappa
    and rates by category with intervals, a row for each rater, and how Dawid and Skene's labels
    differ from the majority's.

    Args:
        judge: the judge that `config.judge` names with its options; None = with its defaults.
    Raises: UserError: if there are no votes, an option is out of range, or the named run tells of
        other votes.
    """
    config = canonical_config(study, config or AgreementConfig())
    judge = judge and judge.canonical(study)
    votes = _gather(study, config)
    run = study.run("agreement", config.name or f"{votes.kind}-{votes.digest[:8]}", config, judge)
    if not run.finished:
        started = time.perf_counter()
        result = _result(study, config, votes, judge)
        run.finish({**result, "seconds": time.perf_counter() - started})
    elif run.result["votes"] != votes.digest:
        raise UserError(
            f"{run.name} was made from other votes than there are now; choose another --name, or "
            "omit it"
        )
    show(run.result)
    console.print(f"All numbers are in {run.name}/result.json; see docs/agreement.md")
    return run


def plan(study: Study, config: AgreementConfig, _judge: Judge | None = None) -> dict[str, object]:
    """Whose votes there are, and how many."""
    votes = _gather(study, config)
    ratings, comparisons = len(votes.ratings), len(votes.comparisons)
    return {"raters": votes.kind, "ratings": ratings, "comparisons": comparisons}


def _gather(study: Study, config: AgreementConfig) -> _Votes:
    check_choices(config)
    if config.judge not in ("auto", "none"):
        load_judge(config.judge)
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


def _result(
    study: Study, config: AgreementConfig, votes: _Votes, judge: Judge | None
) -> dict[str, Any]:
    options = {"resamples": config.resamples, "seed": study.info.seed}
    ratings = [
        rating_section(votes.ratings, votes.prompt_of, question, **options)
        for question in QUESTIONS
    ]
    found = [section for section in ratings if section]
    found += comparison_sections(votes.comparisons, votes.prompts.values(), **options)
    return {
        "raters": votes.kind,
        "votes": votes.digest,
        "left_out": votes.left_out,
        "careless": _careless(found),
        "sections": [plain(section) for section in found],
        "labels": _labels(study, config, votes, judge),
    }


def _careless(sections: Sequence[Section]) -> list[str]:
    """The raters that a rule speaks against in some section."""
    return sorted({row.rater for section in sections for row in section.careless})


# labels of several raters, against each other and against the truth


def _labels(
    study: Study, config: AgreementConfig, votes: _Votes, judge: Judge | None
) -> dict[str, Any]:
    ratings = [r for r in votes.ratings if r.question == "alignment"]
    good_bad = good_and_bad(ratings)
    per_image = good_bad.counts().sum(1)
    shared = {name: i for i, name in enumerate(good_bad.items) if per_image[i] > 1}
    if not shared:
        return {"skipped": "no image has ratings by two raters"}
    values = {method: make(good_bad) for method, make in METHODS.items()}
    labels = {method: {name: v[i] for name, i in shared.items()} for method, v in values.items()}
    majority, estimate = labels["majority"], labels["dawid-skene"]
    truths = _truths(study, votes, ratings, list(shared), _judge(study, config, votes.kind, judge))
    return {
        "images": len(shared),
        "undecided_by_majority": sum(y == 0.5 for y in majority.values()),
        "changed": sum((majority[i] - 0.5) * (estimate[i] - 0.5) < 0 for i in shared),
        "truth": {
            source: _against(truth.known, labels, votes, config, study.info.seed)
            for source, truth in truths.items()
        },
        "truths": {source: truth.title for source, truth in truths.items()},
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


class _Truth(NamedTuple):
    """What is known of images beside the votes: sample id → good, and how it is known."""

    title: str
    known: dict[str, bool]


def _truths(
    study: Study,
    votes: _Votes,
    ratings: Sequence[Rating],
    images: Sequence[str],
    judge: tuple[str, Judge] | None,
) -> dict[str, _Truth]:
    """Each truth by its source: "gold", or the judge's name."""
    gold = {
        r.sample_id: r.shown[GOLD] == "good"
        for r in ratings
        if GOLD in r.shown and is_for(r, "check")
    }
    found = {"gold": _Truth("the known votes on gold items", gold)} if gold else {}
    if judge:
        name, reads = judge
        known = [votes.samples[i] for i in images if i in votes.samples]
        said = _read(study, reads, known, votes.prompts)
        found[name] = _Truth(f"the truth as {reads.title}", said)
    return found


def _judge(
    study: Study, config: AgreementConfig, kind: str, judge: Judge | None
) -> tuple[str, Judge] | None:
    """The judge to hold the labels against and its name, or None."""
    if kind == "people":
        if config.judge not in ("auto", "none"):
            raise UserError(
                "a judge is a program, so people's labels are not compared with one; omit "
                "--judge, or give --raters simulated"
            )
        return None
    if config.judge != "auto":
        name = "" if config.judge == "none" else config.judge
    else:
        name = world_judge(study) if importlib.util.find_spec("torch") else ""
    return (name, named_judge(study, name, judge)) if name else None


def _read(
    study: Study, judge: Judge, samples: Sequence[Sample], prompts: Mapping[str, Prompt]
) -> dict[str, bool]:
    """What the judge says of the images; those whose prompts it does not understand are left out.

    Those it cannot tell are left out too.
    """
    known = [s for s in samples if judge.understands(prompts[s.prompt_id])]
    if not known:
        return {}
    judge.prepare(study)
    verdicts = judge.judge_samples(study, known, [prompts[s.prompt_id] for s in known])
    return {s.id: v.true for s, v in zip(known, verdicts, strict=True) if v}
