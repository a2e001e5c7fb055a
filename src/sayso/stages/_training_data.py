"""What `align` trains on, opened: latents and conditions are read later, row by row."""

import math
import os
from collections.abc import Container, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch

from sayso.aligners import Aligner, Work
from sayso.base.errors import UserError, quoted
from sayso.base.files import JsonObject
from sayso.base.progress import console
from sayso.base.types import Sample, Sampler, Size
from sayso.data.conditions import Conditions, Kept, open_conditions
from sayso.data.latents import Latents, SampleLatents
from sayso.data.pairs import Pair, pair_rows, pairs_of
from sayso.data.pretraining_latents import encoded_pretraining, possible_sizes
from sayso.data.rows import TrainingRows, make_rows
from sayso.families import Policy
from sayso.rewards import load_reward
from sayso.study.identity import base_identity
from sayso.study.inputs import refuse_other_latents
from sayso.study.study import Study
from sayso.training.options import TrainOptions
from sayso.training.pretraining_rewards import pretraining_rewards
from sayso.votes.labels import LabelMethod

CAPTIONS_AT_ONCE = 1024


class Samples(NamedTuple):
    """Images for "train" prompts, their texts, and what the votes on them come to."""

    samples: list[Sample]
    texts: list[str]
    labels: list[float]

    def size(self, study: Study) -> Size:
        """Of the first image, which may be another than the study's; of none, the study's."""
        sampler = self.samples[0].sampler if self.samples else study.info.sampler
        return sampler.image_size


def samples_of(
    study: Study, models: Sequence[str], method: LabelMethod, *, simulated: bool
) -> Samples:
    """The images of the models for "train" prompts; a label is NaN where nobody rated the image.

    Args:
        models: their canonical names; the images are in this order.
        method: what several raters' votes of an image come to.
        simulated: whose votes count.
    Raises: UserError: if a model has none, or they have no latents.
    """
    texts = {prompt.id: prompt.text for prompt in study.prompts("train")}
    samples = [s for model in models for s in _samples_of(study, model, texts)]
    labels = labels_of(study, samples, method, simulated=simulated)
    return Samples(samples, [texts[s.prompt_id] for s in samples], labels)


def _samples_of(study: Study, model: str, prompts: Container[str]) -> list[Sample]:
    samples = [s for s in study.samples(model) if s.prompt_id in prompts]
    if not samples:
        raise UserError(
            f"there are no images of {model!r} for train prompts; make some with: "
            f"sayso generate {quoted(study.path)} --model {quoted(model)}"
        )
    imported = sum(not sample.latents for sample in samples)
    if imported:
        raise UserError(
            f"{imported} images of {model!r} were imported and have no stored latents, which "
            "align trains on; they can only be used to train a reward: choose a --model whose "
            "images were made here by sayso generate"
        )
    return samples


def labels_of(
    study: Study, samples: Sequence[Sample], method: LabelMethod, *, simulated: bool
) -> list[float]:
    """The label of each sample; NaN where nobody rated it."""
    ids = {s.id for s in samples}
    known = study.feedback.soft_labels(simulated, method=method, among=ids)
    return [known.get(s.id, float("nan")) for s in samples]


def open_rows(
    study: Study,
    policy: Policy,
    images: Samples,
    rewards: Sequence[float],
    *,
    pretraining_images: int,
    rewarded_by: str = "",
    bucket_step: int = 0,
    conditions: Kept,
    precision: AbstractContextManager[Any],
    workers: int | None = None,
    leave_out_damaged: bool = False,
) -> TrainingRows:
    """The table of training rows.

    Args:
        images: the samples, whose latents `generate` stored.
        rewards: of each; NaN if there is none.
        pretraining_images: how many, at most; 0 = none.
        rewarded_by: reward that they are drawn in proportion to; "" = all equally often.
        bucket_step: see `open_pretraining`.
        conditions: where those come from.
        precision: autocast context that pre-training images are encoded in.
        workers: processes that decode those; None = as many as pay.
        leave_out_damaged: whether to go on without those that cannot be read, or whose caption the
            reward cannot read.
    Raises: UserError: if a prompt is too long, or pre-training images cannot be used.
    """
    policy.check_prompts(list(dict.fromkeys(images.texts)))
    more, share = None, None
    if pretraining_images:
        decoders, size = _decoders(policy.device, workers), images.size(study)
        if rewarded_by:
            # before encoding, which takes long: the reward may be one that cannot be used
            possible_sizes(policy, size, bucket_step)
            share = pretraining_rewards(
                study, rewarded_by, pretraining_images, size, policy.device, decoders,
                leave_out_damaged=leave_out_damaged,
            )  # fmt: skip
        more = encoded_pretraining(
            study, policy, pretraining_images, precision, size,
            bucket_step=bucket_step, workers=decoders, leave_out_damaged=leave_out_damaged,
        )  # fmt: skip
        _say_cut(policy, more[1])
        share = None if share is None else share[more[0].rows]
    opened = partial(_open_conditions, study, conditions)
    own = _latents(study, policy, images), images.texts
    rows = make_rows(policy, own, images.labels, rewards, more, opened)
    return replace(rows, pretraining_share=share)


