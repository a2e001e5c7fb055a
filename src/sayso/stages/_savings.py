"""Options that take less memory, in the order in which they are worth trying."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from sayso.base.devices import QUANTISED, enough_memory, memory_bytes

if TYPE_CHECKING:
    from accelerate import Accelerator

    from sayso.aligners import Aligner
    from sayso.families import Policy

LORA_RANK = 16


class Saved(NamedTuple):
    """Options that would fit, as flags, and the bytes that they need."""

    flags: str
    needed: int


def fitting(
    config: Any, needed: Callable[[Any], int], memory: int, *, cuda: bool, several: bool = False
) -> Saved | None:
    """The first options beside those given with which a training fits; None if none does.

    Args:
        config: the options of `align`.
        needed: bytes that options need.
        memory: bytes that there are.
        cuda: whether the machine's memory is another than the device's.
        several: whether there are several devices.
    """
    ways = (
        [_lora(config)]
        if config.lora_rank
        else [_whole(config, cuda=cuda, several=several), _lora(config)]
    )
    for changes in ways:
        now = config
        for change in changes:
            now = replace(now, **change)
            if needed(now) <= memory:
                best = _larger(now, config, needed, memory)
                return Saved(_flags(config, best), needed(best))
    return None


@contextmanager
def enough_to_train(
    config: Any, policy: "Policy", aligner: "Aligner", accelerator: "Accelerator"
) -> Iterator[None]:
    """A block that trains. Raises: UserError: if memory runs out, with what takes less."""
    from sayso.training.spread import is_sharded

    n, memory = accelerator.num_processes, memory_bytes(accelerator.device)
    reference = config.uses_reference or "reference" in aligner.required()
    copies = n > 1 and not is_sharded(config, policy, n, memory, reference=reference)
    saving = less_memory(config, copies=copies)
    with enough_memory("--micro-batch-size", config.micro_batch(n), saving):
        yield


def less_memory(config: Any, *, copies: bool = False) -> str:
    """What to do where micro-batches of one row are too large.

    Args:
        config: the options of `align`.
        copies: whether several processes hold a whole network each.
    """
    unused = [
        flag
        for used, flag in (
            (config.lora_rank, f"--lora-rank {LORA_RANK}"),
            (config.lora_rank or config.optimizer != "adamw", "--optimizer adamw8bit"),
            (not config.lora_rank or config.base_precision == "nf4", "--base-precision nf4"),
        )
        if not used
    ]
    ways = []
    again = ["--gradient-checkpointing"] if not config.gradient_checkpointing else []
    whole = config.base_precision not in QUANTISED and config.optimizer == "adamw"
    again += ["--sharding full"] if copies and whole else []
    if again:
        ways.append(f"run the command again with {' or '.join(again)} to resume")
    if unused:
        said = " or ".join(unused)
        ways.append(f"give {said} and another --name; sayso align --dry-run says what that needs")
    return ", or ".join(ways)


def _whole(config: Any, *, cuda: bool, several: bool) -> Iterator[dict[str, Any]]:
    """Ways to go on training the whole network."""
    if several and config.sharding != "full":
        yield {"sharding": "full"}
    if not config.gradient_checkpointing:
        yield {"gradient_checkpointing": True}
    yield {"micro_batch_size": 1}
    if config.ema_decay and not config.ema_on_cpu and cuda:
        yield {"ema_on_cpu": True}
    if config.optimizer == "adamw":
        yield {"optimizer": "adamw8bit"}


def _lora(config: Any) -> Iterator[dict[str, Any]]:
    """Ways to train adapters."""
    if not config.lora_rank:
        yield {"lora_rank": LORA_RANK}
    if config.base_precision == "fp32":
        yield {"base_precision": "bf16"}
    if not config.gradient_checkpointing:
        yield {"gradient_checkpointing": True}
    yield {"micro_batch_size": 1}
    if config.base_precision != "nf4":
        yield {"base_precision": "nf4"}


def _larger(config: Any, given: Any, needed: Callable[[Any], int], memory: int) -> Any:
    """With the largest micro-batches that fit, where those of one row do."""
    if config.micro_batch_size != 1 or given.micro_batch_size == 1:
        return config
    rows = [n for n in range(2, config.batch_size + 1) if config.batch_size % n == 0][:2]
    if not rows:
        return config
    one, more = needed(config), needed(replace(config, micro_batch_size=rows[0]))
    row = max(1, (more - one) / (rows[0] - 1))
    room = 1 + (memory - one) / row
    fit = [n for n in range(1, config.batch_size + 1) if config.batch_size % n == 0 and n <= room]
    tried = replace(config, micro_batch_size=fit[-1])
    return tried if needed(tried) <= memory else config


def _flags(before: Any, after: Any) -> str:
    names = (
        "sharding", "lora_rank", "base_precision", "gradient_checkpointing", "micro_batch_size",
        "ema_on_cpu", "optimizer",
    )  # fmt: skip
    return " ".join(
        flag
        for name in names
        if getattr(before, name) != getattr(after, name)
        for flag in _flag(name, getattr(after, name))
    )


def _flag(name: str, value: Any) -> Sequence[str]:
    flag = f"--{name.replace('_', '-')}"
    return [flag] if value is True else [flag, str(value)]
