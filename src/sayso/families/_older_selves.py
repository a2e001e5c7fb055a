"""Older selves of a policy: the frozen reference, and copies that follow it at a distance."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class OlderSelves:
    """What a policy was: `network` for a while replaced by the start, or by an earlier state."""

    network: nn.Module
    device: torch.device
    _reference: tuple[nn.Module, torch.dtype | None] | None = None

    @cached_property
    def remembered(self) -> dict[str, dict[str, Tensor]]:
        """The values that the trainable parameters had, by name of the older self."""
        return {}

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that training changes, by name."""
        network = unwrapped(self.network)
        return {n: p for n, p in network.named_parameters() if p.requires_grad}

    @property
    def has_adapters(self) -> bool:
        """Whether low-rank adapters are being trained in place of the whole network."""
        return bool(getattr(unwrapped(self.network), "peft_config", None))

    def keep_reference(self, dtype: torch.dtype | None = None) -> None:
        """Let `reference()` be the network as it is now, in the mode (train, eval) that it is in.

        With adapters nothing is kept: without them the network is the reference. Otherwise the
        network is copied; its matrix products are kept in the number format in which autocast
        computes them anyway, so that reference and policy start out equal to the last bit.

        Args:
            dtype: autocast's format during training, such as bf16; None = fp32 throughout.
        """
        if not self.has_adapters:
            self._reference = _frozen_copy(unwrapped(self.network), dtype), dtype

    def change_reference(self, change: Callable[[nn.Module], object]) -> None:
        """Do something in place with the network that is kept as the reference, if one is."""
        if self._reference is not None:
            change(self._reference[0])

    @contextmanager
    def reference(self) -> Iterator[None]:
        """A block in which the policy predicts as the frozen reference, without gradients."""
        trained = self.network
        bare: Any = unwrapped(trained)
        if self.has_adapters:
            self.network, dtype = bare, None
            adapters = [*self.trainable().values()]
            bare.disable_adapters()
            # it freezes them too, and shards would be set up for gradients that never come
            for parameter in adapters:
                parameter.requires_grad_(True)
        elif self._reference is None:
            raise RuntimeError("no reference is kept: call keep_reference() before training")
        else:
            self.network, dtype = self._reference
        kind = self.device.type
        try:
            with torch.no_grad(), torch.autocast(kind, dtype, enabled=dtype is not None):
                yield
        finally:
            self.network = trained
            if self.has_adapters:
                bare.enable_adapters()

    def remember(self, name: str, decay: float = 0.0) -> None:
        """Move the older self `name` towards the policy: decay · old + (1 − decay) · now.

        The first call copies. Kept are the trainable parameters only; a decay of 0 makes the older
        self the policy as it is now.
        """
        now = {key: value.detach() for key, value in self.trainable().items()}
        if name not in self.remembered:
            self.remembered[name] = {key: value.clone() for key, value in now.items()}
            return
        old = self.remembered[name]
        torch._foreach_lerp_([old[key] for key in now], [*now.values()], 1 - decay)

    @contextmanager
    def old(self, name: str) -> Iterator[None]:
        """A block in which the policy predicts as its older self `name`, without gradients."""
        parameters, values = self.trainable(), self.remembered[name]
        now = {key: _value(parameter) for key, parameter in parameters.items()}
        trained, self.network = self.network, unwrapped(self.network)
        try:
            for key, parameter in parameters.items():
                _set_value(parameter, values[key])
            with torch.no_grad():
                yield
        finally:
            self.network = trained
            for key, parameter in parameters.items():
                _set_value(parameter, now[key])


def _value(parameter: nn.Parameter) -> Tensor:
    """What the parameter holds, to be kept while it holds something else."""
    return parameter.detach().clone() if isinstance(parameter, DTensor) else parameter.data


def _set_value(parameter: nn.Parameter, value: Tensor) -> None:
    if isinstance(parameter, DTensor):
        # weights are gathered from the memory where their shards lie
        with torch.no_grad():
            parameter.copy_(value)
    else:
        parameter.data = value


def unwrapped(network: nn.Module) -> nn.Module:
    """The network itself, without the wrapper that adds up gradients over processes."""
    return network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network


def _frozen_copy(network: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    frozen = copy.deepcopy(network).requires_grad_(False)
    if dtype is not None:
        for module in frozen.modules():
            if isinstance(module, _MATRICES):
                module.to(dtype)
    return frozen


_MATRICES = (nn.Linear, nn.modules.conv._ConvNd)
"""Layers that autocast computes in the lower precision, weights and all."""
