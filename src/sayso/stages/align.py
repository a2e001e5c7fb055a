"""Stage `align`: fine-tune the model on what people, or the reward learned from them, like."""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

from sayso.base.cards import refuse_forecast
from sayso.base.devices import (
    QUANTISED,
    BasePrecision,
    MixedPrecision,
    is_main_process,
    main_process_first,
    make_accelerator,
    number_of_processes,
)
from sayso.base.errors import UserError, check_seed
from sayso.base.extras import need
from sayso.base.files import JsonObject
from sayso.base.plugins import is_plugin
from sayso.base.progress import console
from sayso.data.pretraining_images import open_pretraining
from sayso.study.generations import say
from sayso.study.identity import canonical_config, models_in, weights_identity
from sayso.study.inputs import fitted_to, refuse_changed, refuse_edited, source_of_plugin
from sayso.study.run import Run
from sayso.study.study import Study
from sayso.training.options import TrainOptions
from sayso.votes.labels import LabelMethod

if TYPE_CHECKING:
    from accelerate import Accelerator

    from sayso.aligners import Aligner
    from sayso.data.conditions import Kept
    from sayso.stages._ready import Ready
    from sayso.stages._training_data import Samples


RATERS = ("people", "simulated")
PRETRAINING = "pre-training images"


@dataclass(frozen=True)
class AlignConfig(TrainOptions):
    """How to fine-tune the model. The options of the aligner follow below."""

    portions: ClassVar = TrainOptions.portions | {"workers", "forecast_for"}

    aligner: str = "rwr"
    """The algorithm: an aligner plug-in, or your own, such as ./mine.py."""
    name: str = ""
    """Name of the run; default: the aligner's."""
    reward: str = "runs/fit-clip_head"
    """The reward to maximise: a run of fit or reward, or a reward that needs neither, such as
    clip_score."""
    model: str = "base"
    """The model to start from: base, or an earlier run of align."""
    samples_of: str = ""
    """Models on whose images it trains, with commas between, such as base,runs/align-rwr for a
    second round on old and new ratings; default: the model to start from."""
    labels: LabelMethod | Literal["auto"] = "auto"
    """How the ratings of an image become its label: share, majority or dawid-skene (see sayso fit
    --help); auto: as for the reward, or share if the reward is not a run of fit."""
    raters: Literal["auto", "people", "simulated"] = "auto"
    """Whose ratings to use; auto: as for the reward, or people's if there are any."""
    lora_rank: int = 0
    """Rank of low-rank adapters to train; 0 = train the whole network, as in the paper."""
    base_precision: BasePrecision = "fp32"
    """How frozen weights are kept in memory, with --lora-rank: bf16 halves them; int8 and nf4 (4
    bits) quarter and eighth the network's linear layers and need the extra sayso[quantised]. The
    adapters stay fp32."""
    pretraining_images: int = 1024
    """Maximum number of pre-training images to use; 625,000 in the paper."""
    bucket_step: int = 0
    """Sort pre-training images into aspect-ratio buckets whose sides are multiples of this many
    pixels, such as 64, instead of cropping all to the size of the samples; 0 = one size."""
    leave_out_damaged: bool = False
    """Train without the pre-training images that cannot be read and, with --pretraining-draw
    reward, without those whose captions the reward cannot read; they are counted and named."""
    workers: int | None = None
    """Processes that decode pre-training images for the encoder; default: one less than the number
    of processors if a GPU encodes, 0 if a CPU does."""
    conditions: Literal["auto", "table", "encode"] = "auto"
    """Where encoded prompts and captions come from: a table on disk, or the text encoder in every
    step; auto = a table if it takes at most 1 GiB and more rows are drawn than there are texts."""
    seed: int | None = None
    """Seed for training; default: the study's."""
    forecast_for: str = ""
    """With --dry-run: the device to forecast for, in place of this machine's: its memory (24GB), a
    card (rtx3090, rtx4090, a100, h100, h200), or several (4x24GB)."""
    mixed_precision: MixedPrecision = "auto"
    """Precision of the network's arithmetic; auto = bf16 if the machine supports it."""

    def check(self) -> None:
        super().check()
        check_seed(self.seed)
        if self.base_precision != "fp32" and not self.lora_rank:
            raise UserError(
                f"base_precision {self.base_precision} keeps the network frozen, so that only "
                "adapters can be trained; give --lora-rank too, such as 16, or --base-precision "
                "fp32"
            )
        if self.base_precision in QUANTISED:
            need("quantised", f"align --base-precision {self.base_precision}")
        for name, least in {
            "lora_rank": 0,
            "pretraining_images": 1,
            "workers": 0,
            "bucket_step": 0,
        }.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{name} {value} is too small; give {least} or more")


