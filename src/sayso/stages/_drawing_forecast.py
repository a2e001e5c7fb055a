"""What `generate` will take of memory and time, known before it is begun."""

from collections.abc import Callable
from typing import Any

from rich.filesize import decimal

from sayso.base.cards import Card
from sayso.base.devices import MixedPrecision
from sayso.base.errors import UserError
from sayso.base.types import Sampler
from sayso.stages._blueprint import LIMIT, SHARE, arithmetic, blueprint, device_for
from sayso.stages._footprint import Footprint, drawing
from sayso.study.study import Study


def drawing_forecast(
    study: Study, sampler: Sampler, rows: int, images: int, mixed: MixedPrecision, asked: str
) -> dict[str, str]:
    """Memory and time of drawing, for `generate`.

    Args:
        sampler: steps, guidance and size.
        rows: images drawn at once.
        images: how many are drawn in all.
        mixed: number format of the arithmetic.
        asked: the device; "" = this machine's.
    Raises: UserError: if it does not fit, with the number at once that would.
    """
    with blueprint(study) as model:
        if model is None:
            return {"memory": f"not known until {study.info.base_model} is fetched"}
        card, cuda = device_for(asked)
        autocast = arithmetic(mixed, cuda=cuda)
        policy: Any = model()
        passes = policy.evaluations(policy.path, sampler.num_inference_steps)

        def needed(n: int) -> Footprint:
            return drawing(model, sampler, n, "fp32", autocast, cuda=cuda, passes=passes)

        rows = min(rows, max(images, 1))
        needs, room = needed(rows), round(LIMIT * card.memory)
        if needs.total > room:
            raise UserError(_too_many(needed, needs, rows, room, card))
    found = {f"memory, {name}": decimal(size) for name, size in needs.parts.items()}
    found["memory, in all"] = f"{decimal(needs.total)} of {decimal(card.memory)} ({card.name})"
    found["operations per image"] = f"{needs.flops / 1e12:.2f} TFLOP"
    if card.flops:
        hours = images * needs.flops / (SHARE * card.flops * card.number) / 3600
        found["hours"] = f"{hours:.2g}, at {SHARE:.0%} of {card.flops / 1e12:.0f} TFLOP/s a card"
    return found


def _too_many(
    needed: Callable[[int], Footprint], needs: Footprint, rows: int, room: int, card: Card
) -> str:  # fmt: skip
    one = needed(1).total
    step = max(1, (needs.total - one) / max(1, rows - 1))
    fit = int(1 + (room - one) / step) if one <= room else 0
    instead = f"give --batch-size {fit}" if fit else "use smaller images, or a larger device"
    parts = ", ".join(f"{name} {decimal(size)}" for name, size in needs.parts.items())
    return (
        f"drawing {rows} images at once needs {decimal(needs.total)} of memory ({parts}), and "
        f"{card.name} has {decimal(card.memory)}, of which {LIMIT:.0%} can be used; {instead}"
    )
