"""Final latents by row: those that `generate` stored, and those of encoded pre-training images."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from sayso.base.errors import UserError
from sayso.base.finite import number_format, refuse_not_finite
from sayso.base.types import Sample, Size, digest
from sayso.data.pretraining_images import PretrainingSet, open_pretraining
from sayso.data.shards import OpenFiles, Shards, make_shards
from sayso.families import Policy
from sayso.study.identity import base_identity
from sayso.study.study import Study

IMAGES_A_SHARD = 256
"""Pre-training images whose latents one file holds: 8 MiB of Stable Diffusion's at 512 pixels."""


@runtime_checkable
class Latents(Protocol):
    """Scaled latents of many images, `latents[rows]` of some of them. A tensor is one, too."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Int[Tensor, " n"], /) -> Float[Tensor, "n c h w"]: ...


class SampleLatents:
    """The stored final latents of samples, in their order, read from the study's shards."""

    def __init__(self, study: Study, samples: Sequence[Sample]) -> None:
        self._study, self._samples = study, samples
        self._files = OpenFiles()

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, rows: Int[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
        return torch.stack([self._one(self._samples[i]) for i in rows.tolist()])

    def _one(self, sample: Sample) -> Float[Tensor, "c h w"]:
        path = self._study.path / sample.latents
        try:
            return self._files.tensor(path, sample.id)
        except (FileNotFoundError, SafetensorError) as error:
            raise UserError(
                f"latents {path} are missing or damaged ({error}); restore the file, or delete its "
                "lines in samples.jsonl and generate again"
            ) from None

    def digests(self) -> list[str]:
        """A digest of each row's bytes: 16 hex digits. Reads every row once, one at a time.

        Raises: UserError: if a shard is missing or damaged, a number is not finite, or the images
            differ in size.
        """
        found, shapes = [], set[tuple[int, ...]]()
        for sample in self._samples:
            latents = self._one(sample)
            shapes.add(tuple(latents.shape))
            if not latents.isfinite().all():
                raise UserError(
                    f"the latents of sample {sample.id} in {self._study.path / sample.latents} are "
                    "NaN or infinite; delete its line in samples.jsonl and generate again"
                )
            found.append(hashlib.sha256(_bytes(latents)).hexdigest()[:16])
        if len(shapes) != 1:
            raise UserError(
                f"the images have latents of {len(shapes)} sizes; generate one size only"
            )
        return found


def load_latents(study: Study, samples: Sequence[Sample]) -> Float[Tensor, "n c h w"]:
    """The stored final latents of few samples, in their order. Raises: UserError: as `digests`."""
    latents = SampleLatents(study, samples)
    latents.digests()
    return latents[torch.arange(len(samples))]


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


class PretrainingLatents:
    """Latents of encoded pre-training images, read from the shards in the study's cache."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, rows: Int[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
        return self._shards[rows]["latents"]


class Joined:
    """One after the other, in the number format of the first."""

    def __init__(self, first: Latents, second: Latents) -> None:
        self._first, self._second = first, second

    def __len__(self) -> int:
        return len(self._first) + len(self._second)

    def __getitem__(self, rows: Int[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
        n = len(self._first)
        early = rows < n
        if early.all():
            return self._first[rows]
        later = self._second[rows[~early] - n]
        if not early.any():
            return later.to(self._first[torch.tensor([0])].dtype)
        first = self._first[rows[early]]
        found = first.new_empty((len(rows), *first.shape[1:]))
        found[early], found[~early] = first, later.to(first.dtype)
        return found


def encoded_pretraining(
    study: Study,
    policy: Policy,
    n: int,
    precision: AbstractContextManager[Any] | None = None,
    size: Size | None = None,
) -> tuple[Latents, list[str]]:
    """Latents and captions of the first `n` pre-training images; encoded once, kept in the cache.

    Images are read, decoded and encoded in portions, and each shard is kept by the contents of its
    images, the base model's, and the number format.

    Args:
        study: names the images and the size.
        policy: its autoencoder encodes them.
        n: how many, at most.
        precision: autocast context to encode in; None = fp32.
        size: what they are brought to; None = the size of the study's images.
    Raises: UserError: if the study has no usable pre-training images, or their latents are not
        finite.
    """
    images = open_pretraining(study, size)
    captions = images.train_captions(n)
    with precision or nullcontext():
        computed = [number_format(policy.device), policy.device.type, base_identity(study), "fp16"]
        starts = range(0, len(captions), IMAGES_A_SHARD)
        ends = [min(start + IMAGES_A_SHARD, len(captions)) for start in starts]
        keys = [
            digest([images.images_identity(*ends), *computed])
            for ends in zip(starts, ends, strict=True)
        ]
        shards = make_shards(
            [study.cache / f"pretraining/{key}.safetensors" for key in keys],
            IMAGES_A_SHARD,
            len(captions),
            lambda start, stop: {"latents": _encode(policy, images, start, stop)},
            "encoding pre-training images",
        )
    return PretrainingLatents(shards), captions


def _encode(
    policy: Policy, images: PretrainingSet, start: int, stop: int
) -> Float[Tensor, "n c h w"]:
    """Latents of the images from `start` up to `stop` in fp16, as those of samples; all finite."""
    parts = []
    for first, pictures in _portions(policy, images, start, stop):
        pixels = np.stack([np.asarray(picture) for picture in pictures])
        batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
        latents = policy.encode_images(batch)
        names = [f"pre-training image {first + i + 1}" for i in range(len(latents))]
        refuse_not_finite(latents, names, f"the VAE encoder of {policy.name}")
        refuse_not_finite(latents.half(), names, f"keeping in fp16 the latents of {policy.name}")
        parts.append(latents.cpu())
    return torch.cat(parts).half()


def _portions(
    policy: Policy, images: PretrainingSet, start: int, stop: int
) -> Iterator[tuple[int, list[Image.Image]]]:
    """The number of a portion's first image, and its images, as many as fit the memory."""
    pictures = images.train_images(start, stop)
    while start < stop:
        first = next(pictures)
        more = policy.portion(Size(*first.size)) - 1
        portion = [first, *(next(pictures) for _ in range(min(more, stop - start - 1)))]
        yield start, portion
        start += len(portion)
