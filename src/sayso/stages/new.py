"""Stage `new`: make a study folder."""

from dataclasses import dataclass
from pathlib import Path

from sayso.errors import UserError, check_seed
from sayso.samplers import checked
from sayso.study import Study, StudyInfo
from sayso.types import Sampler

CLIP = "openai/clip-vit-large-patch14"
"""The reward's encoder in the paper, and the default for every model but the tiny world's."""


@dataclass(frozen=True)
class NewConfig:
    """What a study is about; it cannot be changed later, for images and votes belong to it."""

    name: str = ""
    """A name for people; default: the folder's."""
    seed: int = 0
    """Seed of all prompts, images and training runs of the study; from 0 to 2⁶³ − 1."""
    base_model: str = "tinyworld"
    """The model to align: tinyworld, a diffusers folder, or a hub id."""
    clip_model: str = ""
    """CLIP for rewards and metrics: tinyworld, a transformers folder, or a hub id; default:
    tinyworld for tinyworld, else openai/clip-vit-large-patch14 as in the paper."""
    pretraining: str = ""
    """Natural images with captions: tinyworld, or a folder of images with a metadata.jsonl
    (file_name, text); default: tinyworld for tinyworld, else none."""
    num_inference_steps: int | None = None
    """Sampling steps; default: 10 for tinyworld, else 20."""
    guidance_scale: float | None = None
    """Classifier-free guidance; default: 3.0 for tinyworld, else 7.5."""
    eta: float = 0.0
    """Noise put in while sampling: 0 none, 1 as in DDPM."""
    image_size_px: int | None = None
    """Width and height of the images; default: 64 for tinyworld, else 512."""
    negative_prompt: str = ""
    """What guidance leads away from; default: the empty prompt."""
    feedback_url: str = ""
    """Database of the votes, such as postgresql://user@host/name; default: SQLite in the study."""


def new(path: Path, config: NewConfig | None = None) -> Study:
    """Make the study folder.

    Raises: UserError: if there is something at `path`, or an option is out of range.
    """
    config = config or NewConfig()
    check_seed(config.seed)
    sampler = _sampler(config)
    tiny = config.base_model == "tinyworld"
    info = StudyInfo(
        name=config.name or path.resolve().name,
        seed=config.seed,
        base_model=_absolute(config.base_model),
        clip_model=_absolute(config.clip_model or ("tinyworld" if tiny else CLIP)),
        pretraining=_pretraining(config.pretraining or ("tinyworld" if tiny else "")),
        sampler=sampler,
        feedback_url=_feedback_url(config.feedback_url),
    )
    return Study.create(path, info)


def _sampler(config: NewConfig) -> Sampler:
    from sayso.tinyworld.defaults import SAMPLER

    base = SAMPLER if config.base_model == "tinyworld" else Sampler()
    steps, scale, size = config.num_inference_steps, config.guidance_scale, config.image_size_px
    return checked(
        Sampler(
            num_inference_steps=base.num_inference_steps if steps is None else steps,
            guidance_scale=base.guidance_scale if scale is None else scale,
            eta=config.eta,
            image_size_px=base.image_size_px if size is None else size,
            negative_prompt=config.negative_prompt,
        )
    )


def _absolute(model: str) -> str:
    """A folder that exists is stored with its whole path: commands may run from elsewhere."""
    return str(Path(model).resolve()) if Path(model).is_dir() else model


def _feedback_url(given: str) -> str:
    from sayso.database import from_anywhere

    return from_anywhere(given) if given else ""


def _pretraining(given: str) -> str:
    if given in ("", "tinyworld") or Path(given).is_dir():
        return given if given in ("", "tinyworld") else _absolute(given)
    raise UserError(
        f"pre-training images {given!r}: there is no such folder; give a folder with images and "
        "a metadata.jsonl, or tinyworld"
    )
