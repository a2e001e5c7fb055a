"""Device, number format and processes, through accelerate."""

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from accelerate import Accelerator

MixedPrecision = Literal["auto", "no", "bf16", "fp16"]


def make_accelerator(mixed_precision: MixedPrecision = "auto") -> "Accelerator":
    """The accelerator of this process; the device follows from the machine and the launcher.

    Args:
        mixed_precision: "auto" takes bf16 where the machine computes it natively, else fp32.
    """
    from accelerate import Accelerator

    chosen = best_precision() if mixed_precision == "auto" else mixed_precision
    return Accelerator(mixed_precision=chosen)


def best_precision() -> Literal["no", "bf16"]:
    """ "bf16" if the GPU, or else the CPU, has instructions for it."""
    import torch

    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "no"
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if native else "no"
