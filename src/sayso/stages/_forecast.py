"""What a run of `align` will take of disk, memory and time, known before it is begun."""

from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

import torch
from rich.filesize import decimal

from sayso.aligners import Aligner
from sayso.base.cards import Card
from sayso.base.devices import make_accelerator
from sayso.base.errors import UserError
from sayso.base.types import Size
from sayso.data.conditions import LARGEST_TABLE_BYTES, Kept
from sayso.data.pretraining_images import bucket_sizes, open_pretraining
from sayso.families._loading import load_policy
from sayso.families._precision import KEPT
from sayso.stages._blueprint import (
    LIMIT,
    SHARE,
    arithmetic,
    blueprint,
    device_for,
    no_room,
    unknown,
)
from sayso.stages._footprint import Blueprint, Footprint, Way, shapes_of, training
from sayso.stages._probe import random_rows, rate
from sayso.stages._reward_footprint import RewardFootprint, reward_footprint
from sayso.stages._savings import fitting
from sayso.stages._training_data import Samples
from sayso.study.identity import model_folder
from sayso.study.model_files import LATENT_BYTES
from sayso.study.study import Study
from sayso.training.checkpoint import KEPT as KEPT_CHECKPOINTS
from sayso.training.spread import is_sharded

AlignConfig = Any
"""The options of `align`, which itself asks here."""


