"""Stage `evaluate`: the tuned model against its base, on prompts that training never used."""

import json
import time
from collections import Counter
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sayso.base import files
from sayso.base.errors import UserError, quoted
from sayso.base.progress import console
from sayso.base.types import Comparison, Prompt, Sample, Sampler, digest
from sayso.judges import (
    Judge,
    judge_identities,
    load_judge,
    named_judge,
    without_judge,
    world_judge,
)
from sayso.study.generations import IDENTITY, Generations, own_name, say
from sayso.study.identity import (
    IMPORTED,
    canonical_config,
    chosen_from,
    reward_identity,
)
from sayso.study.info import PromptChoice
from sayso.study.run import Run
from sayso.study.study import Study

if TYPE_CHECKING:
    from sayso.metrics.evaluation import Scored


@dataclass(frozen=True)
class EvaluateConfig:
    """What to measure. All models are measured on the same prompts and seeds."""

    model: str = "runs/align-rwr"
    """The tuned model, such as runs/align-rwr; it is compared with the base model."""
    name: str = ""
    """Name of the run; default: the model's."""
    reward: str = "runs/fit-clip_head"
    """The reward to measure: a run of fit or reward, or a reward that needs neither; empty = no
    reward."""
    judge: str = "auto"
    """Who says whether a prompt is true of an image: people (who rated the test images), reward (a
    reward with a threshold), another judge plug-in, or your own, such as ./mine.py. auto: the judge
    of the world that the base model belongs to if it understands the prompts, otherwise people."""
    prompts: PromptChoice = "test"
    """Which prompts to use; test means seen and unseen."""
    best_of: str = ""
    """A selection to measure as well, such as base@best-of-16; default: the largest one."""
    leave_out_damaged: bool = False
    """Measure fidelity without the held-out pre-training images that cannot be read; they are
    counted."""


@dataclass(frozen=True, slots=True)
class _Gathered:
    """What is measured: role → model, each model's images on the test prompts, and for fidelity.

    All of them were drawn with one sampler, but for imported ones. `identities` has what stands
    behind the names, of each role, of the reward and of the judge.
    """

    models: dict[str, str]
    samples: dict[str, list[Sample]]
    for_fidelity: dict[str, list[Sample]]
    prompts: dict[str, Prompt]
    generations: Generations
    identities: dict[str, str]
    judge_name: str
    judge: Judge

    @property
    def sampler(self) -> Sampler:
        return self.samples["base"][0].sampler


def evaluate(study: Study, config: EvaluateConfig, judge: Judge | None = None) -> Run:
    """Measure alignment, the reward, fidelity and the comparisons; keep the score of every image.

    Writes runs/evaluate-<name>/scores.jsonl (a line an image) and result.json. What lacks
    something stands in the result as {"skipped": reason}.

    Args:
        study: its images of the models on the chosen prompts are measured.
        config: what to measure.
        judge: the judge that `config.judge` names with its options; None = with its defaults.
    Raises: UserError: if the model or its images are missing, no seed is shared with the base, or
        the judge does not understand the prompts.
    """
    from sayso.base.devices import agreed, is_main_process, main_process_first

    config = canonical_config(study, config)
    judge = judge and judge.canonical(study)
    gathered = _gather(study, config, judge)
    name, started = _own_name(study, config, gathered), time.perf_counter()
    # before the run is opened: what a reward or CLIP refuses must leave no run behind
    begun = agreed(study.begun("evaluate", name) is not None)
    rows = None if begun else _score(study, config, gathered)
    with main_process_first():
        run = study.run("evaluate", name, config, judge, main=is_main_process())
    if agreed(run.finished):
        console.print(f"{run.name} is finished; choose another --name to measure again")
        return run
    rows = rows or _score(study, config, gathered)
    with main_process_first():
        if is_main_process():
            say(study, gathered.models.values())
            _note_environment(study, config, gathered, run)
            _write(study, config, gathered, run, rows, started)
    return run


def _write(
    study: Study,
    config: EvaluateConfig,
    gathered: _Gathered,
    run: Run,
    rows: "list[Scored]",
    started: float,
) -> None:
    lines = [json.dumps(asdict(row), ensure_ascii=False) for row in rows]
    files.write_bytes(run.path / "scores.jsonl", ("\n".join(lines) + "\n").encode())
    result = _result(study, config, gathered, rows)
    run.finish(result | {"seconds": time.perf_counter() - started})


def _own_name(study: Study, config: EvaluateConfig, gathered: _Gathered) -> str:
    default = Path(config.model).name
    there = study.path / "runs" / f"evaluate-{config.name or default}" / "result.json"
    same = there.exists() and not gathered.generations.changed_since(Run(there.parent))
    identity = digest(gathered.identities)
    return own_name(
        study,
        "evaluate",
        config.name,
        default,
        identity,
        unrecorded=same,
        former=digest(without_judge(gathered.identities)),
    )


