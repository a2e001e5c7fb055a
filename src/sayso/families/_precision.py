"""Frozen weights in fewer bits: the layers of a network, one after the other."""

from typing import Any

import torch
from torch import Tensor, nn

from sayso.base.devices import BasePrecision
from sayso.base.extras import bitsandbytes
from sayso.families._contract import Policy

KEPT = {
    "fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.bfloat16, "nf4": torch.bfloat16,
}  # fmt: skip
"""Number format of the weights that are not quantised: convolutions, norms, embeddings."""


def quantise(policy: Policy, precision: BasePrecision, device: torch.device) -> None:
    """Keep the weights of the network's linear layers in 8 or 4 bits, and move the policy.

    A layer is put on the device and quantised before the next one is, so that the device never
    holds more than one layer whole. Products are computed in the format of their inputs, and
    gradients pass to the inputs; the weights themselves cannot be trained. int8 rounds the inputs
    too.

    Args:
        policy: without adapters, on the CPU.
        precision: "int8" or "nf4".
        device: where it shall live.
    Source: Dettmers et al. 2022, arXiv 2208.07339 (int8); Dettmers et al. 2023, arXiv 2305.14314
        (nf4, with quantised scales).
    """
    network: Any = policy.network
    for name, layer in list(network.named_modules()):
        if type(layer) is nn.Linear:
            network.set_submodule(name, _quantised(layer, precision).to(device))
    # by which peft knows what it puts its adapters around
    setattr(network, "is_loaded_in_8bit" if precision == "int8" else "is_loaded_in_4bit", True)
    for name, value in list(vars(policy).items()):
        if isinstance(value, nn.Module | Tensor):
            setattr(policy, name, value.to(device))
    policy.device = device


def _quantised(layer: nn.Linear, precision: BasePrecision) -> nn.Module:
    layers = bitsandbytes().nn
    shape, weight = (layer.in_features, layer.out_features), layer.weight.detach()
    if precision == "int8":
        made = layers.Linear8bitLt(*shape, bias=False, has_fp16_weights=False, device="meta")
        made.weight = layers.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    else:
        made = layers.Linear4bit(*shape, bias=False, quant_type="nf4", device="meta")
        made.weight = layers.Params4bit(weight, requires_grad=False, quant_type="nf4")
        # by which a CPU packs weights anew outside training: in whole blocks, with rounded scales
        made.support_avx512bf16_for_cpu = False
    made.bias = layer.bias
    return made.requires_grad_(False)


def stored_bytes(network: nn.Module, precision: BasePrecision) -> int:
    """Bytes of a network's weights if all of them are kept so."""
    linear = sum(m.weight.numel() for m in network.modules() if type(m) is nn.Linear)
    rest = sum(p.numel() for p in network.parameters()) - linear
    return round(linear * BYTES[precision]) + rest * KEPT[precision].itemsize


BYTES = {"fp32": 4, "bf16": 2, "int8": 1, "nf4": 0.5 + (1 + 4 / 256) / 64}
"""Of a weight of a linear layer. nf4 has a scale of 8 bits for 64 weights, and for 256 scales one
of 32; the scales of int8, one for a row, are not counted."""
