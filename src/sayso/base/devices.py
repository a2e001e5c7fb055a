"""Device, number format, processes and memory, through accelerate."""

import atexit
import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING, Literal, TypeVar, get_args

from sayso.base.errors import UserError

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator, PartialState

Row = TypeVar("Row")
Value = TypeVar("Value")
PATIENCE = timedelta(days=2)
"""How long processes wait for each other; NCCL's own patience is ten minutes."""
OVERRIDES = (
    "ACCELERATE_USE_DEEPSPEED",
    "ACCELERATE_USE_FSDP",
    "ACCELERATE_USE_MEGATRON_LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG",
)
"""Variables by which accelerate would train in another way than the options say."""

MixedPrecision = Literal["auto", "no", "bf16", "fp16"]
BasePrecision = Literal["fp32", "bf16", "int8", "nf4"]
"""How weights that are not trained are kept; int8 and nf4 (4 bits) through bitsandbytes."""
BASE_PRECISIONS: tuple[BasePrecision, ...] = get_args(BasePrecision)
QUANTISED = ("int8", "nf4")
"""Of these, what needs the extra `quantised`."""


def make_accelerator(mixed_precision: MixedPrecision = "auto") -> "Accelerator":
    """The accelerator of this process; the device follows from the machine and the launcher.

    Args:
        mixed_precision: "auto" takes bf16 where the machine computes it natively, else fp32.
    Raises: UserError: if the machine cannot compute in that format.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin

    _refuse_overrides()
    _process()
    # accelerate keeps one state for the whole process; another stage may want another precision
    AcceleratorState._reset_state()
    chosen = best_precision() if mixed_precision == "auto" else mixed_precision
    if chosen == "fp16" and _only_cpu():
        raise UserError("mixed_precision fp16 is for GPUs, and here is only a CPU; give bf16 or no")
    try:
        # named, for accelerate takes what is not from variables of the environment. Looking for
        # unused parameters keeps DDP from ordering its sums anew after a first step: a run that is
        # resumed would add up in another order
        return Accelerator(
            mixed_precision=chosen,
            cpu=_only_cpu(),
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            dynamo_backend="no",
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
    except ValueError as error:
        raise UserError(
            f"mixed_precision {chosen} does not work here ({error}); use auto or no"
        ) from None


def wait_for_everyone() -> None:
    """Wait until every process of a launch is here."""
    _process().wait_for_everyone()


def main_process_first() -> AbstractContextManager[None]:
    """A block that the main process of a launch runs before the others do."""
    return _process().main_process_first()


def is_main_process() -> bool:
    """Whether this process of a launch is the one that writes files."""
    return _process().is_main_process


def number_of_processes() -> int:
    """How many processes this launch has; 1 without one."""
    return _process().num_processes


def agreed(value: Value) -> Value:
    """The main process's value, in every process of a launch; all call it alike."""
    from accelerate.utils import broadcast_object_list

    _process()
    return broadcast_object_list([value])[0]


def in_shares(
    rows: Sequence[Row], work: Callable[[Sequence[Row]], Sequence[Value]], portion: int
) -> list[Value]:
    """What `work` makes of all rows, one each and in order; each process of a launch does a share.

    Args:
        rows: the same in every process; all call it alike.
        work: of one process's rows.
        portion: rows that stay together, one after the other, as they do in one process: the last
            bits of a result can depend on what is computed at once.
    """
    from accelerate.utils import gather_object

    process = _process()
    portions = [rows[at : at + portion] for at in range(0, len(rows), portion)]
    mine = portions[process.process_index :: process.num_processes]
    made = iter(work([row for part in mine for row in part])) if mine else iter(())
    found = gather_object([[list(islice(made, len(part))) for part in mine]])
    turns = [found[i % process.num_processes][i // process.num_processes]
             for i in range(len(portions))]  # fmt: skip
    return [value for part in turns for value in part]


def memory_bytes(device: "torch.device") -> int:
    """Memory of a device in all; of a CPU this process's part, where several share it."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    import psutil

    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return psutil.virtual_memory().total // here


def _process() -> "PartialState":
    """This process of a launch; the others wait long while the first encodes and scores."""
    from accelerate import PartialState
    from torch import distributed

    if distributed.is_available():
        # imported later, its functions' defaults would hold the group, so that leaving it ends none
        # of gloo's threads
        import torch.distributed.nn  # pyright: ignore[reportUnusedImport]  # noqa: F401
    atexit.unregister(_leave_gloo)
    atexit.register(_leave_gloo)
    return PartialState(cpu=_only_cpu(), timeout=PATIENCE)


def _leave_gloo() -> None:
    """End the process group before Python ends: gloo's threads would abort a finished process.

    NCCL's group is left to the end of the process: ending it can wait for a process that is lost.
    """
    from torch import distributed

    if distributed.is_initialized() and distributed.get_backend() == "gloo":
        distributed.destroy_process_group()


def _refuse_overrides() -> None:
    for name in OVERRIDES:
        if os.environ.get(name, "").lower() in ("1", "true", "yes"):
            raise UserError(
                f"the variable {name} is set, but sayso decides by itself how processes share a "
                "network (see --sharding); unset it, or launch with torchrun or accelerate launch "
                "--multi_gpu"
            )


def _only_cpu() -> bool:
    """Whether there is nothing but the CPU.

    accelerate must be told: else processes launched on a CPU do not find each other, and each
    takes itself for the main one.
    """
    import torch

    if hasattr(torch, "accelerator"):  # torch ≥ 2.6
        return not torch.accelerator.is_available()
    return not (torch.cuda.is_available() or torch.backends.mps.is_available())


def best_precision() -> Literal["no", "bf16"]:
    """ "bf16" if the GPU, or else the CPU, has instructions for it and may use them.

    What the processor has can be switched off for oneDNN (ONEDNN_MAX_CPU_ISA=AVX2) and for torch
    itself (ATEN_CPU_CAPABILITY=avx2); bf16 is then computed bit by bit, 15 times slower than fp32.
    """
    import torch

    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "no"
    has = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    allowed = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    narrow = torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2")
    return "bf16" if has and allowed and not narrow else "no"


_NO_MEMORY = (
    "out of memory",
    "DefaultCPUAllocator: can't allocate memory",
    "Cannot allocate memory",
    "bad_alloc",
    f"os error {errno.ENOMEM}",
    "could not create a primitive",
    "could not create a memory",
    "ALLOC_FAILED",
)
"""How CUDA, MPS, torch's CPU allocator, C++, safetensors, oneDNN and cuBLAS say it."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a library failed for want of memory, of the device or of the machine."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    return isinstance(error, Exception) and any(said in str(error) for said in _NO_MEMORY)


@contextmanager
def enough_memory(flag: str, value: int, otherwise: str = "") -> Iterator[None]:
    """A block whose need of memory goes with an option; out of memory names half of its value.

    Args:
        flag: the option, such as "--batch-size".
        value: what it was, ≥ 1.
        otherwise: what else to do, if it is 1 already.
    Raises: UserError: if the memory does not suffice.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        less = _less(flag, value) if value > 1 else otherwise or NO_OPTION_LEFT
        raise UserError(f"{OUT_OF_MEMORY} at {flag} {value}; {less}") from None


OUT_OF_MEMORY = "out of memory"
NO_OPTION_LEFT = "close other programs, use smaller images, or use a machine with more memory"


def _less(flag: str, value: int) -> str:
    # a part of what divides a batch divides it too
    half = next(n for n in range(value // 2, 0, -1) if value % n == 0)
    return f"run the command again with {flag} {half} to resume"
