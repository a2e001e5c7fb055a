"""Stage `fit`: learn a reward from the ratings."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import numpy as np
from numpy import ndarray

from sayso.base.errors import UserError
from sayso.base.files import JsonObject
from sayso.base.progress import console
from sayso.base.records import check_choices
from sayso.base.types import Prompt, Sample
from sayso.study.checks import check_feedback
from sayso.study.identity import canonical_config, fitted_identity, models_in
from sayso.study.inputs import (
    picture_digest,
    refuse_changed,
    refuse_edited,
    refuse_other_pictures,
    samples_by_id,
    source_of_plugin,
)
from sayso.study.run import Run
from sayso.study.study import Study
from sayso.training.options import trackers_of
from sayso.votes.labels import LabelMethod, RatingCounts

if TYPE_CHECKING:
    from accelerate import Accelerator

    from sayso.rewards import TrainableReward


@dataclass(frozen=True)
class FitConfig:
    """Which reward to train, and on which ratings."""

    portions: ClassVar = frozenset({"tracker"})

    reward: str = "clip_head"
    """The reward to train: clip_head, or your own, such as ./mine.py."""
    name: str = ""
    """Name of the run, runs/fit-NAME; default: the reward's."""
    samples_of: str = ""
    """Models whose rated images it learns from, with commas between, such as base; default: all."""
    raters: Literal["auto", "people", "simulated"] = "auto"
    """Whose ratings to use; auto: people's if there are any, otherwise those of simulated raters.
    The two are never mixed."""
    labels: LabelMethod = "share"
    """How an image's ratings become its label: share, the share of good (the paper's label if an
    image has one rater); majority; or dawid-skene, the probability of good, learned together with
    each rater's error rates. share assumes neither a single truth nor that some raters are better;
    use dawid-skene if there is a right label and some raters are careless."""
    heldout_fraction: float = 0.15
    """Share of the rated prompts held out from training, for early stopping and measuring,
    between 0 and 1."""
    tracker: str = ""
    """Where the losses of each epoch also go: tensorboard, wandb or trackio, or several with commas
    between. tensorboard needs the extra sayso[trackers]."""


class Data(NamedTuple):
    """The ratings of train prompts, one row per image; images with skips alone are left out.

    `labels` are what the reward learns, in [0, 1], made of the ratings in `counts` as the option
    `labels` says. `ignored` counts rated images of test prompts, which a reward must not
    learn from.
    """

    samples: list[Sample]
    prompts: list[Prompt]
    counts: list[RatingCounts]
    labels: list[float]
    simulated: bool
    skipped: int
    ignored: int


def fit(
    study: Study, config: FitConfig | None = None, reward: "TrainableReward | None" = None
) -> Run:
    """Train a reward on the study's ratings and measure it on held-out prompts.

    The processes of a launch embed the images together; the main one learns.

    result.json holds held-out accuracy, AUC, Brier score, pair accuracy and calibration, the same
    on the training rows, and how many ratings, images and prompts there were.

    Raises: UserError: if an option is out of range, an image is gone, there are no good or no bad
        ratings or only one prompt, a prompt is too long for CLIP, or the loss is not finite.
    """
    from sayso.base.devices import agreed, is_main_process, main_process_first, make_accelerator
    from sayso.rewards import load_trainable_reward

    config = canonical_config(study, config or FitConfig())
    trackers_of(config.tracker)
    kind = load_trainable_reward(config.reward)
    reward = reward or kind()
    begun = study.begun("fit", _run_name(config))
    known = begun and (begun.finished or begun.inputs)
    collected = None if known else _collected(study, config)
    accelerator = make_accelerator("no")
    reward.prepare(study, accelerator.device)
    gathered = collected and {**collected, "sources": _sources(study, config)}
    with main_process_first():
        run = study.run(
            "fit", _run_name(config), config, reward, inputs=gathered, main=is_main_process()
        )
    with run:
        if agreed(run.finished):
            refuse_edited(run, "reward", config.reward)
            console.print(f"{run.name} is finished; nothing to do")
        else:
            refuse_changed(run, _sources(study, config))
            started, rows = time.perf_counter(), _frozen(study, run)
            reward.prepare_samples(study, rows[0].samples)
            with main_process_first():
                if is_main_process():
                    _note_environment(study, run, accelerator)
                    _learn(study, config, reward, run, accelerator, *rows, started)
    return run


def _note_environment(study: Study, run: Run, accelerator: "Accelerator") -> None:
    from sayso.data.clip import resolve_clip
    from sayso.study.provenance import computed_on, loaded

    clip = [resolve_clip(study.info.clip_model)]
    run.add_environment({**computed_on(accelerator), "loaded": loaded(clip)})