def _note_environment(study: Study, config: EvaluateConfig, gathered: _Gathered, run: Run) -> None:
    from sayso.base.devices import make_accelerator
    from sayso.rewards import reward_folders
    from sayso.study.provenance import computed_on, loaded

    rewards = reward_folders(study, config.reward) if config.reward else []
    folders = dict.fromkeys([*rewards, *gathered.judge.folders(study)])
    facts = {IDENTITY: digest(gathered.identities), "loaded": loaded(folders)}
    run.add_environment({**computed_on(make_accelerator("no")), **facts})


def plan(study: Study, config: EvaluateConfig, judge: Judge | None = None) -> dict[str, object]:
    """How many images of each model are measured, and who judges them."""
    gathered = _gather(study, canonical_config(study, config), judge and judge.canonical(study))
    counts = {f"images of {model}": len(found) for model, found in gathered.samples.items()}
    return {"judge": gathered.judge_name, "prompts": len(gathered.prompts), **counts}


# what is there to measure


def _gather(study: Study, config: EvaluateConfig, judge: Judge | None) -> _Gathered:
    prompts = {p.id: p for p in study.prompts(config.prompts)}
    if not prompts:
        raise UserError(f"{study.path} has no {config.prompts} prompts to evaluate on")
    if config.model == "base" or "@" in config.model:
        raise UserError(f"--model {config.model} is not a tuned model; give a run of align")
    study.find_run(config.model, "align")
    judge_name = _judge_name(study, config, prompts.values())
    judge = named_judge(study, judge_name, judge)
    _refuse_unknown_prompts(judge_name, judge, prompts.values())
    generations = Generations(study)
    generations.now(config.model)
    present = [s for s in generations.samples if generations.is_present(s)]
    by_model = _by_model(present, prompts)
    models = {
        "base": "base",
        "best_of_n": _best_of(config, list(by_model)),
        "aligned": config.model,
    }
    models = {role: model for role, model in models.items() if model}
    for model in models.values():
        if model not in by_model:
            raise UserError(
                f"there are no images of {model} for {config.prompts} prompts; generate some "
                f"with: sayso generate {quoted(study.path)} --model {quoted(model)} --prompts "
                f"{config.prompts}"
            )
    fidelity = {p.id for p in study.prompts("fidelity")}
    drawn = _by_model((s for s in present if s.model in ("base", config.model)), fidelity)
    _refuse_samplers({model: by_model[model] for model in models.values()}, config.prompts, drawn)
    _refuse_unpaired(by_model["base"], by_model[config.model], config.model)
    identities = {role: generations.now(model) for role, model in models.items()}
    if config.reward:
        identities["reward"] = reward_identity(study, config.reward)
    identities |= judge_identities(study, judge_name, judge)
    samples = {model: by_model[model] for model in models.values()}
    return _Gathered(models, samples, drawn, prompts, generations, identities, judge_name, judge)


def _by_model(samples: Iterable[Sample], prompts: Container[str]) -> dict[str, list[Sample]]:
    found: dict[str, list[Sample]] = {}
    for sample in samples:
        if sample.prompt_id in prompts:
            found.setdefault(sample.model, []).append(sample)
    return found


def _best_of(config: EvaluateConfig, models: Iterable[str]) -> str:
    """The selection asked for, or the one of the base with the largest n, or "".

    Raises: UserError: if several have the largest n.
    """
    chosen = {m: made for m in models if (made := chosen_from(m)) and made[0] == "base"}
    largest = [m for m, (_, n) in chosen.items() if n == max(n for _, n in chosen.values())]
    if not config.best_of and len(largest) > 1:
        raise UserError(f"there are {' and '.join(sorted(largest))}; choose one with --best-of")
    return config.best_of or next(iter(largest), "")


def _refuse_samplers(
    on_test: Mapping[str, Sequence[Sample]],
    which: str,
    for_fidelity: Mapping[str, Sequence[Sample]],
) -> None:
    """Refuse more than one sampler: a difference could be its own and not the models'."""
    parts = {f"{model} for {which} prompts": part for model, part in on_test.items()}
    parts |= {f"{model} for fidelity prompts": part for model, part in for_fidelity.items()}
    for name, part in parts.items():
        kinds = {s.sampler for s in part}
        if len(kinds) > 1:
            raise UserError(
                f"the images of {name} were generated with {len(kinds)} different samplers "
                f"({_differences(kinds)}); an evaluation needs exactly one: use a study for "
                "each, or delete the lines of the others in samples.jsonl"
            )
    first, *others = parts
    for name in others:
        both = {parts[name][0].sampler, parts[first][0].sampler}
        if len(both) > 1:
            raise UserError(
                f"the images of {first} and of {name} were generated with different samplers "
                f"({_differences(both)}); generate them with the same one"
            )


def _differences(samplers: Collection[Sampler]) -> str:
    """The fields in which samplers differ, with their values."""
    values = {f.name: {str(getattr(s, f.name)) for s in samplers} for f in fields(Sampler)}
    said = {name: sorted(found) for name, found in values.items() if len(found) > 1}
    return "; ".join(f"{name} {' and '.join(found)}" for name, found in said.items())


