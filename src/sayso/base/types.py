"""The vocabulary on one page: what passes between stages. No torch, no file names."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

from sayso.base.devices import BasePrecision

Split = Literal["train", "validation", "seen", "unseen", "fidelity"]
Value = Literal["good", "bad", "skip"]
Question = Literal["alignment", "fidelity"]
QUESTIONS: tuple[Question, ...] = get_args(Question)
Choice = Literal["left", "right", "tie", "both_good", "both_bad", "skip"]
Outcome = Literal["left", "right", "tie", "skip"]

SPLITS: tuple[Split, ...] = get_args(Split)
CATEGORIES = ("count", "colour", "background", "combination")
"""The paper's four prompt groups, in its order. A user's own prompts may name any category."""


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def outcome(choice: Choice) -> Outcome:
    """What a choice comes to: "both good" and "both bad" are two kinds of tie."""
    return "tie" if choice in ("both_good", "both_bad") else choice


def digest(value: object, length: int = 16) -> str:
    """First `length` hex digits of the SHA-256 of a JSON value; the same on every machine."""
    return hashlib.sha256(_CANONICAL.encode(value).encode()).hexdigest()[:length]


@dataclass(frozen=True, slots=True)
class Prompt:
    """Text given to the model.

    `slots` holds what the text asks for: object (str) and, where asked, count (int ≥ 1), colour
    (str), background (str); empty for free text. `split`: "train" prompts feed rating and
    training; "seen" and "unseen" are test prompts, never trained on, with objects that do or do
    not occur in training; "fidelity" prompts are captions of held-out pre-training images, drawn
    only to measure the distance to those images.
    """

    id: str
    text: str
    category: str
    slots: Mapping[str, str | int]
    split: Split


class Size(NamedTuple):
    """Width and height of an image, in pixels."""

    width: int
    height: int

    @property
    def pixels(self) -> int:
        return self.width * self.height

    @property
    def recorded(self) -> int | list[int]:
        """As hashes have it: one number for a square, as before there were others."""
        return self.width if self.width == self.height else [self.width, self.height]

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


STABLE_DIFFUSION_SIZE = Size(512, 512)


@dataclass(frozen=True, slots=True)
class Sampler:
    """How an image is drawn, in diffusers' names.

    `true_cfg_scale` is for models that are told `guidance_scale` as a number and can be guided away
    from the negative prompt beside; 1 = no such guidance. `base_precision` is how the weights were
    kept in memory.
    """

    num_inference_steps: int = 20
    guidance_scale: float = 7.5
    eta: float = 0.0
    image_size: Size = STABLE_DIFFUSION_SIZE
    negative_prompt: str = ""
    true_cfg_scale: float = 1.0
    base_precision: BasePrecision = "fp32"


@dataclass(frozen=True, slots=True)
class Sample:
    """One generated image and its record.

    `model` is "base" or a run such as "runs/align-rwr", `model_identity` a digest of what stood
    behind that name when the image was drawn; "" if it was not recorded. `path` is relative to the
    study. `latents` names the safetensors shard (relative to the study) that keeps the final
    latents under the sample's id.
    """

    id: str
    prompt_id: str
    model: str
    seed: int
    sampler: Sampler
    path: str
    latents: str
    model_identity: str = ""


def sample_id(
    prompt_id: str, model: str, seed: int, sampler: Sampler, model_identity: str = ""
) -> str:
    """The id of a sample: a hash of all that determines its pixels, so repeating finds it again."""
    drawn = [
        sampler.num_inference_steps, sampler.guidance_scale, sampler.eta,
        sampler.image_size.recorded, sampler.negative_prompt,
    ]  # fmt: skip
    # as before there were such fields
    drawn += [] if sampler.true_cfg_scale == 1 else [sampler.true_cfg_scale]
    drawn += [] if sampler.base_precision == "fp32" else [sampler.base_precision]
    recorded = [model_identity] if model_identity else []
    return digest([prompt_id, model, seed, drawn, *recorded])


@dataclass(frozen=True, slots=True)
class Rating:
    """One image rated by one rater.

    `simulated` raters are programs and are never mixed with people. `shown` records what the
    rater saw (position, neighbours); `supersedes` is the id of the rating this one replaces.
    Times are seconds since the epoch (UTC).
    """

    id: str
    sample_id: str
    rater: str
    question: Question
    value: Value
    simulated: bool
    shown_at: float
    answered_at: float
    reason: str = ""
    shown: Mapping[str, object] = field(default_factory=dict[str, object])
    supersedes: str | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two sets of images of one prompt compared by one rater; who stood left is stored.

    A skip says that the rater gave no verdict; why is in `shown` under "reason".
    """

    id: str
    prompt_id: str
    left_ids: tuple[str, ...]
    right_ids: tuple[str, ...]
    left_model: str
    right_model: str
    rater: str
    question: Question
    value: Choice
    simulated: bool
    shown_at: float
    answered_at: float
    shown: Mapping[str, object] = field(default_factory=dict[str, object])
    supersedes: str | None = None


@dataclass(frozen=True, slots=True)
class Preference:
    """Of two images of one prompt, the one that raters find better.

    `certainty` in (0, 1] is the chance that chosen is good and rejected bad, for independent
    images, as far as the raters' ratings say: 1 if all agree.
    """

    prompt_id: str
    chosen_id: str
    rejected_id: str
    certainty: float
    simulated: bool
    question: Question
