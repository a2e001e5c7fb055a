"""Numbers that are not finite: refused where they arise, with the part that made them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sayso.base.errors import UserError

FORMATS = {torch.float16: "fp16", torch.bfloat16: "bf16"}


def refuse_not_finite(values: Tensor, rows: Sequence[str], maker: str) -> None:
    """Refuse what holds NaN or infinity, before anything is made of it or kept.

    Call it in the autocast context that the values were computed in: the line names its format.

    Args:
        values: first dimension = rows, on any device.
        rows: what each row is, such as "prompt 'two cats', seed 3".
        maker: what computed them, such as "the U-Net of runs/align-rwr".
    Raises: UserError: naming the first such row, how many there are, the number format, and what
        to try.
    """
    if len(rows) != len(values):
        raise ValueError(f"{len(values)} rows of values but {len(rows)} names")
    bad = [row for row, finite in zip(rows, finite_rows(values), strict=True) if not finite]
    if bad:
        others = f" and {len(bad) - 1} others" if len(bad) > 1 else ""
        raise UserError(
            f"{bad[0]}{others}: {maker} produced numbers that are not finite, computing in "
            f"{number_format(values.device)}; {_advice(values.device)}"
        )


def finite_rows(values: Tensor) -> list[bool]:
    """Whether each row holds neither NaN nor infinity."""
    return values.isfinite().flatten(1).all(1).tolist()


def number_format(device: torch.device) -> str:
    """ "fp32", or the format of the autocast context that this is called in."""
    if not torch.is_autocast_enabled(device.type):
        return "fp32"
    return FORMATS[torch.get_autocast_dtype(device.type)]


def _advice(device: torch.device) -> str:
    if number_format(device) == "fp16":
        return "fp16 ends at 65504: try --mixed-precision bf16 or no"
    return "its weights are damaged or its training diverged: restore them, or choose another"