def _refuse_unpaired(base: Sequence[Sample], aligned: Sequence[Sample], model: str) -> None:
    if not {(s.prompt_id, s.seed) for s in base} & {(s.prompt_id, s.seed) for s in aligned}:
        raise UserError(
            f"base and {model} share no prompt and seed; generate the same prompts with both"
        )


def _judge_name(study: Study, config: EvaluateConfig, prompts: Iterable[Prompt]) -> str:
    """The plug-in that judges: the one named, or the world's if it understands, or people."""
    if config.judge == "none":  # how earlier versions called people's ratings
        return "people"
    if config.judge != "auto":
        return config.judge
    world = world_judge(study)
    return world if world and all(map(load_judge(world)().understands, prompts)) else "people"


def _refuse_unknown_prompts(name: str, judge: Judge, prompts: Iterable[Prompt]) -> None:
    for prompt in prompts:
        if not judge.understands(prompt):
            raise UserError(
                f"judge {name} does not understand {prompt.text!r}; choose another --judge, such "
                "as people, who rate the images in sayso rate"
            )


def _score(study: Study, config: EvaluateConfig, gathered: _Gathered) -> "list[Scored]":
    """One line an image: the judge's verdict, the reward, CLIP similarity."""
    from sayso.base.devices import make_accelerator
    from sayso.stages._scoring import score

    samples = [s for model in gathered.models.values() for s in gathered.samples[model]]
    prompts = [gathered.prompts[s.prompt_id] for s in samples]
    device = make_accelerator("no").device
    return score(study, samples, prompts, gathered.judge, config.reward, device)


def _result(
    study: Study, config: EvaluateConfig, gathered: _Gathered, rows: "list[Scored]"
) -> dict[str, Any]:
    from sayso.data.features import fidelity
    from sayso.metrics import evaluation

    by_role = {
        role: [row for row in rows if row.model == model] for role, model in gathered.models.items()
    }
    drawn = by_role["base"]
    by_role["base"], by_role["aligned"] = evaluation.pair_up(drawn, by_role["aligned"])
    scores = {role: evaluation.mean_scores(part) for role, part in by_role.items()}
    change = evaluation.paired(by_role["base"], by_role["aligned"])
    return {
        "models": gathered.models,
        "identities": gathered.identities,
        "judge": gathered.judge_name,
        "judged": gathered.judge.title,
        "caveat": gathered.judge.caveat,
        "prompts": len({row.prompt_id for row in by_role["base"]}),
        "images": {role: len(part) for role, part in by_role.items()},
        "sampler": asdict(gathered.sampler),
        "alignment": {role: evaluation.shares(part) for role, part in by_role.items()},
        "paired": change,
        "methods": evaluation.METHODS,
        "scores": scores,
        "optimisation": evaluation.optimisation(scores, change),
        "reward_quality": evaluation.reward_quality(drawn, _is_probability(rows)),
        "fidelity": fidelity(
            study,
            config.model,
            gathered.for_fidelity,
            gathered.sampler,
            leave_out_damaged=config.leave_out_damaged,
        ),
        **_compared(study, gathered),
    }


def _compared(study: Study, gathered: _Gathered) -> dict[str, Any]:
    """The side-by-side votes on the test prompts; strengths take in every model compared there."""
    from sayso.votes.balance import balance
    from sayso.votes.counted import is_for
    from sayso.votes.side_by_side import side_by_side
    from sayso.votes.standings import standings

    seed, prompts = study.info.seed, set(gathered.prompts)
    counted = [v for v in study.feedback.comparisons() if is_for(v, "vote")]
    votes = [v for v in counted if v.prompt_id in prompts]
    reasons = [_unfit(gathered, vote) for vote in votes]
    left_out = Counter(reason for reason in reasons if reason)
    votes = [v for v, reason in zip(votes, reasons, strict=True) if not reason]
    votes = list(gathered.generations.labelled(votes))
    for reason, n in left_out.items():
        console.print(f"left out {n} comparisons of {reason}", highlight=False)
    return {
        "comparisons_left_out": dict(left_out),
        "comparisons": side_by_side(votes, set(gathered.models.values()), prompts, seed),
        "bradley_terry": standings(votes, seed),
        "balance": balance(votes, seed),
    }


def _unfit(gathered: _Gathered, vote: Comparison) -> str:
    """Why a comparison says nothing of the models as they are now and as they were drawn; or ""."""
    generations = gathered.generations
    found = [generations.by_id.get(i) for i in (*vote.left_ids, *vote.right_ids)]
    samples = [sample for sample in found if sample]
    if len(samples) < len(found):
        return "images without a record"
    if not all(map(generations.is_present, samples)):
        return "images of earlier models"
    drawn = {s.sampler for s in samples if not s.model.startswith(IMPORTED)}
    return "" if drawn <= {gathered.sampler} else "images generated with another sampler"


def _is_probability(rows: "Sequence[Scored]") -> bool:
    return all(row.reward is None or 0 <= row.reward <= 1 for row in rows)