def _open_conditions(study: Study, kept: Kept, policy: Policy, texts: Sequence[str]) -> Conditions:
    return open_conditions(policy, texts, study.cache / "conditions", base_identity(study), kept)


def _latents(study: Study, policy: Policy, images: Samples) -> Latents:
    if images.samples:
        return SampleLatents(study, images.samples)
    return torch.zeros(0, *policy.latent_shape(images.size(study)))


def _decoders(device: torch.device, wanted: int | None) -> int:
    """How many processes decode pictures: as many as wanted, or as pay.

    On a CPU the encoder is slower by far and needs all processors.
    """
    if wanted is not None:
        return wanted
    if device.type == "cpu":
        return 0
    # those that this process may use; not every system says which
    usable = getattr(os, "sched_getaffinity", None)
    return max(1, (len(usable(0)) if usable else os.cpu_count() or 1) - 1)


def refuse_changed_latents(
    study: Study, run: str, rows: Sequence[JsonObject], samples: Sequence[Sample]
) -> None:
    """Raises: UserError: if a sample's latents are not those that the run began with.

    Args:
        run: its name.
        rows: `images` of its inputs.
        samples: the sample of each row.
    """
    # an aligner that draws its images itself has none
    if samples:
        refuse_other_latents(study, run, rows, samples, SampleLatents(study, samples).digests())


def _say_cut(policy: Policy, captions: list[str]) -> None:
    """Say how many captions of pre-training images are longer than the model reads."""
    cut = 0
    for i in range(0, len(captions), CAPTIONS_AT_ONCE):
        part = captions[i : i + CAPTIONS_AT_ONCE]
        try:
            policy.check_prompts(part)
        except UserError:
            cut += sum(map(policy.is_cut, part))
    if cut:
        console.print(
            f"{cut} of {len(captions)} captions of pre-training images are too long for the model "
            "and are truncated"
        )


def pairs_among(study: Study, images: Samples, *, simulated: bool) -> list[Pair]:
    """What the raters prefer among the images; see `pairs_of`."""
    labels = {s.id: x for s, x in zip(images.samples, images.labels, strict=True)}
    known = {name: label for name, label in labels.items() if not math.isnan(label)}
    return pairs_of(study, images.samples, known, simulated)


def work_of(
    study: Study, options: TrainOptions, aligner: Aligner, policy: Policy, rows: TrainingRows,
    inputs: JsonObject, *, reward: str, seed: int,
) -> Work:  # fmt: skip
    """What the aligner works with: of pairs, prompts and reward only what it needs.

    Args:
        inputs: what the run was begun with.
        reward: its name.
        seed: of the training.
    """
    if options.timestep_sampling != "auto":
        policy.timestep_sampling = options.timestep_sampling
    needs = aligner.required()
    ids, texts = ([row[key] for row in inputs["images"]] for key in ("id", "text"))
    pairs = [Pair(*row) for row in inputs.get("pairs", [])]
    in_loop = "reward" in needs and needs & {"rollouts", "gradient"}
    return Work(
        policy,
        rows,
        options.batch_size,
        options.max_steps,
        seed,
        pairs=pair_rows(pairs, ids, texts) if "pairs" in needs else None,
        prompts=tuple(inputs.get("prompts", ())),
        reward=load_reward(study, reward, policy.device) if in_loop else None,
        sampler=drawn_with(study, ids),
    )


def drawn_with(study: Study, ids: Sequence[str]) -> Sampler:
    """The sampler that the images were drawn with; of several, or none, the study's.

    What a network is told of it, and the times of drawing, are those of the images in training.
    """
    wanted = set(ids)
    drawn = {sample.sampler for sample in study.samples() if sample.id in wanted}
    if len(drawn) == 1:
        return drawn.pop()
    sizes = {sampler.image_size for sampler in drawn} or {study.info.sampler.image_size}
    return replace(study.info.sampler, image_size=sizes.pop())


def facts(work: Work) -> dict[str, int]:
    """What the training had to do with, for result.json."""
    rows = work.data
    label = rows.label[: rows.n_own]
    pairs = {} if work.pairs is None else {"pairs": len(work.pairs)}
    return {
        "samples": rows.n_own,
        "rated_images": int(label.isfinite().sum()),
        "good_images": int((label > 0.5).sum()),
        "pretraining_images": len(rows.pretraining),
        **pairs,
        "trainable_weights": sum(p.numel() for p in work.policy.trainable().values()),
    }
