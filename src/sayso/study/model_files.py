"""What a model's small files say, known before it is loaded and without torch."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sayso.base.errors import UserError
from sayso.base.types import Size
from sayso.base.worlds import find_world, world_names
from sayso.study.identity import model_folder
from sayso.study.pipelines import PIPELINES, Pipeline

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
LATENT_BYTES = 2
"""Latents are kept in fp16."""
OLD_UNETS = (0, 9)
"""diffusers takes U-Nets saved before this version, and of less than 64, for ones of 64."""


class TooLong(NamedTuple):
    """Texts that a model's tokenizer would cut: the first, its tokens, the limit, how many."""

    text: str
    tokens: int
    limit: int
    number: int


def model_name(given: str, kind: str, index: str) -> str:
    """A model's name as study.json has it: a folder's whole path, a world or a hub id.

    Args:
        given: what the user typed; a folder may be relative to where the command runs.
        kind: the words for it in an error.
        index: the file that a model's folder must have.
    Raises: UserError: if it is none of these.
    """
    if find_world(given):
        return given
    folder = Path(given).expanduser()
    if folder.is_dir():
        if not (folder / index).is_file():
            raise UserError(f"{kind} {given!r} is a folder without {index}; give a model folder")
        return str(folder.resolve())
    if not HUB_ID.fullmatch(given):
        raise UserError(
            f"{kind} {given!r} is neither a folder nor a hub id such as owner/name; check the "
            f"path, or give a world: {', '.join(world_names())}"
        )
    return given


def native_size(base_model: str) -> Size | None:
    """Size of the images that a base model was trained on; None if that is not known here.

    Args:
        base_model: as in study.json; nothing is fetched.
    """
    folder = model_folder(base_model, "pipeline")
    unet, transformer, vae = (
        _read(folder, f"{part}/config.json") for part in ("unet", "transformer", "vae")
    )
    known = pipeline(base_model)
    side = unet.get("sample_size") or transformer.get("sample_size") or (known and known.latents)
    halved = _halvings(vae)
    if not isinstance(side, int) or halved is None:
        return None
    if unet and side < 64 and _version(unet) < OLD_UNETS:
        side = 64
    pixels = side * 2**halved
    return Size(pixels, pixels)


def latents_bytes(base_model: str, size: Size) -> int | None:
    """What the latents of an image take on the disk; None if that is not known here.

    Args:
        base_model: as in study.json; nothing is fetched.
    """
    vae = _read(model_folder(base_model, "pipeline"), "vae/config.json")
    channels, halved = vae.get("latent_channels", vae.get("z_dim")), _halvings(vae)
    if not isinstance(channels, int) or halved is None:
        return None
    return channels * size.pixels // 4**halved * LATENT_BYTES


def _halvings(vae: dict[str, Any]) -> int | None:
    """How often an autoencoder halves the sides of an image."""
    widths, frames = vae.get("block_out_channels"), vae.get("temperal_downsample")
    if isinstance(widths, list):
        return len(widths) - 1
    return len(frames) if isinstance(frames, list) else None


def pipeline(base_model: str) -> Pipeline | None:
    """What is known of the base model's pipeline; None if that is unknown, or not on this machine.

    Args:
        base_model: as in study.json; nothing is fetched.
    """
    index = _read(model_folder(base_model, "pipeline"), "model_index.json")
    return PIPELINES.get(str(index.get("_class_name")))


def no_guidance(base_model: str) -> float:
    """The guidance scale that is none for a base model; the least of all, 0, if it is not known."""
    known = pipeline(base_model)
    return known.no_guidance if known else 0.0


def _version(config: dict[str, Any]) -> tuple[int, ...]:
    parts = str(config.get("_diffusers_version", "")).split(".")[:2]
    return tuple(int(p) for p in parts) if all(p.isdigit() for p in parts) else OLD_UNETS


def too_long(base_model: str, texts: Sequence[str]) -> TooLong | None:
    """The texts that the base model's tokenizer would cut; None if it would none or is not here.

    Args:
        base_model: as in study.json; nothing is fetched.
        texts: whatever the model is to draw.
    """
    folder = model_folder(base_model, "pipeline")
    if folder is None or not texts:
        return None
    readers = (pipeline(base_model) or Pipeline()).readers
    reader = next((r for r in readers if (folder / r.tokenizer).is_dir()), readers[-1])
    try:
        import transformers

        kind: Any = getattr(transformers, reader.kind)
        tokenizer = kind.from_pretrained(folder / reader.tokenizer)
    except Exception:  # the small install, or a folder that generate will name the fault of
        return None
    encoder = reader.tokenizer.replace("tokenizer", "text_encoder")
    positions = _read(folder, f"{encoder}/config.json").get("max_position_embeddings", reader.most)
    limit = min(tokenizer.model_max_length, positions, reader.most)
    # what stands around the text is none of its own
    own, *lengths = map(
        len, tokenizer(reader.written(tokenizer, ["", *texts]), verbose=False).input_ids
    )
    long = [(t, n) for t, n in zip(texts, lengths, strict=True) if n > limit]
    return TooLong(long[0][0], long[0][1] - own, limit - own, len(long)) if long else None


def _read(folder: Path | None, name: str) -> dict[str, Any]:
    try:
        found = json.loads((folder / name).read_text(encoding="utf-8")) if folder else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
