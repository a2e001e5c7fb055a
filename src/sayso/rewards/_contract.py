"""Reward: what training maximises. Its base classes, and how one is found by name."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sayso.base.errors import UserError, quoted, unknown_name
from sayso.base.plugins import is_plugin, load_plugin, plugin_names, refuse_bad_options
from sayso.base.types import Prompt, Sample
from sayso.data.clip import ClipEncoder, embed_samples, embed_together, resolve_clip, stacked
from sayso.study.identity import canonical_run
from sayso.study.inputs import refuse_edited
from sayso.study.run import Run
from sayso.study.study import Study

BATCH_SIZE = 64
"""Images scored at a time, at most, when scores are computed from pixels."""


@dataclass
class Reward(ABC):
    """Says how well images fit their prompts; higher is better.

    A plug-in is one file with one subclass, a dataclass whose fields are its options. `range`
    bounds the scores. `differentiable` promises that gradients pass from `score` to the images.
    """

    differentiable: ClassVar[bool] = False
    range: ClassVar[tuple[float, float]] = (float("-inf"), float("inf"))

    def prepare(  # noqa: B027 (a reward may have nothing to load)
        self, study: Study, device: torch.device | str, weights: Path | None = None
    ) -> None:
        """Load what scoring needs; called once before `score`.

        Args:
            study: names the CLIP to use.
            device: where `score` computes and where its result lies.
            weights: folder that `fit` wrote; None if there was no fit.
        """

    @abstractmethod
    def score(
        self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[str]
    ) -> Float[Tensor, " b"]:
        """Score each image, RGB in [0, 1], against its own prompt."""

    def prepare_samples(  # noqa: B027 (a reward may keep nothing)
        self, study: Study, samples: Sequence[Sample]
    ) -> None:
        """Work out what scoring needs of stored samples, and keep it in the study.

        Called once before `score_samples`, by all processes of a launch alike, to share the work.
        """

    def score_samples(
        self, study: Study, samples: Sequence[Sample], texts: Sequence[str]
    ) -> Float[Tensor, " n"]:
        """Score stored samples against their texts, on the CPU, without gradients.

        Raises: UserError: if there is not one score for each, a score is not finite (the first
            sample is named) or an image is missing or damaged.
        """
        if not samples:
            return torch.zeros(0)
        with torch.no_grad():
            scores = self._score_stored(study, samples, texts).float().cpu()
        if scores.shape != (len(samples),):
            raise UserError(
                f"reward {type(self).__name__} gave scores of shape {list(scores.shape)} for "
                f"{len(samples)} images; let its score return one number for each"
            )
        for sample, finite in zip(samples, scores.isfinite().tolist(), strict=True):
            if not finite:
                raise UserError(
                    f"reward {type(self).__name__} is NaN or infinite for sample {sample.id}; "
                    "look at its image and at the reward's weights"
                )
        return scores

    def _score_stored(
        self, study: Study, samples: Sequence[Sample], texts: Sequence[str]
    ) -> Tensor:
        """Scores from pixels; overridden where something cached makes it cheaper."""
        left, scores = iter(texts), []
        # imported images may have any shape
        for images in stacked((study.image(sample) for sample in samples), BATCH_SIZE):
            scores.append(self.score(images, list(islice(left, len(images)))))
        return torch.cat(scores)


class ClipReward(Reward):
    """A reward that sees image and text only through CLIP, and stored samples through the cache."""

    clip: ClipEncoder
    """Set by `prepare`."""

    def prepare(
        self,
        study: Study,
        device: torch.device | str,
        weights: Path | None = None,  # noqa: ARG002 (for those that are trained)
    ) -> None:
        """Load the study's CLIP."""
        self.clip = ClipEncoder.load(study.info.clip_model, device)

    @abstractmethod
    def score_embeddings(
        self, images: Float[Tensor, "b d"], texts: Float[Tensor, "b d"]
    ) -> Float[Tensor, " b"]:
        """Score pairs of CLIP embeddings (projected, not normalised) on the reward's device."""

    def score(
        self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[str]
    ) -> Float[Tensor, " b"]:
        """Score each image, RGB in [0, 1], against its own prompt; differentiable to the images."""
        return self.score_embeddings(self.clip.images(images), self.clip.texts(prompts))

    def prepare_samples(self, study: Study, samples: Sequence[Sample]) -> None:
        """Embed the images that are not embedded yet."""
        embed_together(study, self.clip, samples)

    def _score_stored(
        self, study: Study, samples: Sequence[Sample], texts: Sequence[str]
    ) -> Tensor:
        words = self.clip.texts(texts)
        images = embed_samples(study, self.clip, samples).to(words.device)
        return self.score_embeddings(images, words)


