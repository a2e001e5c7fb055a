"""How the network lies in the processes of a launch: whole in each (DDP), or in shards (FSDP2).

Shards are torch's own `fully_shard`: accelerate shards nothing on a CPU, and does not say so.
"""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from sayso.base.errors import UserError
from sayso.families import Policy
from sayso.training.optimizers import moment_bytes
from sayso.training.options import TrainOptions

MOST = 0.7
"""Share of a device's memory that a whole network, and what goes with it, may take; the rest is
for what is computed."""


def is_sharded(
    options: TrainOptions, policy: Policy, processes: int, memory: int, *, reference: bool
) -> bool:
    """Whether each process is to hold a shard of the network in place of the whole.

    Args:
        policy: with its network on any device, and with adapters if they are trained.
        processes: of the launch.
        memory: bytes of a device.
        reference: whether a frozen copy of the network is kept.
    """
    if processes == 1 or options.sharding == "none":
        return False
    needed = whole_bytes(policy, options, reference=reference)
    return options.sharding == "full" or needed > MOST * memory


def whole_bytes(policy: Policy, options: TrainOptions, *, reference: bool) -> int:
    """What a whole network in training takes of a device: weights, gradients, moments, copies."""
    weights = sum(p.nbytes for p in policy.network.parameters())
    trained = policy.trainable().values()
    size = sum(p.nbytes for p in trained)
    moments = sum(moment_bytes(p.numel(), options) for p in trained)
    average = size if options.ema_decay and not options.ema_on_cpu else 0
    kept = weights if reference and not policy.has_adapters else 0
    return weights + kept + size + moments + average


def spread(
    policy: Policy, accelerator: Accelerator, *, sharded: bool, compiled: bool
) -> "Whole | Sharded":
    """Make the policy's network, and its reference if it keeps one, ready to be trained.

    Args:
        policy: its network lies where it was loaded; its trainable parameters are other objects
            afterwards if it is sharded.
        accelerator: device, number format and processes.
        sharded: cut weights, gradients and what follows them over the processes.
        compiled: with torch.compile.
    Raises: UserError: if the network cannot be cut.
    """
    made = (Sharded if sharded else Whole)(policy, accelerator, compiled=compiled)
    policy.network = made.network
    return made


class Whole:
    """A whole network in every process.

    Attributes:
        network: what predicts and has the trainable parameters.
    """

    def __init__(self, policy: Policy, accelerator: Accelerator, *, compiled: bool) -> None:
        if compiled:
            policy.network.compile()
        self.accelerator = accelerator
        self.network: Any = accelerator.prepare_model(policy.network)
        policy.change_reference(lambda network: network.to(accelerator.device))

    def adding_up(self, *, last: bool) -> AbstractContextManager[None]:
        """The pass of a micro-batch; gradients are added up over the processes with the last."""
        return nullcontext() if last else self.accelerator.no_sync(self.network)

    def clip(self, parameters: list[Tensor], longest: float) -> Tensor:
        """Scale gradients to a length; returns the length before, the same in every process."""
        norm: Any = self.accelerator.clip_grad_norm_(parameters, longest)
        return norm.detach()

    def whole(self) -> nn.Module | None:
        """The network with its trained weights in one piece; None in all but the main process."""
        main = self.accelerator.is_main_process
        return self.accelerator.unwrap_model(self.network) if main else None


class Sharded:
    """A shard of every weight in each process; a block's weights are gathered while it computes.

    So are gradients, the optimiser's moments, averages, older selves and the reference, each in
    shards. With bf16, blocks are gathered in bf16, and gradients are added up in fp32. Methods are
    as those of `Whole`; all processes call them together.
    """

    def __init__(self, policy: Policy, accelerator: Accelerator, *, compiled: bool) -> None:
        if accelerator.mixed_precision == "fp16":
            raise UserError(
                "sharding full trains in bf16 or fp32; give --mixed-precision bf16 or no"
            )
        self.accelerator, self.policy = accelerator, policy
        self.adapters = policy.has_adapters
        self.empty = _without_values(policy.network)
        dtype = torch.bfloat16 if accelerator.mixed_precision == "bf16" else None
        cut = _Cut(accelerator, dtype, compiled=compiled)
        cut(policy.network)
        policy.change_reference(cut)
        self.network: Any = accelerator.prepare_model(policy.network, evaluation_mode=True)

    @contextmanager
    def adding_up(self, *, last: bool) -> Iterator[None]:
        # whole gradients of a whole network would not fit: those are added up with each micro-batch
        self.network.set_requires_gradient_sync(last or not self.adapters)
        yield

    def clip(self, parameters: list[Tensor], longest: float) -> Tensor:
        norm: Any = torch.nn.utils.clip_grad_norm_(parameters, longest)
        return (norm.full_tensor() if isinstance(norm, DTensor) else norm).detach()

    def whole(self) -> nn.Module | None:
        options = StateDictOptions(
            full_state_dict=True, cpu_offload=True, ignore_frozen_params=self.adapters
        )
        values = get_model_state_dict(self.network, options=options)
        if not self.accelerator.is_main_process:
            return None
        self.empty.load_state_dict(values, strict=not self.adapters, assign=True)
        return self.empty


class _Cut:
    """Cuts networks over all processes, a block at a time."""

    def __init__(
        self, accelerator: Accelerator, dtype: torch.dtype | None, *, compiled: bool
    ) -> None:
        kind = accelerator.device.type
        self.mesh = init_device_mesh(kind, (accelerator.num_processes,))
        self.compiled = compiled
        # autocast gives inputs and outputs their formats
        self.policy = MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False)

    def __call__(self, network: nn.Module) -> None:
        _refuse_what_cannot_be_cut(network)
        for block in blocks_of(network):
            if self.compiled:
                block.compile()
            self._cut(block)
        self._cut(network)

    def _cut(self, module: nn.Module) -> None:
        # the outermost too is cut again after a pass: without a gradient nothing else would do it,
        # and the next pass would see the weights of before the update
        fully_shard(module, mesh=self.mesh, reshard_after_forward=True, mp_policy=self.policy)


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """What is gathered at a time, the innermost first.

    They are the blocks that diffusers says must stay together; of a network that names none, the
    members of its lists of modules.
    """
    names = getattr(network, "_no_split_modules", None)
    if names:
        found = [m for m in network.modules() if type(m).__name__ in names]
    else:
        lists = (nn.ModuleList, nn.Sequential)
        found = [child for m in network.modules() if isinstance(m, lists) for child in m]
    with_weights = [m for m in found if any(True for _ in m.parameters()) and m is not network]
    return with_weights[::-1]


def _without_values(network: nn.Module) -> nn.Module:
    """The same network, adapters and all, with parameters that take no memory."""
    empty = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
        for p in network.parameters()
    }
    # what deepcopy is told to have copied it does not copy
    return copy.deepcopy(network, dict(empty))


def _refuse_what_cannot_be_cut(network: nn.Module) -> None:
    for name, parameter in network.named_parameters():
        if type(parameter) is not nn.Parameter or not parameter.is_floating_point():
            raise UserError(
                f"{name} is a {type(parameter).__name__} of {parameter.dtype}, which cannot be "
                "sharded; train with --sharding none, or without quantised weights"
            )
