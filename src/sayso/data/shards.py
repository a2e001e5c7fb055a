"""Tensors in safetensors files, read by row when they are asked for: never all of them at once."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import pad

from sayso.base import files
from sayso.base.progress import progress

OPEN_AT_ONCE = 64
"""Files that stay open, memory-mapped: opening one takes a third of a millisecond."""


class OpenFiles:
    """Safetensors files that were read last; their tensors are views of the mapped file."""

    def __init__(self) -> None:
        self._open: Callable[[Path], Any] = lru_cache(OPEN_AT_ONCE)(_opened)

    def tensor(self, path: Path, name: str) -> Tensor:
        """A tensor of the file; only the pages that are read of it come into memory.

        Raises: FileNotFoundError, SafetensorError: if the file or the tensor is missing, or the
            file is damaged.
        """
        return self._open(path).get_tensor(name)


def _opened(path: Path) -> Any:
    # the mapping lasts as long as the handle and what was read of it: nothing needs closing
    return safe_open(path, framework="pt").__enter__()


class Shards:
    """Rows of several tensors of equal length, kept in files of `size` rows each.

    `shards[rows]` has those rows of every tensor, by name. If files hold rows of different length,
    the shorter ones are filled up with zeros at their end.
    """

    def __init__(self, paths: Sequence[Path], size: int, n: int) -> None:
        self._paths, self._size, self._n = paths, size, n
        self._files = OpenFiles()
        with safe_open(paths[0], framework="pt") as first:
            self._names = sorted(first.keys())

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, rows: Int[Tensor, " n"]) -> dict[str, Tensor]:
        return {name: self.read(name, rows) for name in self._names}

    def rows_with(self, name: str) -> Int[Tensor, " m"]:
        """The rows where a tensor that not every file has is not zero."""
        found = [torch.zeros(0, dtype=torch.long)]
        for number, path in enumerate(self._paths):
            with safe_open(path, framework="pt") as shard:
                if name in shard.keys():  # noqa: SIM118
                    found.append(shard.get_tensor(name).nonzero()[:, 0] + number * self._size)
        return torch.cat(found)

    def read(self, name: str, chosen: Int[Tensor, " n"]) -> Tensor:
        """Rows of one of the tensors."""
        return self.read_at(name, chosen, chosen % self._size)

    def read_at(self, name: str, chosen: Int[Tensor, " n"], place: Int[Tensor, " n"]) -> Tensor:
        """As `read`, of a tensor whose rows are elsewhere in their file: at these places."""
        rows, places = chosen.numpy(), place.numpy()
        shards = rows // self._size
        parts = list[tuple[Tensor, Tensor]]()
        for shard in np.unique(shards):
            here = np.flatnonzero(shards == shard)
            stored = self._files.tensor(self._paths[shard], name)
            # a copy: no more than a few files stay mapped
            parts.append((torch.from_numpy(here), stored[torch.from_numpy(places[here])]))
        if not parts:
            return self._files.tensor(self._paths[0], name)[:0]
        longest = np.max([part.shape[1:] for _, part in parts], axis=0).tolist()
        found = parts[0][1].new_zeros((len(rows), *longest))
        for here, part in parts:
            found[here] = _filled_up(part, longest)
        return found


def _filled_up(rows: Tensor, shape: Sequence[int]) -> Tensor:
    """The rows with zeros at the end of every dimension that is shorter."""
    missing = [want - have for want, have in zip(shape, rows.shape[1:], strict=True)]
    return pad(rows, [n for more in reversed(missing) for n in (0, more)]) if any(missing) else rows


Maker = Callable[[Sequence[tuple[int, int]]], Generator[Mapping[str, Tensor], None, None]]
"""Computes, for each pair, the rows from the first number up to the second: name → tensor, on the
CPU."""


def shard_ranges(n: int, size: int) -> list[tuple[int, int]]:
    """The rows of each shard, from a number up to another; the last may have fewer."""
    return [(start, min(n, start + size)) for start in range(0, n, size)]


def make_shards(paths: Sequence[Path], size: int, n: int, make: Maker, doing: str) -> Shards:
    """Shards of `n` rows; those that are there already, whole and finite, are not made again.

    Each is written as soon as it is made, so that work that was stopped goes on where it was.

    Args:
        paths: one file for every `size` rows, named by all that decides what is in it.
        size: rows of a file; the last may have fewer.
        n: rows in all, ≥ 1.
        make: computes what is missing, in order.
        doing: what that is, for the progress bar.
    """
    missing = [i for i, path in enumerate(paths) if not _is_whole(path)]
    if missing:
        every = shard_ranges(n, size)
        ranges = [every[i] for i in missing]
        done = n - sum(stop - start for start, stop in ranges)
        with progress(doing, n, "rows", done=done) as advance, closing(make(ranges)) as parts:
            for i, (start, stop), made in zip(missing, ranges, parts, strict=True):
                content = {name: t.contiguous() for name, t in made.items()}
                files.write_bytes(paths[i], save(content))
                advance(stop - start)
    return Shards(paths, size, n)


def _is_whole(path: Path) -> bool:
    """Whether the file can be used: what is damaged or not finite is made again."""
    try:
        with safe_open(path, framework="pt") as shard:
            return all(shard.get_tensor(name).isfinite().all() for name in shard.keys())  # noqa: SIM118
    except (FileNotFoundError, SafetensorError):
        return False
