"""What is forecast for: a model without its weights, and a device that need not be here."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.filesize import decimal

from sayso.base.cards import Card, parse_card
from sayso.base.devices import MixedPrecision, best_precision, make_accelerator, memory_bytes
from sayso.families._loading import family
from sayso.families._published import find_published, write_published
from sayso.stages._footprint import Blueprint
from sayso.study.identity import model_folder
from sayso.study.study import Study

SHARE = 0.3
"""Of a card's operations a second that training is taken to reach. Published: 36 images a second of
Stable Diffusion 1.5 at 512 pixels on an A100, 28 %."""
LIMIT = 0.95
"""Part of a device's memory that may be forecast to be used."""


def unknown(study: Study) -> str:
    """Why nothing can be said of memory and time."""
    return f"not known until {study.info.base_model} is fetched"


@contextmanager
def blueprint(study: Study) -> Iterator[Blueprint | None]:
    """A block with the base model on the meta device; None if nothing is known of it.

    It comes from the model's folder, or if it is not on this machine from the published configs.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = model_folder(study.info.base_model, "pipeline")
        published = find_published(study.info.base_model)
        if folder is None and published:
            folder = write_published(published, Path(temporary) / "model")
        if folder is None:
            yield None
            return
        kind, where = family(folder), folder
        yield lambda: kind.load(where, torch.device("meta"))


def device_for(asked: str) -> tuple[Card, bool]:
    """The device that is asked for, or this machine's, and whether it is a GPU."""
    if asked:
        return parse_card(asked), True
    accelerator = make_accelerator("no")
    device, number = accelerator.device, accelerator.num_processes
    cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if cuda else "this machine"
    return Card(name, memory_bytes(device), number=number), cuda


def no_room(what: str, card: Card, instead: str) -> str:
    """That something does not fit on a device.

    Args:
        what: it needs, and how much.
        instead: what to do.
    """
    return (
        f"{what}, and {card.name} has {decimal(card.memory)}, of which {LIMIT:.0%} can be used; "
        f"{instead}"
    )


def arithmetic(mixed: MixedPrecision, *, cuda: bool) -> torch.dtype | None:
    """Autocast's format; None = none."""
    chosen = ("bf16" if cuda else best_precision()) if mixed == "auto" else mixed
    # fp16 takes what bf16 takes
    return None if chosen == "no" else torch.bfloat16
