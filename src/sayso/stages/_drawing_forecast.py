"""What `generate` will take of memory and time, known before it is begun."""

from collections.abc import Callable
from functools import cache
from typing import Any

from rich.filesize import decimal

from sayso.base.cards import Card
from sayso.base.devices import BASE_PRECISIONS, BasePrecision, MixedPrecision
from sayso.base.errors import UserError
from sayso.base.types import Sampler
from sayso.stages._blueprint import (
    LIMIT,
    SHARE,
    arithmetic,
    blueprint,
    device_for,
    no_room,
    unknown,
)
from sayso.stages._footprint import Footprint, drawing
from sayso.stages._reward_footprint import RewardFootprint
from sayso.study.study import Study


def drawing_forecast(
    study: Study, sampler: Sampler, rows: int, images: int, mixed: MixedPrecision, asked: str,
    reward: RewardFootprint | None,
) -> dict[str, str]:  # fmt: skip
    """Memory and time of drawing, for `generate`.

    Args:
        sampler: steps, guidance and size.
        rows: images drawn at once.
        images: how many are drawn in all.
        mixed: number format of the arithmetic.
        asked: the device; "" = this machine's.
        reward: selects the best of the images; None = none does.
    Raises: UserError: if it does not fit, with the number at once that would.
    """
    with blueprint(study) as model:
        if model is None:
            return {"memory": unknown(study)}
        card, cuda = device_for(asked)
        autocast = arithmetic(mixed, cuda=cuda)
        policy: Any = model()
        passes = policy.evaluations(policy.path, sampler.num_inference_steps)

        @cache
        def needed(n: int, precision: BasePrecision) -> Footprint:
            return drawing(
                model, sampler, n, precision, autocast, cuda=cuda, passes=passes, reward=reward
            )

        rows = min(rows, max(images, 1))
        needs, room = needed(rows, sampler.base_precision), round(LIMIT * card.memory)
        if needs.total > room:
            raise UserError(_too_many(needed, needs, rows, sampler.base_precision, room, card))
        if reward and reward.weights > room:
            needed_later = f"{reward.part} needs {decimal(reward.weights)} of memory"
            raise UserError(no_room(needed_later, card, "choose another --reward"))
    found = {f"memory, {name}": decimal(size) for name, size in needs.parts.items()}
    if reward:
        found |= reward.said(needs.parts.get(reward.part, 0), "after the images are generated")
    found["memory, encoding prompts"] = f"{decimal(needs.before)}, before the network is loaded"
    found["memory, in all"] = f"{decimal(needs.total)} of {decimal(card.memory)} ({card.name})"
    found["operations per image"] = f"{needs.flops / 1e12:.2f} TFLOP"
    if card.flops:
        hours = images * needs.flops / (SHARE * card.flops * card.number) / 3600
        found["hours"] = f"{hours:.2g}, at {SHARE:.0%} of {card.flops / 1e12:.0f} TFLOP/s a card"
    return found


def _too_many(
    needed: Callable[[int, BasePrecision], Footprint], needs: Footprint, rows: int,
    precision: BasePrecision, room: int, card: Card,
) -> str:  # fmt: skip
    instead = "use smaller images, or a larger device"
    for tried in BASE_PRECISIONS[BASE_PRECISIONS.index(precision) :]:
        fit = _fitting(lambda n, kept=tried: needed(n, kept).total, rows, room)
        if fit:
            flags = [f"--base-precision {tried}"] if tried != precision else []
            flags += [f"--batch-size {fit}"] if fit < rows else []
            instead = f"give {' '.join(flags)}"
            break
    parts = ", ".join(f"{name} {decimal(size)}" for name, size in needs.parts.items())
    what = f"drawing {rows} images at once needs {decimal(needs.total)} of memory ({parts})"
    if needs.before > sum(needs.parts.values()):
        what = f"encoding prompts needs {decimal(needs.before)} of memory"
    return no_room(what, card, instead)


def _fitting(needed: Callable[[int], int], rows: int, room: int) -> int:
    """The most images at once, up to `rows`, that fit; 0 if not even one does."""
    one = needed(1)
    if one > room:
        return 0
    step = max(1, (needed(rows) - one) / max(1, rows - 1))
    return min(rows, int(1 + (room - one) / step))