def _learn(
    study: Study,
    config: FitConfig,
    reward: "TrainableReward",
    run: Run,
    accelerator: "Accelerator",
    data: Data,
    heldout: list[bool],
    started: float,
) -> None:
    from sayso.rewards import RatedSamples
    from sayso.training.trackers import Trackers

    rated = RatedSamples(data.samples, data.prompts, data.labels, heldout)
    trackers = Trackers(run, accelerator, trackers_of(config.tracker))
    run.followers = [trackers.log]
    # an interrupted fit begins again
    with trackers.begun(0):
        facts = reward.fit(study, rated, run)
    scores = reward.score_samples(study, data.samples, [p.text for p in data.prompts]).numpy()
    measured = _measure(data, np.array(heldout), scores)
    run.finish({
        **_counts(data, heldout), "labels": config.labels, **measured, **facts,
        "seconds": time.perf_counter() - started,
        "identity": fitted_identity(study, run),
    })  # fmt: skip
    _say(run)


def _collected(study: Study, config: FitConfig) -> JsonObject:
    """What the run will learn from: images, prompts and labels, and which are held out."""
    data = collect(study, config)
    rows = zip(data.samples, data.counts, data.labels, _heldout(study, config, data), strict=True)
    return {
        "labels": config.labels,
        "raters": "simulated" if data.simulated else "people",
        "skipped": data.skipped,
        "ignored": data.ignored,
        "prompts": [asdict(p) for p in {p.id: p for p in data.prompts}.values()],
        "images": [
            {
                "id": s.id, "picture": picture_digest(study, s), "counts": asdict(counts),
                "label": label, "heldout": heldout,
            }
            for s, counts, label, heldout in rows
        ],
    }  # fmt: skip


def _sources(study: Study, config: FitConfig) -> dict[str, str]:
    """Name → identity of all that the fit depends on beside images and labels."""
    from sayso.training.sources import source_of_clip

    plugin = source_of_plugin("reward", config.reward)
    return {"seed": str(study.info.seed), **plugin, **source_of_clip(study)}


def _frozen(study: Study, run: Run) -> tuple[Data, list[bool]]:
    """The data as it was when the run was begun, and which of it is held out."""
    inputs = run.inputs or {}
    rows = [_in_todays_words(row) for row in inputs["images"]]
    samples = samples_by_id(study, [row["id"] for row in rows], run.name)
    refuse_other_pictures(study, run, rows, samples)
    prompts = {row["id"]: Prompt(**row) for row in inputs["prompts"]}
    data = Data(
        samples=samples,
        prompts=[prompts[s.prompt_id] for s in samples],
        counts=[RatingCounts(**row["counts"]) for row in rows],
        labels=[row["label"] for row in rows],
        simulated=inputs["raters"] == "simulated",
        skipped=inputs["skipped"],
        ignored=inputs["ignored"],
    )
    return data, [row["heldout"] for row in rows]


def _in_todays_words(row: JsonObject) -> JsonObject:
    """A row of inputs.json; earlier versions had other names for two keys, and one key more."""
    old = {"marks": "counts", "target": "label"}
    row = {old.get(key, key): value for key, value in row.items()}
    return {**row, "counts": {k: n for k, n in row["counts"].items() if k != "simulated"}}


def plan(
    study: Study, config: FitConfig, _reward: "TrainableReward | None" = None
) -> dict[str, object]:
    """How many ratings, images and prompts there are, and how many of them are held out."""
    from sayso.rewards import load_trainable_reward

    load_trainable_reward(config.reward)
    data = collect(study, config)
    heldout = _heldout(study, config, data)
    return _counts(data, heldout)


def _heldout(study: Study, config: FitConfig, data: Data) -> list[bool]:
    ids = [p.id for p in data.prompts]
    # by the counts and not by the labels, so that every kind of label is measured on the same rows
    shares = [v.share for v in data.counts if v.share is not None]
    return hold_out(ids, shares, config.heldout_fraction, study.info.seed)


def _run_name(config: FitConfig) -> str:
    return config.name or Path(config.reward).stem


def collect(study: Study, config: FitConfig) -> Data:
    """Read and check the ratings.

    Raises: UserError: if an option is out of range, an image is gone, or no image or every image
        is good.
    """
    if not 0 < config.heldout_fraction < 1:
        raise UserError(
            f"heldout_fraction {config.heldout_fraction} is not in (0, 1); 0.15 is usual"
        )
    check_choices(config)
    check_feedback(study)
    auto = study.feedback.kind_in_use() if config.raters == "auto" else False
    models = models_in(config.samples_of)
    data = _rows(study, config.labels, models, simulated=auto or config.raters == "simulated")
    _refuse_one_kind(data)
    return data


