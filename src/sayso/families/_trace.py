"""What one pass through a network allocates and computes, counted without computing anything.

The pass is made with torch's fake tensors: shapes, number formats and autograd are the real ones,
numbers there are none. A 12-billion-weight network is traced in seconds, without its weights.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from sayso.families._contract import Policy

CPU = torch.device("cpu")
IN_FP32 = ("group_norm", "layer_norm", "softmax")
"""What autocast computes in fp32 on CUDA and not on a CPU, in torch.nn.functional."""
_FUSED = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


class Trace(NamedTuple):
    """Of one pass.

    Attributes:
        peak: bytes allocated at most at once, beside weights and inputs.
        left: bytes that remain at its end: the gradients.
        flops: floating-point operations; a multiplication and an addition are two.
    """

    peak: int
    left: int
    flops: int


def trace_step(
    policy: Policy, rows: int, latents: tuple[int, ...], cond: dict[str, tuple[int, ...]],
    autocast: torch.dtype | None, *, cuda: bool, training: bool, several: bool = False,
) -> Trace:  # fmt: skip
    """Trace the prediction of some rows, with the gradients of a mean squared error if training.

    Args:
        policy: on the meta device, with its adapters if it has any; its network is traced and is
            of no use afterwards.
        rows: how many.
        latents, cond: shapes of a row's.
        autocast: number format of the arithmetic; None = that of the weights.
        cuda: whether a CUDA device is meant; a CPU's norms are not computed in fp32.
        training: whether gradients are computed.
        several: whether they are added to those of the rows before.
    """
    mode = FakeTensorMode()
    faked = _fake(policy.network, mode)
    with mode:

        def run() -> None:
            noisy = torch.empty(rows, *latents)
            told = {
                key: torch.empty(rows, *shape, dtype=torch.bool if key == "mask" else None)
                for key, shape in cond.items()
            }
            error = (policy.predict(noisy, torch.empty(rows), told).float() - noisy).square().mean()
            if training:
                torch.autograd.backward(error)

        policy.network.train(training)
        with torch.set_grad_enabled(training):
            kernels = _kernels(
                norms_in_fp32=cuda and autocast is not None,
                longest=max((shape[0] for shape in cond.values() if shape), default=0),
            )
            return _traced(run, faked, autocast, kernels, passes=1 + several)


def trace_decoding(
    vae: nn.Module,
    decode: Callable[[Tensor], Tensor],
    latents: tuple[int, ...],
    *,
    gradient: bool = False,
) -> Trace:
    """Trace the decoding of latents [b, c, h, w] in the weights' own format.

    Args:
        vae: on the meta device; of no use afterwards.
        decode: calls it.
        gradient: whether a gradient goes back to the latents.
    """
    mode = FakeTensorMode()
    faked = _fake(vae, mode)
    with mode, torch.set_grad_enabled(gradient):

        def run() -> None:
            images = decode(torch.empty(latents, requires_grad=gradient))
            if gradient:
                torch.autograd.backward(images.sum())

        return _traced(run, faked, None, _kernels())


def _traced(
    run: Callable[[], Any], known: list[Tensor], autocast: torch.dtype | None,
    kernels: AbstractContextManager[None],
    passes: int = 1,
) -> Trace:  # fmt: skip
    counter = _Counter(known)
    with ExitStack() as stack:
        if autocast:
            stack.enter_context(torch.autocast("cpu", autocast))
        stack.enter_context(kernels)
        stack.enter_context(counter)
        for _ in range(passes):
            run()
            # as where autocast is left between two of them
            torch.clear_autocast_cache()
    return Trace(counter.peak, counter.now, counter.flops // passes)


def _fake(module: nn.Module, mode: FakeTensorMode) -> list[Tensor]:
    """Put tensors without numbers, of the CPU, in place of the meta device's."""
    made: list[Tensor] = []
    for part in module.modules():
        # some keep tables of sines as plain attributes
        for tensors in (part._parameters, part._buffers, vars(part)):
            for name, tensor in tensors.items():
                if not isinstance(tensor, Tensor):
                    continue
                fake: Any = FakeTensor(mode, tensor.detach(), CPU)
                if isinstance(tensor, nn.Parameter):
                    fake = nn.Parameter(fake, tensor.requires_grad)
                tensors[name] = fake
                made.append(fake)
    return made


class _Counter(TorchDispatchMode):
    """Counts the bytes of storages that live, and operations."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = self.flops = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # fmt: skip
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                self._add(value.untyped_storage())
        count = _FLOPS.get(func._overloadpacket)
        if count is not None:
            self.flops += count(*args, **kwargs, out_val=out)
        return out

    def _add(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


@contextmanager
def _kernels(*, norms_in_fp32: bool = False, longest: int = 0) -> Iterator[None]:
    """A block with the kernels of a real device: fused attention, and CUDA's norms under autocast.

    Args:
        norms_in_fp32: whether norms are computed in fp32.
        longest: tokens of the longest text, which families with a mask ask for as numbers.
    """
    with ExitStack() as stack:
        # not by torch's function modes, which are off where checkpointing computes again
        stack.enter_context(patch.object(F, "scaled_dot_product_attention", _attention))
        stack.enter_context(patch.object(Tensor, "__int__", lambda _: longest))
        stack.enter_context(patch.object(FakeTensor, "tolist", lambda rows: [longest] * len(rows)))
        for name in IN_FP32 if norms_in_fp32 else ():
            stack.enter_context(patch.object(F, name, partial(_in_fp32, getattr(F, name))))
        yield


def _in_fp32(norm: Callable[..., Tensor], x: Tensor, *more: Any, **options: Any) -> Tensor:
    return norm(x.float(), *more, **options)


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_: Any, **__: Any
) -> Tensor:
    return _FUSED(query, key, value, attn_mask=attn_mask)[0]


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_backward_flops(
    grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any
) -> int:
    return sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape)


_FLOPS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    _FUSED: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}
