"""Stage `evaluate`: the tuned model against its base, on prompts that training never used."""

import json
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sayso import files
from sayso.errors import UserError
from sayso.progress import console
from sayso.run import Run
from sayso.study import PromptChoice, Study
from sayso.types import Prompt, Sample

if TYPE_CHECKING:
    from sayso.evaluation import Scored


@dataclass(frozen=True)
class EvaluateConfig:
    """What is measured. Every model is measured on the same prompts and the same seeds."""

    model: str = "runs/align-rwr"
    """The tuned model, such as runs/align-rwr; it is measured against the base."""
    name: str = ""
    """Name of the run; default: that of the model."""
    reward: str = "runs/fit-clip_head"
    """The learned reward: a run of fit, or a reward plug-in; an empty name leaves it out."""
    judge: Literal["auto", "tinyworld", "none"] = "auto"
    """Who says whether a prompt is true of an image: the tiny world's judge, or with none the
    people who rated the test images. auto is tinyworld in a study of the tiny world."""
    prompts: PromptChoice = "test"
    """Which prompts; test is seen and unseen objects together."""
    best_of: str = ""
    """A selection to measure beside, such as base@best-of-16; default: the largest one drawn."""


@dataclass(frozen=True, slots=True)
class _Material:
    """What is measured: role → model, and each model's images on the test prompts."""

    models: dict[str, str]
    samples: dict[str, list[Sample]]
    prompts: dict[str, Prompt]


def evaluate(study: Study, config: EvaluateConfig) -> Run:
    """Measure alignment, the reward, fidelity and the comparisons; keep the score of every image.

    Writes runs/evaluate-<name>/scores.jsonl (a line an image) and result.json. What lacks
    something stands in the result as {"skipped": reason}.

    Raises: UserError: if the model or its images are missing, no seed is shared with the base, or
        the judge does not know the prompts.
    """
    material = _gather(study, config)
    judge = _judge_name(study, config, material)
    if config.reward:
        _find_reward(study, config.reward)
    run = study.run("evaluate", config.name or Path(config.model).name, config)
    if run.finished:
        console.print(f"{run.name} is finished; choose another --name to measure again")
        return run
    _note_environment(study, config, judge, run)
    started = time.perf_counter()
    rows = _score(study, config, material, judge)
    lines = [json.dumps(asdict(row), ensure_ascii=False) for row in rows]
    files.write_bytes(run.path / "scores.jsonl", ("\n".join(lines) + "\n").encode())
    result = _result(study, config, material, judge, rows)
    run.finish(result | {"seconds": time.perf_counter() - started})
    return run


def _note_environment(study: Study, config: EvaluateConfig, judge: str, run: Run) -> None:
    from sayso.devices import make_accelerator
    from sayso.provenance import computed_on, loaded
    from sayso.reward import reward_folders
    from sayso.tinyworld import paths

    rewards = reward_folders(study, config.reward) if config.reward else []
    folders = [*rewards, *([paths().judge] if judge else [])]
    run.add_environment({**computed_on(make_accelerator("no")), "loaded": loaded(folders)})


def plan(study: Study, config: EvaluateConfig) -> dict[str, object]:
    """How many images of each model are measured."""
    material = _gather(study, config)
    judge = _judge_name(study, config, material) or "ratings of people"
    counts = {f"images of {model}": len(found) for model, found in material.samples.items()}
    return {"judge": judge, "prompts": len(material.prompts), **counts}


# what is there to measure


def _gather(study: Study, config: EvaluateConfig) -> _Material:
    prompts = {p.id: p for p in study.prompts(config.prompts)}
    if not prompts:
        raise UserError(f"{study.path} has no {config.prompts} prompts to evaluate on")
    if config.model == "base" or "@" in config.model:
        raise UserError(f"--model {config.model} is not a tuned model; give a run of align")
    study.find_run(config.model)
    by_model: dict[str, list[Sample]] = {}
    for sample in study.samples():
        if sample.prompt_id in prompts:
            by_model.setdefault(sample.model, []).append(sample)
    models = {
        "base": "base",
        "best_of_n": _best_of(config, list(by_model)),
        "aligned": config.model,
    }
    models = {role: model for role, model in models.items() if model}
    for model in models.values():
        if model not in by_model:
            raise UserError(
                f"there are no images of {model} for {config.prompts} prompts; draw some with: "
                f"sayso generate {study.path} --model {model} --prompts {config.prompts}"
            )
    samples = {model: _one_sampler(by_model[model], model) for model in models.values()}
    _refuse_unpaired(samples["base"], samples[config.model], config.model)
    return _Material(models, samples, prompts)


