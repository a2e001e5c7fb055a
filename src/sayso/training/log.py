"""What the loop writes of each step: scalars that stay on the device, and lines that wait."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from sayso.base.errors import UserError
from sayso.study.run import Run
from sayso.training.objective import Term
from sayso.training.trackers import Trackers

READ_EVERY = 10
"""Steps between two looks at the losses: reading one waits for the device."""


class Logged(NamedTuple):
    """What one process logs of a step.

    `scalars` are sums over the micro-batches, weighted by their share in the batch. `shares` says
    how much of the batch had such a scalar: an aligner may give one for some rows or steps only.
    The loss has whole parts, which need no weight.
    """

    step: int
    rate: float
    images: int
    scalars: dict[str, Tensor]
    shares: dict[str, float]


def logged(step: int, rate: float, images: int, terms: Sequence[tuple[str, Term]]) -> Logged:
    scalars, shares = dict[str, Tensor](), dict[str, float]()
    for name, term in terms:
        value = term.value.detach().float()
        weighted = value if name == "loss" else value * term.share
        scalars[name] = scalars[name] + weighted if name in scalars else weighted
        shares[name] = shares.get(name, 0.0) + term.share
    return Logged(step, rate, images, scalars, shares | {"loss": 1.0})


def means(sums: Sequence[Mapping[str, tuple[float, float]]]) -> dict[str, float]:
    """The mean of each scalar over the processes and micro-batches that had it.

    Args:
        sums: of each process, name → weighted sum and sum of the weights.
    """
    names = dict.fromkeys(name for own in sums for name in own)
    parts = {name: [own[name] for own in sums if name in own] for name in names}
    return {name: sum(v for v, _ in p) / sum(s for _, s in p) for name, p in parts.items()}


class Log:
    """Scalars that stay on the device for some steps, and lines that wait for a checkpoint.

    Args:
        settle: waits until checkpoints that are being written are there.
        trackers: what else is sent the lines, as soon as they are read.
    """

    def __init__(
        self,
        run: Run,
        accelerator: Accelerator,
        settle: Callable[[], None],
        trackers: Trackers,
    ) -> None:
        self.run, self.accelerator, self.note = run, accelerator, ""
        self.trackers = trackers
        self.settle = settle
        self.unread: list[Logged] = []
        self.lines: list[dict[str, float]] = []
        self.since = time.perf_counter()

    def add(self, logged: Logged) -> None:
        self.unread.append(logged)
        if len(self.unread) == READ_EVERY:
            self.read()

    def read(self) -> None:
        """Fetch the scalars of the last steps, all in one go, and look whether they are finite."""
        if not self.unread:
            return
        values = iter(
            torch.stack([v for row in self.unread for v in row.scalars.values()]).tolist()
        )
        own = [{n: (next(values), row.shares[n]) for n in row.scalars} for row in self.unread]
        # each step and process has its own names, so objects are gathered, not one tensor reduced
        everyone = gather_object([own])
        speed = sum(row.images for row in self.unread) / (time.perf_counter() - self.since)
        for row, sums in zip(self.unread, zip(*everyone, strict=True), strict=True):
            named = means(sums)
            self._check(row.step, named)
            more = {"learning_rate": row.rate, "images_per_s": speed}
            self.lines.append({"step": row.step, **named, **more})
        self.trackers.log(self.lines[-len(self.unread) :])
        self.note = f"loss {self.lines[-1]['loss']:.4f}"
        self.unread, self.since = [], time.perf_counter()

    def _check(self, step: int, named: dict[str, float]) -> None:
        # with fp16 an infinite gradient is an ordinary event: the scaler skips the step
        watched = ["loss"] if self.accelerator.scaler is not None else ["loss", "grad_norm"]
        for name in watched:
            if not math.isfinite(named[name]):
                self.settle()
                last = self.run.latest_checkpoint
                kept = (
                    f"the checkpoint of step {last.name} is kept" if last else "nothing was saved"
                )
                raise UserError(
                    f"{name} is {named[name]} at step {step}: training stopped, {kept}; "
                    f"{self._advice(step)} under another --name"
                )

    def _advice(self, step: int) -> str:
        """The first step's loss is that of the weights as they were: no learning rate mends it."""
        if step > 1:
            return "try a lower --learning-rate"
        precision = self.accelerator.mixed_precision
        if precision == "no":
            return (
                "the cause is the model or the aligner's options: restore or change them, and "
                "run again"
            )
        return f"{precision} is not precise enough: try --mixed-precision no"

    def flush(self) -> None:
        """Write the lines so far."""
        self.read()
        if self.lines and self.accelerator.is_main_process:
            self.run.log_many(self.lines)
        self.lines = []
