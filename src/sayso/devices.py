"""Device, number format, processes and memory, through accelerate."""

import errno
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Literal

from sayso.errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator

MixedPrecision = Literal["auto", "no", "bf16", "fp16"]


def make_accelerator(mixed_precision: MixedPrecision = "auto") -> "Accelerator":
    """The accelerator of this process; the device follows from the machine and the launcher.

    Args:
        mixed_precision: "auto" takes bf16 where the machine computes it natively, else fp32.
    Raises: UserError: if the machine cannot compute in that format.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    # accelerate keeps one state for the whole process; another stage may want another precision
    AcceleratorState._reset_state()
    chosen = best_precision() if mixed_precision == "auto" else mixed_precision
    try:
        return Accelerator(mixed_precision=chosen, cpu=_only_cpu())
    except ValueError as error:
        raise UserError(
            f"mixed_precision {chosen} does not work here ({error}); use auto or no"
        ) from None


def main_process_first() -> AbstractContextManager[None]:
    """A block that the main process of a launch runs before the others do."""
    from accelerate import PartialState

    return PartialState(cpu=_only_cpu()).main_process_first()


def is_main_process() -> bool:
    """Whether this process of a launch is the one that writes files."""
    from accelerate import PartialState

    return PartialState(cpu=_only_cpu()).is_main_process


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
def enough_memory(flag: str, value: int) -> Iterator[None]:
    """A block whose need of memory goes with an option; out of memory names half of its value.

    Args:
        flag: the option, such as "--batch-size".
        value: what it was, ≥ 1.
    Raises: UserError: if the memory does not suffice.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"{OUT_OF_MEMORY} at {flag} {value}; {_less(flag, value)}") from None


OUT_OF_MEMORY = "out of memory"
NO_OPTION_LEFT = "close other programs, use smaller images, or a machine with more memory"


def _less(flag: str, value: int) -> str:
    if value == 1:
        return NO_OPTION_LEFT
    # a part of what divides a batch divides it too
    half = next(n for n in range(value // 2, 0, -1) if value % n == 0)
    return f"repeat the command with {flag} {half}, and it goes on where it stopped"
