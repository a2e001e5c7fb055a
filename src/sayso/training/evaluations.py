"""How much a training asks of the network: the measure by which algorithms are given equal work."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from sayso.families import Cond, Policy

FORWARD, WITH_GRADIENT = 1, 3
"""Evaluations of a row: the backward pass costs twice the forward pass."""


class Evaluations:
    """Counts the rows that a policy predicts for, while used as a context manager.

    A row counts 1, or 3 if a gradient follows; whether the policy, its reference or an older self
    predicts. With guidance the network is shown every row twice, which counts twice. Sample grids
    are not counted (see `paused`): they are no part of the training.
    """

    def __init__(self, policy: Policy, accelerator: Accelerator) -> None:
        self._policy, self._accelerator = policy, accelerator
        self.before: int | None = 0
        """What was spent before the training was resumed; None if that is not known."""
        self._own = 0

    def __enter__(self) -> "Evaluations":
        ask = getattr(self._policy, self._policy.network_call)

        def counted(noisy: Tensor, t: Tensor, cond: Cond) -> Tensor:
            self._own += len(noisy) * (WITH_GRADIENT if torch.is_grad_enabled() else FORWARD)
            return ask(noisy, t, cond)

        vars(self._policy)[self._policy.network_call] = counted
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:  # fmt: skip
        del vars(self._policy)[self._policy.network_call]

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A block whose evaluations do not count."""
        own = self._own
        yield
        self._own = own

    def counted(self) -> dict[str, int]:
        """`evaluations` of all processes since the first step; empty if that is not known.

        The processes call it together.
        """
        own = torch.tensor(self._own, device=self._accelerator.device)
        found: Any = self._accelerator.reduce(own, "sum")
        return {} if self.before is None else {"evaluations": self.before + int(found)}