@dataclass(frozen=True)
class Forecast:
    """A training that is forecast.

    Attributes:
        model: see `blueprint`.
        card: the device.
        cuda: whether it is a GPU.
        captions: of pre-training images.
        reward: the one that is asked; None = none is.
        known: footprints by options, for each takes seconds.
    """

    study: Study
    config: AlignConfig
    aligner: Aligner
    images: Samples
    model: Blueprint
    card: Card
    cuda: bool
    captions: int
    kept: Kept
    reward: RewardFootprint | None
    known: dict[AlignConfig, Footprint] = field(default_factory=dict)

    @property
    def size(self) -> Size:
        samples = self.images.samples
        return (samples[0].sampler if samples else self.study.info.sampler).image_size

    @property
    def longest(self) -> str:
        return max(["", *self.images.texts], key=len)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the conditions of the longest text."""
        return shapes_of(self.model(), self.longest)

    def table(self) -> tuple[int, int]:
        """Texts that there are conditions of, and bytes of all."""
        row = sum(map(prod, self.shapes.values())) * KEPT[self.config.base_precision].itemsize
        texts = len({"", *self.images.texts}) + self.captions
        return texts, texts * row

    def way(self, config: AlignConfig) -> Way:
        """Whether a network is sharded is decided here as it is by `training/spread.py`."""
        size = self.table()[1]
        table = self.kept == "table" or (self.kept == "auto" and size <= LARGEST_TABLE_BYTES)
        policy = self.model()
        if config.lora_rank:
            policy.add_lora(config.lora_rank, 0)
        reference = config.uses_reference or "reference" in self.aligner.required()
        sharded = is_sharded(
            config, policy, self.card.number, self.card.memory, reference=reference
        )  # fmt: skip
        return Way(
            config, config.lora_rank, config.base_precision,
            arithmetic(config.mixed_precision, cuda=self.cuda), self.cuda, self.card.number,
            encoding=not table, sharded=sharded,
        )  # fmt: skip

    def footprint(self, config: AlignConfig) -> Footprint:
        if config not in self.known:
            way = self.way(config)
            self.known[config] = training(
                self.model, way, self.aligner, self.size, self.shapes, self.reward
            )
        return self.known[config]


def forecast(
    study: Study,
    config: AlignConfig,
    aligner: Aligner,
    images: Samples,
    pretraining_images: int,
    kept: Kept,
) -> dict[str, str]:
    """Sizes on the disk and in memory, each with what it is of, and how long it takes.

    Args:
        config: what is trained, and how.
        aligner: the algorithm.
        images: the samples.
        pretraining_images: how many are asked for, at most.
        kept: where conditions come from.
    Raises: UserError: if it does not fit the device, with the options that would.
    """
    found, n = _pretraining(study, pretraining_images)
    with blueprint(study) as model:
        if model is None:
            return found | {"disk and memory": unknown(study)}
        card, cuda = device_for(config.forecast_for)
        rewarded = "reward" in config.needs(aligner.required())
        reward = reward_footprint(study, config.reward) if rewarded else None
        case = Forecast(study, config, aligner, images, model, card, cuda, n, kept, reward)
        if n and config.bucket_step:
            bucket_sizes(case.size, config.bucket_step)
        needs = _fitted(case)
        return found | _disk(case, needs) | _memory(case, needs) | _time(case)


def _fitted(case: Forecast) -> Footprint:
    """What is needed. Raises: UserError: if it does not fit, with the options that would."""
    memory, needs = round(LIMIT * case.card.memory), case.footprint(case.config)
    if needs.total <= memory:
        return needs
    saved = fitting(
        case.config, lambda config: case.footprint(config).total, memory,
        cuda=case.cuda, several=case.card.number > 1,
    )  # fmt: skip
    parts = ", ".join(f"{name} {decimal(size)}" for name, size in needs.parts.items())
    instead = (
        f"add {saved.flags}, which needs {decimal(saved.needed)}"
        if saved
        else "no option makes it fit; train on a device with more memory"
    )
    what = f"training needs {decimal(needs.total)} of memory ({parts})"
    raise UserError(no_room(what, case.card, instead))


def _pretraining(study: Study, asked: int) -> tuple[dict[str, str], int]:
    """What is said of the pre-training images, and how many there are of those asked for."""
    if not asked:
        return {}, 0
    if not study.info.pretraining:
        return {"pre-training images": f"{asked:,}; the study has none yet"}, asked
    images = open_pretraining(study)
    n, left_out = images.train_count(asked), images.about()
    said = f"{n:,} of {study.info.pretraining}"
    return {"pre-training images": f"{said}; left out: {left_out}" if left_out else said}, n


def _disk(case: Forecast, needs: Footprint) -> dict[str, str]:
    image = prod(case.model().latent_shape(case.size)) * LATENT_BYTES
    texts, size = case.table()
    if case.way(case.config).encoding:
        said = f"0, encoded in every step; a table of {texts} texts would take {decimal(size)}"
    else:
        said = f"{decimal(size)} at most, a table of {texts} texts"
    n = case.captions
    return {
        "disk, latents of the samples": decimal(len(case.images.samples) * image),
        "disk, latents of pre-training images": f"{decimal(n * image)} of {n} images",
        "disk, conditions": said,
        "disk, checkpoints at most": decimal((KEPT_CHECKPOINTS + 1) * needs.checkpoint),
    }


def _memory(case: Forecast, needs: Footprint) -> dict[str, str]:
    by = f"; sharded over {case.card.number} (FSDP2)" if case.way(case.config).sharded else ""
    found = {f"memory, {name}": decimal(size) for name, size in needs.parts.items()}
    if case.reward:
        found |= case.reward.said(needs.parts.get(case.reward.part, 0), "before training")
    if case.config.ema_on_cpu and case.config.ema_decay:
        found["memory, EMA"] = f"{decimal(needs.average)} of the machine's"
    return found | {
        "memory, preparing": f"{decimal(needs.before)}, before the network is loaded",
        "memory, in all": f"{decimal(needs.total)} of {decimal(case.card.memory)} "
        f"({case.card.name}){by}",
        "memory, writing a checkpoint": f"{decimal(needs.checkpoint)} of the machine's",
    }


def _time(case: Forecast) -> dict[str, str]:
    """Images per second: for a named card from its operations a second, here from a probe."""
    config, card = case.config, case.card
    images, flops = config.max_steps * config.batch_size, case.footprint(config).flops
    work = {"operations per image": f"{flops / 1e12:.2f} TFLOP"}
    if card.flops:
        speed = SHARE * card.flops * card.number / flops
        how = f"at {SHARE:.0%} of {card.flops / 1e12:.0f} TFLOP/s a card"
    elif config.forecast_for:
        return work | {"hours": "not known for memory alone; name a card in --forecast-for"}
    elif model_folder(case.study.info.base_model, "pipeline") is None:
        return work | {"hours": "not measured, for the weights are not on this machine"}
    else:
        speed, how = _probe(case) * card.number, "measured for two seconds"
    hours = images / speed / 3600
    return work | {"images per second": f"{speed:.3g}, {how}", "hours": f"{hours:.2g}"}


def _probe(case: Forecast) -> float:
    """Images per second of this device, from steps on random numbers."""
    config = case.config
    device = make_accelerator(config.mixed_precision).device
    policy = load_policy(case.study, config.model, device, config.base_precision, ["network"])
    network: Any = policy.network
    if config.lora_rank:
        policy.add_lora(config.lora_rank, 0)
    if config.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    network.train()
    rows = config.micro_batch(case.card.number)
    noisy, t, cond = random_rows(policy, rows, policy.latent_shape(case.size), case.shapes)
    autocast = arithmetic(config.mixed_precision, cuda=device.type == "cuda")

    def step() -> None:
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            error = (policy.predict(noisy, t, cond).float() - noisy).square().mean()
        error.backward()

    return rate(step, rows, device)
