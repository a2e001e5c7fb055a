"""What `align` trains on, opened: latents and conditions are read later, row by row."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from sayso.base.errors import UserError
from sayso.base.progress import console
from sayso.base.types import Sample
from sayso.data.conditions import Conditions, Kept, open_conditions
from sayso.data.latents import SampleLatents, encoded_pretraining
from sayso.data.rows import TrainingRows, make_rows
from sayso.families import Policy
from sayso.study.identity import base_identity
from sayso.study.study import Study

CAPTIONS_AT_ONCE = 1024


class Samples(NamedTuple):
    """The model's images for "train" prompts, their texts, and what the votes on them come to."""

    samples: list[Sample]
    texts: list[str]
    labels: list[float]


def open_rows(
    study: Study,
    policy: Policy,
    images: Samples,
    rewards: Sequence[float],
    *,
    pretraining_images: int,
    conditions: Kept,
    precision: AbstractContextManager[Any],
) -> TrainingRows:
    """The table of training rows.

    Args:
        images: the samples, whose latents `generate` stored.
        rewards: of each; NaN if there is none.
        pretraining_images: how many, at most; 0 = none.
        conditions: where those come from.
        precision: autocast context that pre-training images are encoded in.
    Raises: UserError: if a prompt is too long, or pre-training images cannot be used.
    """
    policy.check_prompts(list(dict.fromkeys(images.texts)))
    more = None
    if pretraining_images:
        more = encoded_pretraining(study, policy, pretraining_images, precision)
        _say_cut(policy, more[1])

    def opened(policy: Policy, texts: Sequence[str]) -> Conditions:
        folder, identity = study.cache / "conditions", base_identity(study)
        return open_conditions(policy, texts, folder, identity, conditions)

    latents = SampleLatents(study, images.samples)
    return make_rows(policy, (latents, images.texts), images.labels, rewards, more, opened)


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
            f"{cut} of {len(captions)} captions of pre-training images are longer than the model "
            "reads, and are cut"
        )
