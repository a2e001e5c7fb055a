"""What a run of `align` starts from: rows to learn from first, and then the model that learns."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from accelerate import Accelerator

from sayso.aligners import Aligner
from sayso.base.devices import BasePrecision, agreed
from sayso.base.files import JsonObject
from sayso.data.conditions import EncodedConditions, Kept
from sayso.data.rows import TrainingRows
from sayso.families import PARTS, Policy
from sayso.families._loading import load_policy
from sayso.stages._scoring import rewards_of
from sayso.stages._training_data import Samples, drawn_with, open_rows, refuse_changed_latents
from sayso.study.inputs import samples_by_id
from sayso.study.study import Study
from sayso.training.sample_grids import SamplePrompts

ENCODERS = ("text", "vae")


class Wanted(NamedTuple):
    """The options of `align` that decide what is loaded, and the run's name."""

    run: str
    model: str
    reward: str
    precision: BasePrecision
    pretraining_images: int
    conditions: Kept
    workers: int | None
    leave_out_damaged: bool
    sharding: str
    shown: Sequence[tuple[str, int]] = ()
    """Prompts of sample grids, each with its seed."""
    bucket_step: int = 0
    pretraining_draw: str = "uniform"


class Ready(NamedTuple):
    """What training starts from: the loaded model and the rows made of `images` of the inputs."""

    accelerator: Accelerator
    policy: Policy
    rows: TrainingRows
    rewards: list[float]
    images: list[JsonObject]
    shown: SamplePrompts | None


def prepare(
    study: Study,
    aligner: Aligner,
    wanted: Wanted,
    inputs: JsonObject,
    accelerator: Accelerator,
    *,
    gathered: bool,
) -> Ready:
    """Make the rows of the inputs, with the rewards that they have if any, and load the model.

    A reward, text encoders and autoencoder are on the device only as long as they have work: of a
    model that draws nothing while it is trained the network comes after they are gone.

    Args:
        gathered: whether the inputs were gathered just now; if not, latents may have changed since.
    """
    rows = inputs["images"]
    samples = samples_by_id(study, [row["id"] for row in rows], wanted.run)
    images = Samples(samples, [row["text"] for row in rows], [_label(row) for row in rows])
    rewards = agreed(inputs.get("rewards"))
    if rewards is None:
        rewards = _rewards(study, wanted, aligner, images, accelerator)
    drawing = bool(aligner.required() & {"rollouts", "gradient"})
    model = (study, wanted.model, accelerator.device, wanted.precision)
    network_on = _network_on(wanted, accelerator)
    with accelerator.local_main_process_first():
        if not gathered:
            refuse_changed_latents(study, wanted.run, rows, samples)
        encoder = load_policy(*model, PARTS if drawing else ENCODERS, network_on)
        encoder.check_prompts(inputs.get("prompts", []))
        table = open_rows(
            study,
            encoder,
            images,
            rewards,
            pretraining_images=wanted.pretraining_images,
            rewarded_by=wanted.reward if wanted.pretraining_draw == "reward" else "",
            bucket_step=wanted.bucket_step,
            conditions=inputs.get("conditions", wanted.conditions),
            precision=accelerator.autocast(),
            workers=wanted.workers,
            leave_out_damaged=wanted.leave_out_damaged,
        )
        shown = _shown(study, wanted, encoder, rows, accelerator)
    if drawing:
        return Ready(accelerator, encoder, table, rewards, rows, shown)
    _make_room(encoder, table, shown)
    policy = load_policy(*model, ["network"], network_on)
    return Ready(accelerator, policy, table, rewards, rows, shown)


def _make_room(encoder: Policy, table: TrainingRows, shown: SamplePrompts | None) -> None:
    """Let go what lives on neither in sample grids nor in conditions encoded in every step."""
    if shown and shown.decoder:
        encoder.move("vae", torch.device("cpu"))
    else:
        encoder.release("vae")
    if not isinstance(table.conditions, EncodedConditions):
        encoder.release("text")


def _shown(
    study: Study,
    wanted: Wanted,
    encoder: Policy,
    rows: Sequence[JsonObject],
    accelerator: Accelerator,
) -> SamplePrompts | None:
    if not wanted.shown:
        return None
    sampler = drawn_with(study, [row["id"] for row in rows])
    return SamplePrompts.encoded(encoder, wanted.shown, sampler, accelerator)


def _network_on(wanted: Wanted, accelerator: Accelerator) -> torch.device:
    """Where the network is loaded: in main memory if it may be sharded, for it may not fit."""
    whole = accelerator.num_processes == 1 or wanted.sharding == "none"
    return accelerator.device if whole else torch.device("cpu")


def scores_samples(aligner: Aligner) -> bool:
    """Whether the samples' reward is needed before training, and not that of images to come."""
    needs = aligner.required()
    return "reward" in needs and not needs & {"rollouts", "gradient"}


def _label(row: JsonObject) -> float:
    # runs that older versions began call it "mark"
    label = row["label"] if "label" in row else row["mark"]
    return math.nan if label is None else label


def _rewards(
    study: Study, wanted: Wanted, aligner: Aligner, images: Samples, accelerator: Accelerator
) -> list[float]:  # fmt: skip
    """The reward of every sample; NaN if the aligner needs none."""
    samples, texts, _ = images
    if not scores_samples(aligner):
        return [math.nan] * len(samples)
    return rewards_of(study, wanted.reward, samples, texts, accelerator.device)
