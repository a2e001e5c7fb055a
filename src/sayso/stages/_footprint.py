"""Bytes of a training or a drawing on a device, from shapes alone: see `families/_trace.py`."""

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from sayso.aligners import Aligner
from sayso.base.devices import BasePrecision
from sayso.base.types import Sampler, Size
from sayso.families import Policy
from sayso.families._precision import KEPT, stored_bytes
from sayso.families._trace import Trace, trace_decoding, trace_step
from sayso.stages._reward_footprint import RewardFootprint
from sayso.training.optimizers import moment_bytes
from sayso.training.options import TrainOptions

FP32 = 4
RUNTIME = {"cpu": 600_000_000, "cuda": 1_000_000_000}
"""What Python, torch and their libraries take of a machine's memory (measured, PyTorch 2.13); a
CUDA context with its libraries' workspaces of a card's (an estimate)."""
IN_LOOP = frozenset({"rollouts", "gradient"})
"""What an aligner needs that scores images while it trains."""
ENCODING = 2.5 * 1024
"""Bytes of a pixel while Stable Diffusion's autoencoder encodes in fp32; others are as wide."""


class Way(NamedTuple):
    """How a model is trained, as far as memory depends on it.

    Attributes:
        lora_rank: 0 = the whole network.
        precision: of what is frozen.
        autocast: number format of the arithmetic; None = that of the weights.
        cuda: whether for a GPU, else for a CPU.
        processes: how many share the batch.
        encoding: whether the text encoder works in every step.
        sharded: whether each process holds a part of the network and of all that goes with it.
    """

    options: TrainOptions
    lora_rank: int
    precision: BasePrecision
    autocast: torch.dtype | None
    cuda: bool
    processes: int
    encoding: bool
    sharded: bool = False


@dataclass(frozen=True)
class Footprint:
    """Bytes by what they are of, on one device; operations for an image.

    Attributes:
        parts: what is there together.
        flops: operations for an image.
        before: what preparing takes at most, when nothing of `parts` is there.
        average: of the moving average, wherever it is.
        checkpoint: of a checkpoint, a copy of which is in the machine's memory while it is written.
    """

    parts: dict[str, int]
    flops: float
    before: int = 0
    average: int = 0
    checkpoint: int = 0

    @property
    def total(self) -> int:
        return max(sum(self.parts.values()), self.before)


Blueprint = Callable[[], Policy]
"""Makes the model on the meta device, anew each time: tracing uses it up."""


