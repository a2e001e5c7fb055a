"""The optimiser of the loop, by its option."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from sayso.base.errors import UserError
from sayso.base.extras import bitsandbytes
from sayso.training.options import TrainOptions

SMALLEST = 4096
"""Numbers of a weight from which on its moments are kept in 8 bits; biases and norms have fewer."""
BLOCK = 256
"""Numbers that share a scale, in bitsandbytes."""


def make_optimizer(
    parameters: Sequence[Tensor], rate: float, options: TrainOptions
) -> torch.optim.Optimizer:
    """AdamW with its moments in fp32, or in 8 bits and blocks of 256.

    Args:
        parameters: what it changes.
        rate: the first step's learning rate.
        options: which optimiser, and its weight decay.
    Raises: UserError: if 8 bits are asked for of sharded weights.
    Source: Loshchilov and Hutter 2019, arXiv 1711.05101; Dettmers et al. 2022, arXiv 2110.02861.
    """
    if options.optimizer == "adamw":
        return torch.optim.AdamW(parameters, rate, weight_decay=options.weight_decay, fused=True)
    if any(isinstance(parameter, DTensor) for parameter in parameters):
        raise UserError(
            "optimizer adamw8bit does not work on sharded weights; give --optimizer adamw, whose "
            "moments are sharded too"
        )
    return bitsandbytes().optim.AdamW8bit(
        parameters, rate, weight_decay=options.weight_decay, min_8bit_size=SMALLEST
    )


def moment_bytes(weights: int, options: TrainOptions) -> int:
    """Bytes of both moments of a weight tensor of that many numbers."""
    if options.optimizer == "adamw" or weights < SMALLEST:
        return 8 * weights
    # a number each and an fp32 scale for a block, twice
    return 2 * (weights + 4 * -(-weights // BLOCK))
