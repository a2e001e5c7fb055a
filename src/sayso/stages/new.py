"""Stage `new`: make a study folder."""

from dataclasses import dataclass
from pathlib import Path

from sayso.base.errors import UserError, check_seed
from sayso.base.progress import console
from sayso.base.samplers import checked, parse_size
from sayso.base.types import Sampler
from sayso.base.worlds import DEFAULT, find_world
from sayso.stages._base_model import base_model_name
from sayso.study.info import StudyInfo
from sayso.study.model_files import model_name, native_size, pipeline
from sayso.study.pipelines import Pipeline
from sayso.study.study import Study

CLIP = "openai/clip-vit-large-patch14"
"""The reward's encoder in the paper, and the default for every model that brings none."""


@dataclass(frozen=True)
class NewConfig:
    """What the study is about. This cannot be changed later, because images and votes depend on
    it."""

    name: str = ""
    """Display name; default: the folder's name."""
    seed: int = 0
    """Seed for all prompts, images and training runs of the study, from 0 to 2⁶³ − 1."""
    base_model: str = DEFAULT
    """The model to align: the built-in world, a folder in diffusers' layout, a hub id, or a single
    .safetensors file, which is written once as a folder to the user's cache."""
    base_config: str = ""
    """For a base model in one file: a folder or hub id of the same architecture to take configs,
    tokenizers and missing parts from; default: the hub model that diffusers uses."""
    base_lora: str = ""
    """A LoRA (.safetensors in diffusers', peft's or kohya's layout) to add to the base model."""
    clip_model: str = ""
    """CLIP for rewards and metrics: the built-in world, a folder in transformers' layout, or a hub
    id; default: the world's own, or openai/clip-vit-large-patch14 as in the paper."""
    pretraining: str = ""
    """Captioned pre-training images: the built-in world; a folder of images with a metadata.jsonl
    or metadata.csv (file_name, text); .tar shards or .parquet files (a folder or a pattern); a
    folder written by save_to_disk; or a hub dataset, such as owner/name. Default: the world's own,
    or none."""
    pretraining_image: str = ""
    """Column of the images, or their file ending in shards; default: the first known one."""
    pretraining_caption: str = ""
    """Column of the captions; default: the first of text, caption, txt, prompt."""
    pretraining_filter: str = ""
    """Which images to take, by other columns, such as "aesthetic >= 6 and width >= 512"."""
    pretraining_split: str = ""
    """Split of the dataset; default: train, or the only one."""
    num_inference_steps: int | None = None
    """Sampling steps; default: the world's own, or those of the model's family, or 20."""
    guidance_scale: float | None = None
    """Guidance scale of the model's pipeline; default: the world's own, or that of the model's
    family, or 7.5."""
    eta: float = 0.0
    """Noise added while sampling: 0 for none, 1 as in DDPM."""
    image_size: str = ""
    """Size of the images: width x height, such as 1024x768, or one number for a square; default:
    the model's own size, or 512 if the model is not on this machine yet."""
    negative_prompt: str = ""
    """The prompt that guidance moves away from; default: the empty prompt."""
    true_cfg_scale: float = 1.0
    """Guidance away from the negative prompt for FLUX.1, whose guidance_scale is an input of the
    network; 1 = none."""
    feedback_url: str = ""
    """Database for the votes, such as postgresql://user@host/name; default: SQLite in the study."""


def new(path: str | Path, config: NewConfig | None = None) -> Study:
    """Make the study folder.

    Raises: UserError: if there is something at `path`, or an option is out of range.
    """
    config = config or NewConfig()
    check_seed(config.seed)
    base = base_model_name(config.base_model, config.base_config, config.base_lora)
    sampler = _sampler(config, base)
    world = config.base_model if find_world(config.base_model) else ""
    clip = config.clip_model or world or CLIP
    pretraining = _pretraining(config.pretraining or world)
    info = StudyInfo(
        name=config.name or Path(path).resolve().name,
        seed=config.seed,
        base_model=base,
        clip_model=model_name(clip, "CLIP model", "config.json"),
        pretraining=pretraining,
        sampler=sampler,
        feedback_url=_feedback_url(config.feedback_url),
        held_out="by name",
        pretraining_image=config.pretraining_image,
        pretraining_caption=config.pretraining_caption,
        pretraining_filter=_filter(config, pretraining),
        pretraining_split=config.pretraining_split,
    )
    return Study.create(path, info)


def _sampler(config: NewConfig, base_model: str) -> Sampler:
    world = find_world(config.base_model)
    # of an unknown model all is possible, until generate knows it
    known = pipeline(base_model) or Pipeline(no_guidance=0.0, told_guidance=True)
    usual = Sampler(known.num_inference_steps, known.guidance_scale)
    base = world.sampler if world else usual
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
            true_cfg_scale=config.true_cfg_scale,
        ),
        known.no_guidance,
        true_cfg=known.told_guidance,
    )


def _feedback_url(given: str) -> str:
    from sayso.feedback.database import from_anywhere

    return from_anywhere(given) if given else ""


def _pretraining(given: str) -> str:
    from sayso.data.pretraining_images.opening import source_name

    return source_name(given)


def _filter(config: NewConfig, pretraining: str) -> str:
    """Raises: UserError: if it is none, or what is said of the images says nothing of these."""
    from sayso.data.pretraining_images.filters import parse_filter

    parse_filter(config.pretraining_filter)
    for name in ("image", "caption", "filter", "split"):
        if getattr(config, f"pretraining_{name}") and (not pretraining or find_world(pretraining)):
            raise UserError(
                f"--pretraining-{name} is for images in files; leave it out, or give --pretraining"
            )
    return config.pretraining_filter