def shapes_of(policy: Policy, text: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the conditions of a text, of a policy on the meta device."""
    return {key: tuple(value.shape[1:]) for key, value in policy.encode_prompts([text]).items()}


def training(
    blueprint: Blueprint, way: Way, aligner: Aligner, size: Size, cond: dict[str, tuple[int, ...]],
    reward: RewardFootprint | None = None,
) -> Footprint:  # fmt: skip
    """What training takes.

    Args:
        blueprint: the model.
        way: how it is trained.
        aligner: what it is trained by; its needs decide what else is kept.
        size: of the images.
        cond: shapes of the conditions of a text as long as any that is trained on.
        reward: the one that is asked, before or while it trains; None = none is.
    """
    policy, options, needs = blueprint(), way.options, aligner.required()
    text_bytes, vae_bytes = (_bytes(part, way.precision) for part in _encoders(policy))
    network: Any = policy.network
    weights, widest = stored_bytes(network, way.precision), _widest(network)
    whole = _reference_bytes(network, way.autocast)
    if way.lora_rank:
        policy.add_lora(way.lora_rank, 0)
        _cast(policy, way.precision)
    sizes = [p.numel() for p in policy.trainable().values()]
    trained, share = FP32 * sum(sizes), way.processes if way.sharded else 1
    trace = _step(policy, way, policy.latent_shape(size), cond)
    kept = not way.lora_rank and (options.uses_reference or "reference" in needs)
    moments = sum(moment_bytes(n, options) for n in sizes)
    average = trained if options.ema_decay else 0
    parts = {
        "weights": (weights + (trained if way.lora_rank else 0)) // share,
        "gradients": trained // share,
        "optimiser": moments // share,
        "EMA": 0 if options.ema_on_cpu and way.cuda else average // share,
        "reference": (whole if kept else 0) // share,
        "older weights": (trained if "old" in needs else 0) // share,
        "activations": trace.peak - trace.left,
        "one layer in full": 2 * widest if way.precision in ("int8", "nf4") else 0,
        "exchange of gradients": trained if way.processes > 1 and not way.sharded else 0,
        "one block in full": 2 * FP32 * _largest_block(network) if way.sharded else 0,
        "text encoders": text_bytes if way.encoding else 0,
        **(_scoring(blueprint, way, needs, size, reward) if needs & IN_LOOP else {}),
        "libraries": _runtime(cuda=way.cuda),
    }
    return Footprint(
        _there(parts),
        trace.flops / options.micro_batch(way.processes),
        _preparing(policy, options, size, text_bytes + vae_bytes, reward) + parts["libraries"],
        average,
        trained + moments + average,
    )


def _preparing(
    policy: Policy, options: TrainOptions, size: Size, encoders: int, reward: RewardFootprint | None
) -> int:  # fmt: skip
    """Bytes while images are encoded or scored, whichever takes more."""
    encoding = encoders + round(_portion(policy, size) * ENCODING)
    if reward is None:
        return encoding
    # they are there too while pre-training images are scored
    beside = encoders if options.pretraining_draw == "reward" else 0
    return max(encoding, reward.weights + beside)


def _scoring(
    blueprint: Blueprint, way: Way, needs: AbstractSet[str], size: Size,
    reward: RewardFootprint | None,
) -> dict[str, int]:  # fmt: skip
    """What is there beside the network while images are drawn and scored, by what it is of."""
    policy = blueprint()
    text, vae = (_bytes(part, way.precision) for part in _encoders(policy))
    parts = {"text encoders": text, "autoencoder": vae}
    images = _decoded_at_once(policy, way, size) if "gradient" in needs else 0
    if images:
        parts["decoding with a gradient"] = _decoding(blueprint, way, size)
    if reward:
        parts[reward.part] = reward.weights + reward.backward(images)
    return parts


def _decoded_at_once(policy: Policy, way: Way, size: Size) -> int:
    return min(way.options.micro_batch(way.processes), policy.portion(size))


def _decoding(blueprint: Blueprint, way: Way, size: Size) -> int:
    """Bytes of activations while a gradient goes through the decoder, a few images at a time."""
    policy: Any = blueprint()
    if way.options.gradient_checkpointing:
        policy.checkpoint_decoder()
    policy.vae.requires_grad_(False)
    latents = (_decoded_at_once(policy, way, size), *policy.latent_shape(size))
    return trace_decoding(policy.vae, policy.vae_decode, latents, gradient=True).peak


def drawing(
    blueprint: Blueprint, sampler: Sampler, rows: int, precision: BasePrecision,
    autocast: torch.dtype | None, *, cuda: bool, passes: int,
    reward: RewardFootprint | None = None,
) -> Footprint:  # fmt: skip
    """What drawing takes; operations are those of one picture.

    Text encoders are gone when the network comes.

    Args:
        rows: pictures drawn at once.
        passes: how often the network is asked for a picture, guidance apart.
        reward: selects the best of the pictures, and is in the machine's memory from the start.
    """
    policy = blueprint()
    text, vae = (_bytes(part, precision) for part in _encoders(policy))
    cond = shapes_of(policy, "")
    guided = 1 if policy.guidance(sampler) is None else 2
    network: Any = policy.network
    weights, widest = stored_bytes(network, precision), _widest(network)
    network.requires_grad_(False)
    _cast(policy, precision)
    shape = policy.latent_shape(sampler.image_size)
    trace = trace_step(policy, guided * rows, shape, cond, autocast, cuda=cuda, training=False)
    vae_of: Any = policy
    portion = min(rows, policy.portion(sampler.image_size))
    decoded = trace_decoding(vae_of.vae, vae_of.vae_decode, (portion, *shape))
    # a GPU decodes while it draws the next batch
    beside = trace.peak + decoded.peak if cuda else max(trace.peak, decoded.peak)
    parts = {
        "weights": weights,
        "autoencoder": vae,
        "activations": beside,
        "one layer in full": 2 * widest if precision in ("int8", "nf4") else 0,
        "libraries": _runtime(cuda=cuda),
    }
    if reward and not cuda:
        parts[reward.part] = reward.weights
    flops = passes * trace.flops / rows + decoded.flops / portion
    return Footprint(_there(parts), flops, text + parts["libraries"])


def _there(parts: dict[str, int]) -> dict[str, int]:
    return {name: size for name, size in parts.items() if size}


def _runtime(*, cuda: bool) -> int:
    return RUNTIME["cuda" if cuda else "cpu"]


def _step(
    policy: Policy, way: Way, latents: tuple[int, ...], cond: dict[str, tuple[int, ...]]
) -> Trace:  # fmt: skip
    network: Any = policy.network
    if way.options.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    rows = way.options.micro_batch(way.processes)
    several = rows * way.processes < way.options.batch_size
    return trace_step(
        policy, rows, latents, cond, way.autocast, cuda=way.cuda, training=True, several=several
    )  # fmt: skip


def _encoders(policy: Policy) -> Sequence[nn.Module]:
    found: Any = policy
    return (found.text, found.vae)


def _bytes(module: nn.Module, precision: BasePrecision) -> int:
    return sum(p.numel() for p in module.parameters()) * KEPT[precision].itemsize


def _reference_bytes(network: nn.Module, autocast: torch.dtype | None) -> int:
    """Of a copy whose matrices are in autocast's format."""
    narrow: BasePrecision = "bf16" if autocast else "fp32"
    return sum(
        p.numel() * (KEPT[narrow].itemsize if p.ndim > 1 else FP32) for p in network.parameters()
    )


def _widest(network: nn.Module) -> int:
    return max((m.weight.numel() for m in network.modules() if type(m) is nn.Linear), default=0)


def _largest_block(network: nn.Module) -> int:
    """Weights of the largest block, which every process holds whole for a while."""
    lists = [m for m in network.children() if isinstance(m, nn.ModuleList)]
    blocks = [block for blocks in lists for block in blocks]
    return max((sum(p.numel() for p in block.parameters()) for block in blocks), default=0)


def _cast(policy: Policy, precision: BasePrecision) -> None:
    """Keep frozen weights in the format of a precision; a diffusers model's own `to` would warn."""
    policy.dtype = KEPT[precision]
    for parameter in policy.network.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(policy.dtype)


def _portion(policy: Policy, size: Size) -> int:
    """Pixels encoded at once."""
    return policy.portion(size) * size.pixels
