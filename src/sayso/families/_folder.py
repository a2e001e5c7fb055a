"""What a Stable Diffusion folder must hold: parts that belong together, for text to image."""

from pathlib import Path
from typing import Any

import diffusers

from sayso.base.errors import UserError
from sayso.base.files import JsonObject

EXTRA_INPUTS = (
    "time_cond_proj_dim", "class_embed_type", "num_class_embeds", "addition_embed_type",
    "encoder_hid_dim_type",
)  # fmt: skip


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


def refuse_other_inputs(config: Any, where: Path) -> None:
    """Raises: UserError: if the U-Net wants more than noisy latents, a time and a text."""
    given, made = config.in_channels, config.out_channels
    if given != made:
        raise UserError(
            f"{where} takes {given} channels and gives {made}: it is for inpainting, editing or "
            "upscaling; give a plain text-to-image model"
        )
    found = [name for name in EXTRA_INPUTS if config.get(name) is not None]
    if found:
        raise UserError(
            f"{where} needs more than a text ({', '.join(found)}): it is distilled or of another "
            "family; give a plain text-to-image model"
        )


def refuse_strangers(folder: Path, unet: Any, vae: Any, text: Any, tokenizer: Any) -> None:
    """Refuse parts of different models in one folder.

    Args:
        folder: the model's folder.
        unet, vae, text: the parts' configs.
        tokenizer: the tokenizer itself.
    Raises: UserError: naming the two numbers that differ.
    """
    states = unet.cross_attention_dim
    wrong = {
        f"vae makes latents of {vae.get('latent_channels')} channels, unet takes "
        f"{unet.in_channels}": vae.get("latent_channels", unet.in_channels) != unet.in_channels,
        f"text_encoder gives {text.hidden_size} numbers per token, unet takes {states}": (
            isinstance(states, int) and text.hidden_size != states
        ),
        f"tokenizer knows {len(tokenizer)} words, text_encoder {text.vocab_size}": (
            not text.vocab_size / 2 <= len(tokenizer) <= text.vocab_size
        ),
    }
    for what, is_wrong in wrong.items():
        if is_wrong:
            raise UserError(
                f"{folder} holds parts of different models: its {what}; restore the folder"
            )
