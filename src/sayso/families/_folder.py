"""What a folder in diffusers' layout must hold: parts that belong together, for text to image."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import diffusers
import torch

from sayso.base.errors import UserError
from sayso.base.files import JsonObject
from sayso.base.weights import quiet_libraries, readable

EXTRA_INPUTS = (
    "time_cond_proj_dim", "class_embed_type", "num_class_embeds", "addition_embed_type",
    "encoder_hid_dim_type",
)  # fmt: skip


FEW_STEPS = re.compile(
    r"(?<![a-z])(turbo|lightning|lcm|hyper-?sdx?l?|dmd2?|schnell)(?![a-z])", re.IGNORECASE
)
"""What few-step models are called."""
DISTILLED_FROM = "the model that it was distilled from"


def class_name(index: JsonObject, part: str, folder: Path) -> str:
    """The class that model_index.json names for a part.

    Raises: UserError: if it names none.
    """
    named = index.get(part)
    name = named[1] if isinstance(named, list) and len(named) == 2 else None
    if not isinstance(name, str):
        raise UserError(f"{folder / 'model_index.json'} names no {part}; restore the folder")
    return name


def diffusers_class(name: str, folder: Path) -> Any:
    """Raises: UserError: if the installed diffusers has no such class."""
    kind = getattr(diffusers, name, None)
    if kind is None:
        raise UserError(
            f"{folder / 'model_index.json'} names {name}, which the installed diffusers does not "
            "have; install a newer diffusers, or fix the name"
        )
    return kind


def refuse_few_steps(where: Path, sign: str, give: str = DISTILLED_FROM) -> NoReturn:
    """Raise the refusal of a model that was distilled to draw in few steps.

    Args:
        where: what says so.
        sign: what it says.
        give: the model to give in its place.
    Raises: UserError: always.
    """
    raise UserError(
        f"{where} {sign}: it was distilled to draw in few steps, which the ordinary denoising loss "
        f"would undo; give {give}"
    )


def refuse_few_step_names(folder: Path, *given: object) -> None:
    """Refuse a model that is called a few-step one.

    Args:
        folder: where it is; of the hub's cache the name is two folders up.
        given: names in its configs of what it was made from, None where there is none.
    Raises: UserError: naming the word.
    """
    hub = [part for part in folder.parts if part.startswith("models--")]
    for name in (folder.name, *hub, *given):
        if found := FEW_STEPS.search(str(name)):
            refuse_few_steps(folder, f"is called {name}, with {found[0]} in it")


def transformers_class(name: str) -> Any:
    """The class of transformers, loaded when it is needed."""
    import transformers

    return getattr(transformers, name)


def refuse_other_inputs(config: Any, where: Path, added: str | None = None) -> None:
    """Refuse a U-Net that wants more than noisy latents, a time and a text.

    Args:
        config: the U-Net's.
        where: its folder.
        added: the `addition_embed_type` that its family has.
    Raises: UserError: naming what it wants.
    """
    given, made = config.in_channels, config.out_channels
    if given != made:
        raise UserError(
            f"{where} takes {given} channels and gives {made}: it is for inpainting, editing or "
            "upscaling; give a plain text-to-image model"
        )
    wanted = {"addition_embed_type": added}
    found = [name for name in EXTRA_INPUTS if config.get(name) != wanted.get(name)]
    if found:
        raise UserError(
            f"{where} needs more than a text ({', '.join(found)}): it is distilled or of another "
            "family; give a plain text-to-image model"
        )


def refuse_strangers(folder: Path, wrong: Mapping[str, bool]) -> None:
    """Refuse parts of different models in one folder.

    Args:
        folder: the model's folder.
        wrong: what does not fit, in words → whether it is so.
    Raises: UserError: with the first that is so.
    """
    for what, is_so in wrong.items():
        if is_so:
            raise UserError(
                f"{folder} holds parts of different models: its {what}; restore the folder"
            )


def on_meta(kind: Any, folder: Path) -> Any:
    """A part with the right shapes and no weights, on the meta device; only its config is read.

    Raises: UserError: if the config is missing or cannot be used.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} has no config.json; restore the folder")
    with readable(folder), quiet_libraries(), torch.device("meta"):
        if hasattr(kind, "load_config"):  # diffusers
            return kind.from_config(kind.load_config(folder))
        return kind(kind.config_class.from_pretrained(folder))
