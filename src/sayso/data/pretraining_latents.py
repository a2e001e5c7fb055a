"""Latents of pre-training images: encoded once, and read by row from the study's cache."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from sayso.base import files
from sayso.base.errors import UserError
from sayso.base.finite import number_format, refuse_not_finite
from sayso.base.progress import console
from sayso.base.types import Size, digest
from sayso.data.prefetch import prefetched
from sayso.data.pretraining_images import (
    Damaged,
    PretrainingSet,
    Ranges,
    bucket_sizes,
    open_pretraining,
)
from sayso.data.shards import Shards, make_shards, shard_ranges
from sayso.families import Policy
from sayso.study.identity import base_identity
from sayso.study.study import Study

IMAGES_A_SHARD = 256
"""Images whose latents one file holds: 8 MiB of Stable Diffusion's at 512 pixels."""
DAMAGED = "damaged"
"""Tensor of the shards with damaged images: which rows those are; their latents are 0."""
BUCKET, PLACE = "bucket", "place"
"""Tensors of shards with several sizes: the number of each image's, and which it is of its size."""
NAMED = 3
"""Damaged images that a message names."""


class PretrainingLatents:
    """Latents of encoded pre-training images, read from the shards in the study's cache.

    `rows` are those of the shards that are taken, in order; `bucket` is the number in `sizes` of
    each one's size. Rows that are read at once are of one bucket.
    """

    def __init__(self, shards: Shards, rows: Int[Tensor, " n"], sizes: Sequence[Size]) -> None:
        self._shards, self.rows, self.sizes = shards, rows, sizes
        self.bucket = torch.zeros(len(rows), dtype=torch.long)
        if len(sizes) > 1:
            self.bucket = shards.read(BUCKET, rows).long()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Int[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
        bucket, chosen = self.bucket[rows], self.rows[rows]
        if len(self.sizes) == 1 or not len(rows):
            return self._shards.read("latents", chosen)
        (number,) = bucket.unique().tolist()
        place = self._shards.read(PLACE, chosen).long()
        return self._shards.read_at(_of_bucket(number), chosen, place)


def _of_bucket(number: int) -> str:
    return f"latents.{number}"


def encoded_pretraining(
    study: Study,
    policy: Policy,
    n: int,
    precision: AbstractContextManager[Any] | None = None,
    size: Size | None = None,
    *,
    bucket_step: int = 0,
    workers: int = 0,
    leave_out_damaged: bool = False,
) -> tuple[PretrainingLatents, list[str]]:
    """Latents and captions of the first `n` pre-training images; encoded once, kept in the cache.

    Images are read, decoded and encoded in portions, and each shard is kept by the contents of its
    images, the base model's, and the number formats.

    Args:
        study: names the images and the size.
        policy: its autoencoder encodes them.
        n: how many, at most.
        precision: autocast context to encode in; None = fp32.
        size: what they are brought to; None = the size of the study's images.
        bucket_step: see `open_pretraining`.
        workers: processes that decode ahead; 0 = none beside this one.
        leave_out_damaged: whether to go on without the images that cannot be read.
    Raises: UserError: if the study has no usable pre-training images, or their latents are not
        finite; once all are encoded, if some are damaged and not left out.
    """
    size = size or study.info.sampler.image_size
    sizes = possible_sizes(policy, size, bucket_step)
    images = open_pretraining(study, size, bucket_step)
    captions = images.train_captions(n)
    if left_out := images.about():
        console.print(f"pre-training images left out: {left_out}", soft_wrap=True)
    with precision or nullcontext():
        shards = _made(study, _Encoding(policy, images, sizes, workers), len(captions))
    damaged = shards.rows_with(DAMAGED)
    if not len(damaged):
        return PretrainingLatents(shards, torch.arange(len(captions)), sizes), captions
    _say_damaged(study, images, damaged.tolist(), len(captions), refuse=not leave_out_damaged)
    whole = torch.ones(len(captions), dtype=torch.bool)
    whole[damaged] = False
    rows = whole.nonzero()[:, 0]
    return PretrainingLatents(shards, rows, sizes), [captions[i] for i in rows.tolist()]


def possible_sizes(policy: Policy, size: Size, bucket_step: int) -> Sequence[Size]:
    """What images are brought to; see `open_pretraining`.

    Raises: UserError: if the buckets do not fit the size or the model.
    """
    sizes = bucket_sizes(size, bucket_step) if bucket_step else (size,)
    for other in sizes[1:]:
        try:
            policy.latent_shape(other)
        except UserError as error:
            raise UserError(f"bucket_step {bucket_step} is not possible: {error}") from None
    return sizes


def _made(study: Study, encoding: "_Encoding", n: int) -> Shards:
    """The shards of the first `n` images; those that are not in the cache are encoded."""
    computed = _computed(study, encoding.policy)
    keys = [
        digest([encoding.images.images_identity(*pair), *computed])
        for pair in shard_ranges(n, IMAGES_A_SHARD)
    ]
    paths = [study.cache / f"pretraining/{key}.safetensors" for key in keys]
    return make_shards(paths, IMAGES_A_SHARD, n, encoding.shards, "encoding pre-training images")


def _computed(study: Study, policy: Policy) -> list[str]:
    """What decides the latents beside the images: number formats, device, the base model."""
    known = [number_format(policy.device), policy.device.type, base_identity(study), "fp16"]
    weights = getattr(getattr(policy, "vae", None), "dtype", torch.float32)
    return known if weights == torch.float32 else [*known, f"VAE in {weights}"]


def _say_damaged(
    study: Study, images: PretrainingSet, rows: list[int], n: int, *, refuse: bool
) -> None:
    """Name damaged images, all of them in a file of the cache if they are many.

    Args:
        rows: their numbers among the `n` images.
        refuse: whether the command ends here.
    """
    named = [str(p) for p in images.train_pictures([(i, i + 1) for i in rows])]
    if len(rows) == 1 and refuse:
        raise UserError(named[0])
    said = f"{len(rows):,} of {n:,} pre-training images are damaged"
    if len(rows) > NAMED:
        listed = study.cache / "pretraining/damaged.txt"
        files.write_bytes(listed, ("\n".join(named) + "\n").encode())
        said += f" ({listed} lists them)"
    if refuse:
        raise UserError(
            f"{said}, such as {named[0]}. The others are encoded and kept: restore them, or run "
            "the command again with --leave-out-damaged"
        )
    console.print(f"{said} and left out, such as {named[0]}", soft_wrap=True)


@dataclass(frozen=True)
class _Encoding:
    """Encodes images, each of one of the sizes; `workers` processes decode ahead of it."""

    policy: Policy
    images: PretrainingSet
    sizes: Sequence[Size]
    workers: int

    def shards(self, ranges: Ranges) -> Generator[dict[str, Tensor], None, None]:
        """The tensors of a shard for each range; where images are damaged, also which those are."""
        portions = self._portions(ranges)
        # in a thread, which waits for the processes that decode
        ahead = prefetched(portions, lambda portion: portion) if self.workers else portions
        for start, stop in ranges:
            latents = list[Tensor]()
            damaged = list[bool]()
            while (number := start + len(damaged)) < stop:
                portion = next(ahead)
                damaged += [isinstance(picture, Damaged) for picture in portion]
                latents += self._encode(number, portion)
                if all(damaged) and len(damaged) == IMAGES_A_SHARD:
                    raise UserError(
                        f"none of {len(damaged)} pre-training images can be read; {portion[0]}"
                    )
            flags = {DAMAGED: torch.tensor(damaged, dtype=torch.uint8)} if any(damaged) else {}
            yield self._tensors(latents) | flags

    def _tensors(self, latents: list[Tensor]) -> dict[str, Tensor]:
        """What is kept of a shard's images; in fp16 as those of samples."""
        # autocast joins no fp16 on a CPU
        if len(self.sizes) == 1:
            return {"latents": torch.stack(latents).half()}
        numbers = {self.policy.latent_shape(size): i for i, size in enumerate(self.sizes)}
        bucket = [numbers[row.shape[0], row.shape[1], row.shape[2]] for row in latents]
        of_size = {k: [x for x, i in zip(latents, bucket, strict=True) if i == k] for k in bucket}
        place = [bucket[:i].count(number) for i, number in enumerate(bucket)]
        return {
            BUCKET: torch.tensor(bucket, dtype=torch.int16),
            PLACE: torch.tensor(place, dtype=torch.int16),
            **{_of_bucket(k): torch.stack(rows).half() for k, rows in of_size.items()},
        }

    def _portions(self, ranges: Ranges) -> Iterator[list[Image.Image | Damaged]]:
        """Images of one range, as many as fit the memory."""
        pictures, most = (
            self.images.train_pictures(ranges, self.workers), self.policy.portion(self.sizes[0])
        )  # fmt: skip
        for start, stop in ranges:
            for first in range(start, stop, most):
                yield list(islice(pictures, min(most, stop - first)))

    def _encode(
        self, number: int, portion: list[Image.Image | Damaged]
    ) -> list[Float[Tensor, "c h w"]]:
        """Latents, finite in fp16 too; 0, of the first size, for damaged images.

        Args:
            number: of the portion's first image.
        """
        found = [torch.zeros(self.policy.latent_shape(self.sizes[0]))] * len(portion)
        whole = {i: p for i, p in enumerate(portion) if not isinstance(p, Damaged)}
        for size in dict.fromkeys(picture.size for picture in whole.values()):
            alike = {i: picture for i, picture in whole.items() if picture.size == size}
            for i, row in zip(alike, self._encode_alike(number, alike), strict=True):
                found[i] = row
        return found

    def _encode_alike(self, number: int, whole: dict[int, Image.Image]) -> Float[Tensor, "n c h w"]:
        policy = self.policy
        pixels = np.stack([np.asarray(picture) for picture in whole.values()])
        batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
        latents = policy.encode_images(batch)
        names = [f"pre-training image {number + i + 1}" for i in whole]
        refuse_not_finite(latents, names, f"the VAE encoder of {policy.name}")
        refuse_not_finite(latents.half(), names, f"storing in fp16 the latents of {policy.name}")
        return latents.float().cpu()