@dataclass(frozen=True, slots=True)
class RatedSamples:
    """What a reward learns from: samples, their prompts and the share of good ratings of each.

    `labels` are in [0, 1] (mean of the raters' good = 1, bad = 0; skips do not count). Where
    `heldout` is true the row must not be learned from; a prompt's rows are all on one side.
    """

    samples: list[Sample]
    prompts: list[Prompt]
    labels: list[float]
    heldout: list[bool]


class TrainableReward(Reward):
    """A reward that the stage `fit` trains; its fields are its hyper-parameters."""

    @abstractmethod
    def fit(self, study: Study, data: RatedSamples, run: Run) -> dict[str, object]:
        """Learn from the rows that are not held out (those may only decide when to stop).

        Called after `prepare`; afterwards the reward scores with what it learned, and
        `run.weights` holds it (written whole or not at all) for a later `prepare(weights=...)`.

        Returns: facts for result.json, JSON values.
        Raises: UserError: if the loss is not finite; the step is named.
        """


def load_reward(study: Study, name: str, device: torch.device | str = "cpu") -> Reward:
    """The reward called `name`, ready to score: a finished run of `fit`, or a plug-in.

    Raises: UserError: if there is no such run or plug-in, the run is not finished, one's own file
        was edited since its fit, or the plug-in has to be trained first.
    """
    if not is_plugin("reward", name):
        return _load_fitted(_fit_run(study, name), study, device)
    kind: type[Any] = load_plugin("reward", name, Reward)
    refuse_bad_options("reward", kind)
    if issubclass(kind, TrainableReward):
        raise UserError(
            f"reward {name!r} must be trained first: run sayso fit --reward {quoted(name)}, then "
            f"give runs/fit-{Path(name).stem}"
        )
    reward = kind()
    reward.prepare(study, device)
    return reward


def reward_folders(study: Study, name: str) -> list[Path]:
    """The folders of the weights that `load_reward` reads: CLIP's, and those of the fit if any."""
    if is_plugin("reward", name):
        plugin, runs = name, []
    else:
        run = _fit_run(study, name)
        plugin, runs = run.config["reward"], [run.weights]
    uses_clip = issubclass(load_plugin("reward", plugin, Reward), ClipReward)
    return [resolve_clip(study.info.clip_model), *runs] if uses_clip else runs


def is_differentiable(study: Study, name: str) -> bool:
    """Whether gradients pass through the reward called `name`, without loading it."""
    plugin = name if is_plugin("reward", name) else _fit_run(study, name).config["reward"]
    return load_plugin("reward", plugin, Reward).differentiable


def load_trainable_reward(name: str) -> type[TrainableReward]:
    """The class of the reward plug-in `name` that the stage `fit` can train.

    Raises: UserError: if there is none, or the plug-in needs no training.
    """
    found = load_plugin("reward", name, Reward)
    refuse_bad_options("reward", found)
    if not issubclass(found, TrainableReward):
        able = [p for p in plugin_names("reward") if _is_trainable(p)]
        raise UserError(f"reward {name!r} needs no training; fit one of {', '.join(able)}")
    return found


def _is_trainable(plugin: str) -> bool:
    return issubclass(load_plugin("reward", plugin, Reward), TrainableReward)


def _fit_run(study: Study, name: str) -> Run:
    fits = [run.name for run in study.runs("fit")]
    full_name = canonical_run(study, name)
    if full_name not in fits:
        fixed = [p for p in plugin_names("reward") if not _is_trainable(p)]
        raise unknown_name("reward", name, [*fits, *fixed])
    return study.find_run(full_name)


def _load_fitted(run: Run, study: Study, device: torch.device | str) -> Reward:
    if not run.finished:
        raise UserError(f"{run.name} is not finished; run the sayso fit that made it again")
    config = run.config
    refuse_edited(run, "reward", config["reward"])
    reward = load_trainable_reward(config["reward"])(**config["options"])
    reward.prepare(study, device, run.weights)
    return reward