def _rows(study: Study, method: LabelMethod, models: Sequence[str], *, simulated: bool) -> Data:
    counts = study.feedback.counts(simulated)
    prompts = {p.id: p for p in study.prompts()}
    drawn = [s for s in study.samples() if not models or s.model in models]
    if missing := sorted(set(models) - {s.model for s in drawn}):
        raise UserError(f"there are no images of {missing[0]!r}; name models that have some")
    every = [(s, prompts[s.prompt_id], counts[s.id]) for s in drawn if s.id in counts]
    train = [row for row in every if row[1].split == "train"]
    rated = [(s, p, v) for s, p, v in train if v.share is not None]
    ids = {s.id for s, _, _ in rated}
    labels = study.feedback.soft_labels(simulated, method=method, among=ids)
    return Data(
        samples=[s for s, _, _ in rated],
        prompts=[p for _, p, _ in rated],
        counts=[v for _, _, v in rated],
        labels=[labels[s.id] for s, _, _ in rated],
        simulated=simulated,
        skipped=sum(v.skip for _, _, v in train),
        ignored=len(every) - len(train),
    )


def _refuse_one_kind(data: Data) -> None:
    who = "simulated raters" if data.simulated else "people"
    good, bad = sum(v.good for v in data.counts), sum(v.bad for v in data.counts)
    if not good or not bad:
        raise UserError(
            f"a reward needs both good and bad ratings; {who} gave {good} good and {bad} bad "
            "ratings on train prompts; rate more images with sayso rate"
        )


def hold_out(
    prompt_ids: Sequence[str], labels: Sequence[float], fraction: float, seed: int
) -> list[bool]:
    """Choose whole prompts to hold out, so that no image of a learned prompt is measured on.

    Prompts are taken in random order until `fraction` of them is held out (at least one); one that
    the training rows cannot spare, for the rest would be all good or all bad, is passed over.

    Returns: for each row whether it is held out.
    Raises: UserError: if no prompt can be spared.
    """
    prompts = list(dict.fromkeys(prompt_ids))
    wanted = max(1, round(fraction * len(prompts)))
    held: set[str] = set()
    for i in np.random.default_rng([seed, 4]).permutation(len(prompts)):
        if len(held) < wanted and _varied(prompt_ids, labels, held | {prompts[i]}):
            held.add(prompts[i])
    if not held:
        raise UserError(
            f"the ratings cover {len(prompts)} prompts, so none can be held out for measuring; "
            "rate images of more prompts"
        )
    return [p in held for p in prompt_ids]


def _varied(prompt_ids: Sequence[str], labels: Sequence[float], held: set[str]) -> bool:
    rest = [t for p, t in zip(prompt_ids, labels, strict=True) if p not in held]
    return any(t > 0 for t in rest) and any(t < 1 for t in rest)


def _counts(data: Data, heldout: Sequence[bool]) -> dict[str, object]:
    good, bad = sum(v.good for v in data.counts), sum(v.bad for v in data.counts)
    return {
        "raters": "simulated" if data.simulated else "people",
        "n": {
            "ratings": good + bad + data.skipped,
            "good": good,
            "bad": bad,
            "skip": data.skipped,
            "images": len(data.samples),
            "images_heldout": sum(heldout),
            "images_of_test_prompts_ignored": data.ignored,
            "prompts": len({p.id for p in data.prompts}),
            "prompts_heldout": len({p.id for p, h in zip(data.prompts, heldout, strict=True) if h}),
        },
    }


def _measure(data: Data, heldout: ndarray, scores: ndarray) -> dict[str, object]:
    labels = np.array(data.labels)
    ids = np.array([p.id for p in data.prompts])
    parts = {"heldout": heldout, "train": ~heldout}
    return {name: _quality(labels[m], scores[m], ids[m]) for name, m in parts.items()}


def _quality(labels: ndarray, scores: ndarray, prompt_ids: ndarray) -> dict[str, object]:
    """Metrics of one part; those on good and bad leave out images on which the raters are split."""
    from sayso.metrics import quality as metrics

    clear = labels != 0.5
    good, of_clear, ids = labels[clear] > 0.5, scores[clear], prompt_ids[clear]
    both = bool(good.any() and (~good).any())
    pairs, n_pairs = metrics.pair_accuracy(good, of_clear, ids.tolist())
    table = metrics.calibration(labels, scores)
    return {
        "n": len(labels),
        "n_good": int(good.sum()),
        "accuracy": metrics.accuracy(good, of_clear) if len(good) else None,
        "auc": metrics.roc_auc(good, of_clear) if both else None,
        "pair_accuracy": pairs if n_pairs else None,
        "n_pairs": n_pairs,
        "brier": metrics.brier(labels, scores),
        "calibration_error": metrics.calibration_error(table),
        "calibration": [asdict(row) for row in table],
    }


def _say(run: Run) -> None:
    result, heldout = run.result, run.result["heldout"]
    auc = "–" if heldout["auc"] is None else f"{heldout['auc']:.2f}"
    console.print(
        f"{run.name}: AUC {auc}, Brier score {heldout['brier']:.3f} on {heldout['n']} images of "
        f"{result['n']['prompts_heldout']} held-out prompts; raters: {result['raters']}"
    )