def plan(study: Study, config: AlignConfig, aligner: "Aligner | None" = None) -> dict[str, object]:
    """What would be done: rows, images per step, passes over the data; disk, memory and hours.

    Args:
        aligner: as for `align`.
    Raises: UserError: if options do not go together, or the memory does not suffice, with the
        options that would make it fit.
    """
    from sayso.stages._forecast import forecast

    config, aligner = _checked(study, config, aligner)
    images = _planned_images(study, config, aligner)
    own, seen = len(images.samples), config.max_steps * config.batch_size
    kept = _conditions(config, aligner, len(set(images.texts)))
    n_pretraining = _n_pretraining(config, aligner)
    sizes = forecast(study, config, aligner, images, n_pretraining, kept)
    return {
        "learning_rate": config.learning_rate,
        "pretraining_weight": config.pretraining_weight,
        "samples": own,
        "images per step": config.batch_size,
        "images in all": seen,
        "passes over the samples (approx.)": round(seen / own, 1) if own else 0,
        "checkpoints": (config.max_steps - 1) // config.checkpoint_every,
        **sizes,
    }


def align(study: Study, config: AlignConfig, aligner: "Aligner | None" = None) -> Run:
    """Fine-tune `config.model` and write the tuned weights to `runs/align-<name>/weights`.

    Args:
        study: its samples of the model on "train" prompts are the data.
        config: how to train.
        aligner: the algorithm with its options; None = the one `config.aligner` names, with its
            defaults.
    Raises: UserError: if data, reward or pre-training images that the aligner needs are missing,
        if a reward, loss or gradient is not finite, or an option is out of range.
    """
    from sayso.stages._ready import scores_samples

    refuse_forecast(config.forecast_for)
    config, aligner = _checked(study, config, aligner)
    say(study, _drawn_by(config))
    name = config.name or config.aligner.removesuffix(".py").rsplit("/", 1)[-1]
    begun = study.begun("align", name)
    config = _with_labels(study, config, aligner, begun)
    inputs = begun and (begun.finished or begun.inputs)
    gathered = None if inputs else _gather(study, config, aligner)
    # before the run is opened: what a model refuses must leave no run behind
    prepare = partial(_prepare, study, config, aligner, name)
    ready = prepare(gathered, gathered=True) if gathered and not begun else None
    if gathered and ready and scores_samples(aligner):
        gathered["rewards"] = ready.rewards
    with main_process_first():
        run = study.run("align", name, config, aligner, inputs=gathered, main=is_main_process())
    with run:
        if run.finished:
            refuse_edited(run, "aligner", config.aligner)
            console.print(f"{run.name} is finished")
        else:
            refuse_changed(run, _sources(study, config, aligner), _earlier(study, config, aligner))
            frozen = run.inputs or {}
            # another process may have begun the run meanwhile, with other images or labels
            if ready is None or ready.images != frozen["images"]:
                ready = prepare(frozen, gathered=False)
            _train(study, config, aligner, run, ready)
    return run


def _checked(
    study: Study, config: AlignConfig, aligner: "Aligner | None"
) -> "tuple[AlignConfig, Aligner]":
    """The options in canonical form and with the aligner's defaults, checked; and the aligner."""
    from sayso.aligners import load_aligner
    from sayso.training.needs import check_options

    config.check()
    config = canonical_config(study, config)
    aligner = aligner or load_aligner(config.aligner)()
    config = config.for_aligner(aligner.defaults)
    check_options(config, aligner, number_of_processes())
    return config, aligner


