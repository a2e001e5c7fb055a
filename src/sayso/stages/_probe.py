"""Images per second, measured for two seconds."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sayso.families import Cond, Policy

SECONDS = 2.0


def rate(step: Callable[[], object], rows: int, device: torch.device) -> float:
    """Rows a second of a step of so many, once it is warm; of a first one that is slow, its own."""

    def timed() -> float:
        started = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    first = timed()
    if first > SECONDS:
        return rows / first
    seconds, steps = 0.0, 0
    while seconds < SECONDS:
        seconds, steps = seconds + timed(), steps + 1
    return rows * steps / seconds


def random_rows(
    policy: Policy, rows: int, latents: tuple[int, ...], cond: dict[str, tuple[int, ...]]
) -> tuple[Tensor, Tensor, Cond]:
    """Noisy latents, times and conditions of random numbers."""
    made: dict[str, Any] = {
        key: torch.ones(rows, *shape, dtype=torch.bool)
        if key == "mask"
        else torch.randn(rows, *shape)
        for key, shape in cond.items()
    }
    told: Cond = {key: value.to(policy.device) for key, value in made.items()}
    noisy = torch.randn(rows, *latents, device=policy.device)
    return noisy, torch.rand(rows, device=policy.device), told
