"""What aligners learn from: latents, texts, marks, rewards, all computed before the first step."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sayso.base import files
from sayso.base.errors import UserError
from sayso.base.finite import number_format, refuse_not_finite
from sayso.base.types import Sample, digest
from sayso.data.pretraining_images import open_pretraining
from sayso.families import Cond, Policy, take
from sayso.study.identity import base_identity
from sayso.study.study import Study

TEXTS_AT_ONCE = 64
EMPTY = 0
"""Row of `TrainingRows.conditions` that holds the empty prompt."""


@dataclass(frozen=True)
class TrainingRows:
    """One table: first the model's own images, then pre-training images.

    `latents` are final, scaled latents as stored. `text` is the row of `conditions` that belongs
    to the image. `label` is what the people's marks come to, in [0, 1], NaN where nobody marked
    the image. `reward` is the learned reward, NaN where there is none. Both are NaN for
    pre-training images, so that a wrong use shows at once.
    """

    latents: Tensor
    text: Tensor
    label: Tensor
    reward: Tensor
    conditions: Cond
    n_own: int

    @property
    def own(self) -> Int[Tensor, " n"]:
        """Indices of the model's own images."""
        return torch.arange(self.n_own)

    @property
    def pretraining(self) -> Int[Tensor, " n"]:
        """Indices of the pre-training images."""
        return torch.arange(self.n_own, len(self.text))

    def cond(self, text_rows: Int[Tensor, " b"]) -> Cond:
        """Conditions of the texts with these numbers; see `text` and `EMPTY`."""
        return take(self.conditions, text_rows)


def make_rows(
    policy: Policy,
    own: tuple[Tensor, Sequence[str]],
    marks: Sequence[float],
    rewards: Sequence[float],
    pretraining: tuple[Tensor, Sequence[str]] | None = None,
) -> TrainingRows:
    """Join own images and pre-training images (each latents and texts) to one table.

    Every distinct text is encoded once, and the empty prompt.
    """
    latents, texts = own
    more, captions = pretraining or (latents[:0], [])
    everything = [*texts, *captions]
    place = {text: i for i, text in enumerate(dict.fromkeys(["", *everything]))}
    missing = [float("nan")] * len(captions)
    return TrainingRows(
        latents=torch.cat([latents, more.to(latents.dtype)]),
        text=torch.tensor([place[text] for text in everything], dtype=torch.long),
        label=torch.tensor([*marks, *missing]),
        reward=torch.tensor([*rewards, *missing]),
        conditions=encode_texts(policy, list(place)),
        n_own=len(texts),
    )


def encode_texts(policy: Policy, texts: Sequence[str]) -> Cond:
    """Conditions of many texts, on the CPU."""
    parts = []
    for i in range(0, len(texts), TEXTS_AT_ONCE):
        part = texts[i : i + TEXTS_AT_ONCE]
        parts.append(policy.encode_prompts(part))
        for value in parts[-1].values():
            names = [f"prompt {text!r}" for text in part]
            refuse_not_finite(value, names, f"the text encoder of {policy.name}")
    return {key: torch.cat([part[key].cpu() for part in parts]) for key in parts[0]}


def load_latents(study: Study, samples: Sequence[Sample]) -> Float[Tensor, "n c h w"]:
    """The stored final latents of the samples, in their order.

    Raises: UserError: if a shard is missing or damaged, a number is not finite, or the images
        differ in size.
    """
    found: dict[str, Tensor] = {}
    for shard in dict.fromkeys(sample.latents for sample in samples):
        found |= _read_shard(study, shard, [s.id for s in samples if s.latents == shard])
    shapes = {tuple(found[sample.id].shape) for sample in samples}
    if len(shapes) != 1:
        raise UserError(f"the images have latents of {len(shapes)} sizes; generate one size only")
    for sample in samples:
        if not found[sample.id].isfinite().all():
            raise UserError(
                f"the latents of sample {sample.id} in {study.path / sample.latents} are NaN or "
                "infinite; delete its line in samples.jsonl and generate again"
            )
    return torch.stack([found[sample.id] for sample in samples])


def latents_digests(latents: Tensor) -> list[str]:
    """The first 16 hex digits of the SHA-256 of each row's bytes, on the CPU; of [n, ...], n."""
    rows = latents.contiguous().view(torch.uint8).numpy()
    return [hashlib.sha256(row).hexdigest()[:16] for row in rows]


def _read_shard(study: Study, shard: str, ids: Iterable[str]) -> dict[str, Tensor]:
    try:
        with safe_open(study.path / shard, framework="pt") as tensors:
            return {sample_id: tensors.get_tensor(sample_id) for sample_id in ids}
    except (FileNotFoundError, SafetensorError) as error:
        raise UserError(
            f"latents {study.path / shard} are missing or damaged ({error}); restore the file, or "
            "delete its lines in samples.jsonl and generate again"
        ) from None


def pretraining_rows(
    study: Study, policy: Policy, n: int, precision: AbstractContextManager[Any] | None = None
) -> tuple[Float[Tensor, "n c h w"], list[str]]:
    """Latents and captions of the first `n` pre-training images; encoded once, kept in the cache.

    They are kept by the contents of images and captions, the base model's, and the number format.

    Args:
        study: names the images and the size.
        policy: its autoencoder encodes them.
        n: how many.
        precision: autocast context to encode in; None = fp32.
    Raises: UserError: if the study has no usable pre-training images, or their latents are not
        finite.
    """
    natural = open_pretraining(study)
    with precision or nullcontext():
        computed = [number_format(policy.device), policy.device.type, base_identity(study)]
        key = digest([natural.train_identity(n), *computed])
        path = study.cache / f"pretraining-{key}.safetensors"
        kept = _read_kept(path)
        if kept is None:
            captions, images = natural.train(n)
            kept = _encode_images(policy, images), captions
            note = {"captions": json.dumps(captions)}
            files.write_bytes(path, save({"latents": kept[0]}, note))
    return kept


def _read_kept(path: Path) -> tuple[Tensor, list[str]] | None:
    """Latents and captions of the cache; None if there are none, or none that can be used."""
    try:
        with safe_open(path, framework="pt") as kept:
            latents, captions = kept.get_tensor("latents"), kept.metadata()["captions"]
    except (FileNotFoundError, SafetensorError):
        return None
    return (latents, json.loads(captions)) if latents.isfinite().all() else None


def _encode_images(policy: Policy, images: Sequence[Any]) -> Float[Tensor, "n c h w"]:
    """Latents of pictures of one size, encoded in portions that fit the memory; all finite."""
    size, parts = policy.portion(images[0].width), []
    for start in range(0, len(images), size):
        pixels = np.stack([np.asarray(image) for image in images[start : start + size]])
        batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
        latents = policy.encode_images(batch)
        names = [f"pre-training image {start + i + 1}" for i in range(len(latents))]
        refuse_not_finite(latents, names, f"the VAE encoder of {policy.name}")
        parts.append(latents.cpu().contiguous())
    return torch.cat(parts)