def _with_labels(
    study: Study, config: AlignConfig, aligner: "Aligner", begun: Run | None
) -> AlignConfig:
    """`config` with the labels and raters of the run that is there, or else of the reward."""
    if begun is not None:
        known = begun.config
    elif "reward" not in config.needs(aligner.required()) or is_plugin("reward", config.reward):
        known = {}
    elif known := fitted_to(study, config.reward):
        told = (
            config.labels in ("auto", known["labels"]),
            config.raters in ("auto", known["raters"]),
        )
        verb = "uses" if all(told) else "does not use"
        console.print(
            f"align {verb} what {config.reward} was fitted to: labels {known['labels']}, "
            f"raters {known['raters']}"
        )
    labels = known.get("labels", "share") if config.labels == "auto" else config.labels
    raters = known.get("raters", "auto") if config.raters == "auto" else config.raters
    return replace(config, labels=labels, raters=raters)


def _gather(study: Study, config: AlignConfig, aligner: "Aligner") -> JsonObject:
    """What the run will learn from: samples, their texts and labels, and whose labels these are.

    `sources` identifies what else decides the result: models, reward, pre-training images,
    plug-ins.
    """
    from sayso.stages._training_data import pairs_among
    from sayso.training.needs import check_needs

    images, needs = _images(study, config, aligner), aligner.required()
    simulated = _kind(study, config) == "simulated"
    pairs = pairs_among(study, images, simulated=simulated) if "pairs" in needs else []
    drawn_by = ",".join(_drawn_by(config))
    check_needs(study, config, aligner, drawn_by, config.reward, images.labels, len(pairs))
    from sayso.data.latents import SampleLatents

    latents = SampleLatents(study, images.samples).digests() if images.samples else []
    rows = zip(images.samples, images.texts, images.labels, latents, strict=True)
    return {
        "labels": config.labels,
        "raters": _kind(study, config),
        "conditions": _conditions(config, aligner, len(set(images.texts))),
        "images": [
            {"id": s.id, "text": t, "label": None if math.isnan(label) else label, "latents": own}
            for s, t, label, own in rows
        ],
        **({"pairs": pairs} if "pairs" in needs else {}),
        **({"prompts": [p.text for p in study.prompts("train")]} if "rollouts" in needs else {}),
        "sources": _sources(study, config, aligner),
    }


def _sources(study: Study, config: AlignConfig, aligner: "Aligner") -> dict[str, str]:
    """Name → identity of all that training depends on beside images and labels."""
    from sayso.training.sources import source_of_model, source_of_reward

    found = {"seed": str(_seed(study, config)), **source_of_plugin("aligner", config.aligner)}
    found |= source_of_model(study, config.model)
    if "reward" in config.needs(aligner.required()):
        found |= source_of_reward(study, config.reward)
    if _n_pretraining(config, aligner):
        identity = open_pretraining(study).train_identity(config.pretraining_images)
        found[PRETRAINING] = identity
    return found


def _earlier(study: Study, config: AlignConfig, aligner: "Aligner") -> dict[str, str]:
    """As `_sources`, what versions before wrote down otherwise."""
    if not _n_pretraining(config, aligner):
        return {}
    return {PRETRAINING: open_pretraining(study).earlier_identity(config.pretraining_images)}


def _n_pretraining(config: AlignConfig, aligner: "Aligner") -> int:
    used = config.uses_pretraining or "pretraining" in aligner.required()
    return config.pretraining_images if used else 0


def _conditions(config: AlignConfig, aligner: "Aligner", texts: int) -> "Kept":
    """Where the conditions come from: where there are more texts than rows, no table pays."""
    rows = config.max_steps * config.batch_size
    if config.conditions == "auto" and texts + _n_pretraining(config, aligner) > rows:
        return "encode"
    return config.conditions


def _seed(study: Study, config: AlignConfig) -> int:
    return study.info.seed if config.seed is None else config.seed