def _best_of(config: EvaluateConfig, models: Sequence[str]) -> str:
    """The selection asked for, or the one with the largest n, or ""."""
    sizes = {m: int(found[1]) for m in models if (found := re.fullmatch(r"base@best-of-(\d+)", m))}
    return config.best_of or max(sizes, key=lambda m: sizes[m], default="")


def _one_sampler(samples: Sequence[Sample], model: str) -> list[Sample]:
    kinds = {s.sampler for s in samples}
    if len(kinds) > 1:
        raise UserError(
            f"the images of {model} were drawn with {len(kinds)} different samplers; an evaluation "
            "needs one: use a study for each"
        )
    return list(samples)


def _refuse_unpaired(base: Sequence[Sample], aligned: Sequence[Sample], model: str) -> None:
    if base[0].sampler != aligned[0].sampler:
        raise UserError(f"base and {model} were drawn with different samplers; draw them alike")
    if not {(s.prompt_id, s.seed) for s in base} & {(s.prompt_id, s.seed) for s in aligned}:
        raise UserError(f"base and {model} share no prompt and seed; draw the same prompts of both")


def _find_reward(study: Study, name: str) -> None:
    """Refuse an unknown reward before anything is loaded."""
    from sayso.plugins import is_plugin

    if not is_plugin("reward", name):
        study.find_run(name)


def _judge_name(study: Study, config: EvaluateConfig, material: _Material) -> str:
    from sayso.tinyworld.scenes import OBJECTS

    if config.judge == "none" or (config.judge == "auto" and study.info.base_model != "tinyworld"):
        return ""
    for prompt in material.prompts.values():
        if prompt.slots.get("object") not in OBJECTS:
            if config.judge == "auto":
                return ""
            raise UserError(
                f"the tiny world's judge does not know {prompt.text!r}; use --judge none, which "
                "counts people's ratings"
            )
    return "tinyworld"


def _score(study: Study, config: EvaluateConfig, material: _Material, judge: str) -> "list[Scored]":
    """One line an image: the mark of the judge or of people, the reward, CLIP similarity."""
    from sayso.devices import make_accelerator
    from sayso.scoring import score

    samples = [s for model in material.models.values() for s in material.samples[model]]
    prompts = [material.prompts[s.prompt_id] for s in samples]
    return score(study, samples, prompts, judge, config.reward, make_accelerator("no").device)


def _result(
    study: Study,
    config: EvaluateConfig,
    material: _Material,
    judge: str,
    rows: "list[Scored]",
) -> dict[str, Any]:
    from sayso import evaluation
    from sayso.features import fidelity

    by_role = {
        role: [row for row in rows if row.model == model] for role, model in material.models.items()
    }
    drawn = by_role["base"]
    by_role["base"], by_role["aligned"] = evaluation.pair_up(drawn, by_role["aligned"])
    scores = {role: evaluation.mean_scores(part) for role, part in by_role.items()}
    change = evaluation.paired(by_role["base"], by_role["aligned"])
    return {
        "models": material.models,
        "judge": judge or "ratings of people",
        "prompts": len({row.prompt_id for row in by_role["base"]}),
        "images": {role: len(part) for role, part in by_role.items()},
        "sampler": asdict(material.samples["base"][0].sampler),
        "alignment": {role: evaluation.shares(part) for role, part in by_role.items()},
        "paired": change,
        "methods": evaluation.METHODS,
        "scores": scores,
        "optimisation": evaluation.optimisation(scores, change),
        "reward_quality": evaluation.reward_quality(drawn, _is_probability(rows)),
        "fidelity": fidelity(study, config.model),
        **_compared(study, material),
    }


def _compared(study: Study, material: _Material) -> dict[str, Any]:
    """The side-by-side votes on the test prompts; strengths take in every model compared there."""
    from sayso.votes.balance import balance
    from sayso.votes.counted import is_for
    from sayso.votes.side_by_side import side_by_side
    from sayso.votes.standings import standings

    seed, prompts = study.info.seed, set(material.prompts)
    counted = [v for v in study.feedback.comparisons() if is_for(v, "ballot")]
    votes = [v for v in counted if v.prompt_id in prompts]
    return {
        "comparisons": side_by_side(votes, set(material.models.values()), prompts, seed),
        "bradley_terry": standings(votes, seed),
        "balance": balance(votes, seed),
    }


def _is_probability(rows: "Sequence[Scored]") -> bool:
    return all(row.reward is None or 0 <= row.reward <= 1 for row in rows)
