"""Final latents by row, as `generate` stored them, and joined with those of other images."""

import hashlib
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor

from sayso.base.errors import UserError
from sayso.base.types import Sample
from sayso.data.shards import OpenFiles
from sayso.study.study import Study


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