def _prepare(
    study: Study,
    config: AlignConfig,
    aligner: "Aligner",
    name: str,
    inputs: JsonObject,
    *,
    gathered: bool,
) -> "Ready":
    """See `prepare`."""
    from sayso.stages._ready import Wanted, prepare
    from sayso.stages._sample_prompts import sample_prompts

    wanted = Wanted(
        f"runs/align-{name}", config.model, config.reward, config.base_precision,
        _n_pretraining(config, aligner), config.conditions, config.workers,
        config.leave_out_damaged, config.sharding, sample_prompts(study, config, inputs),
        config.bucket_step, config.pretraining_draw,
    )  # fmt: skip
    accelerator = make_accelerator(config.mixed_precision)
    return prepare(study, aligner, wanted, inputs, accelerator, gathered=gathered)


def _train(study: Study, config: AlignConfig, aligner: "Aligner", run: Run, ready: "Ready") -> None:
    from sayso.stages._ready import scores_samples
    from sayso.stages._savings import enough_to_train
    from sayso.stages._training_data import facts, work_of
    from sayso.training.loop import train
    from sayso.training.sample_grids import SampleGrids

    accelerator, policy, rewards = ready.accelerator, ready.policy, ready.rewards
    inputs = run.inputs or {}
    if scores_samples(aligner) and "rewards" not in inputs and accelerator.is_main_process:
        # as they were computed when the run was begun, however caches fare since
        run.freeze({**inputs, "rewards": rewards})
    _note_environment(study, config, aligner, run, accelerator)
    if config.lora_rank:
        policy.add_lora(config.lora_rank, _seed(study, config))
    work = work_of(
        study, config, aligner, policy, ready.rows, inputs,
        reward=config.reward, seed=_seed(study, config),
    )  # fmt: skip
    rows = config.micro_batch(accelerator.num_processes)
    grids = ready.shown and SampleGrids(ready.shown, config.sample_every, rows)
    with enough_to_train(config, policy, aligner, accelerator):
        result = train(work, aligner, config, run, accelerator, grids)
    if accelerator.is_main_process:
        identity = {"identity": weights_identity(study, run)}
        run.finish(result | facts(work) | identity)


def _note_environment(
    study: Study, config: AlignConfig, aligner: "Aligner", run: Run, accelerator: "Accelerator"
) -> None:
    from sayso.families._loading import model_folders
    from sayso.rewards import reward_folders
    from sayso.study.provenance import computed_on, loaded

    if accelerator.is_main_process:
        rewarded = "reward" in config.needs(aligner.required())
        rewards = reward_folders(study, config.reward) if rewarded else []
        folders = [*model_folders(study, config.model), *rewards]
        run.add_environment({**computed_on(accelerator), "loaded": loaded(folders)})


def _images(study: Study, config: AlignConfig, aligner: "Aligner") -> "Samples":
    """The samples to learn from; none for an aligner that draws all its images itself."""
    from sayso.stages._training_data import Samples, samples_of

    needs = aligner.required()
    if "rollouts" in needs and not needs & {"data", "pairs"}:
        if config.samples_of:
            raise UserError(
                f"aligner {config.aligner} generates the images that it learns from; omit "
                "--samples-of"
            )
        return Samples([], [], [])
    method = "share" if config.labels == "auto" else config.labels
    simulated = _kind(study, config) == "simulated"
    return samples_of(study, _drawn_by(config), method, simulated=simulated)


def _drawn_by(config: AlignConfig) -> list[str]:
    """The models whose images are learned from."""
    return models_in(config.samples_of) or [config.model]


def _planned_images(study: Study, config: AlignConfig, aligner: "Aligner") -> "Samples":
    """The samples to learn from, or the prompts alone of a study that has none yet."""
    from sayso.stages._training_data import Samples

    if study.samples():
        return _images(study, config, aligner)
    return Samples([], [prompt.text for prompt in study.prompts("train")], [])


def _kind(study: Study, config: AlignConfig) -> str:
    """Whose ratings count: people's, if any person rated and nothing else is asked for."""
    if config.raters != "auto":
        return config.raters
    return RATERS[study.feedback.kind_in_use()]
