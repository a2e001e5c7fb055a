"""Stage `new`: make a study folder."""

from dataclasses import dataclass
from pathlib import Path

from sayso.base.errors import UserError, check_seed
from sayso.base.progress import console
from sayso.base.samplers import checked, parse_size
from sayso.base.types import Sampler
from sayso.base.worlds import DEFAULT, find_world, or_world
from sayso.study.info import StudyInfo
from sayso.study.model_files import model_name, native_size
from sayso.study.study import Study

CLIP = "openai/clip-vit-large-patch14"
"""The reward's encoder in the paper, and the default for every model that brings none."""


@dataclass(frozen=True)
class NewConfig:
    """What a study is about; it cannot be changed later, for images and votes belong to it."""

    name: str = ""
    """A name for people; default: the folder's."""
    seed: int = 0
    """Seed of all prompts, images and training runs of the study; from 0 to 2⁶³ − 1."""
    base_model: str = DEFAULT
    """The model to align: the shipped world, a diffusers folder, or a hub id."""
    clip_model: str = ""
    """CLIP for rewards and metrics: a world, a transformers folder, or a hub id; default: the
    world's own, else openai/clip-vit-large-patch14 as in the paper."""
    pretraining: str = ""
    """Pre-training images with captions: a world, or a folder of images with a metadata.jsonl
    (file_name, text); default: the world's own, else none."""
    num_inference_steps: int | None = None
    """Sampling steps; default: the world's own, else 20."""
    guidance_scale: float | None = None
    """Classifier-free guidance; default: the world's own, else 7.5."""
    eta: float = 0.0
    """Noise put in while sampling: 0 none, 1 as in DDPM."""
    image_size: str = ""
    """Size of the images: width x height such as 1024x768, or one number for a square; default: the
    model's own size, or 512 if the model is not on this machine yet."""
    negative_prompt: str = ""
    """What guidance leads away from; default: the empty prompt."""
    feedback_url: str = ""
    """Database of the votes, such as postgresql://user@host/name; default: SQLite in the study."""


def new(path: str | Path, config: NewConfig | None = None) -> Study:
    """Make the study folder.

    Raises: UserError: if there is something at `path`, or an option is out of range.
    """
    config = config or NewConfig()
    check_seed(config.seed)
    base = model_name(config.base_model, "base model", "model_index.json")
    sampler = _sampler(config, base)
    world = config.base_model if find_world(config.base_model) else ""
    clip = config.clip_model or world or CLIP
    info = StudyInfo(
        name=config.name or Path(path).resolve().name,
        seed=config.seed,
        base_model=base,
        clip_model=model_name(clip, "CLIP model", "config.json"),
        pretraining=_pretraining(config.pretraining or world),
        sampler=sampler,
        feedback_url=_feedback_url(config.feedback_url),
        held_out="by name",
    )
    return Study.create(path, info)


def _sampler(config: NewConfig, base_model: str) -> Sampler:
    world = find_world(base_model)
    base = world.sampler if world else Sampler()
    steps, scale = config.num_inference_steps, config.guidance_scale
    native = native_size(base_model)
    size = parse_size(config.image_size) if config.image_size else native or base.image_size
    if native and size != native:
        console.print(
            f"{config.base_model} was trained on images of {native} pixels; this study's have "
            f"{size}",
            soft_wrap=True,
        )
    return checked(
        Sampler(
            num_inference_steps=base.num_inference_steps if steps is None else steps,
            guidance_scale=base.guidance_scale if scale is None else scale,
            eta=config.eta,
            image_size=size,
            negative_prompt=config.negative_prompt,
        )
    )


def _feedback_url(given: str) -> str:
    from sayso.feedback.database import from_anywhere

    return from_anywhere(given) if given else ""


def _pretraining(given: str) -> str:
    if not given or find_world(given):
        return given
    if Path(given).is_dir():
        return str(Path(given).resolve())
    raise UserError(
        f"pre-training images {given!r}: there is no such folder; give a folder with images and "
        f"a metadata.jsonl, {or_world()}"
    )
