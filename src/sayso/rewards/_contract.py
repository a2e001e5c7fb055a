"""Reward: what training maximises. Its base classes."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sayso.base.errors import UserError
from sayso.base.progress import console, progress
from sayso.base.types import Prompt, Sample
from sayso.data.clip import ClipEncoder, embed_samples, embed_together, stacked
from sayso.data.reading import Read
from sayso.study.run import Run
from sayso.study.study import Study

if TYPE_CHECKING:
    from PIL import Image

BATCH_SIZE = 64
"""Images scored at a time, at most, when scores are computed from pixels."""
LOOK = "look at its image and at the reward's weights"
"""What to do about a score that is not finite."""


@dataclass
class Reward(ABC):
    """Says how well images fit their prompts; higher is better.

    A plug-in is one file with one subclass, a dataclass whose fields are its options. `range`
    bounds the scores. `differentiable` promises that gradients pass from `score` to the images.
    `licence` and `source` are of weights that others trained: an SPDX identifier, and who published
    them where; "" if there are none.
    """

    differentiable: ClassVar[bool] = False
    range: ClassVar[tuple[float, float]] = (float("-inf"), float("inf"))
    licence: ClassVar[str] = ""
    source: ClassVar[str] = ""
    # no field, for it is no option
    has_said_cut = False
    """Whether it was said that of long prompts only the beginning counts, or somebody else will."""

    def prepare(  # noqa: B027 (a reward may have nothing to load)
        self, study: Study, device: torch.device | str, weights: Path | None = None
    ) -> None:
        """Load what scoring needs; called once before `score`.

        Args:
            study: names the CLIP to use.
            device: where `score` computes and where its result lies.
            weights: folder that `fit` or `add_reward` wrote; None if neither did.
        """

    @abstractmethod
    def score(
        self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[str]
    ) -> Float[Tensor, " b"]:
        """Score each image, RGB in [0, 1], against its own prompt.

        Called through `checked_score`.
        """

    @property
    def number_format_kept(self) -> torch.dtype | None:
        """Number format in which `prepare` keeps weights; None = that of the files.

        A forecast of the memory that a training takes asks for it.
        """
        return torch.float32

    def how_read(self, prompts: Sequence[str]) -> list[Read]:
        """How much of each prompt `score` reads; all of it where nothing else is known."""
        return [Read.WHOLE] * len(prompts)

    def checked_score(
        self,
        images: Float[Tensor, "b 3 h w"],
        prompts: Sequence[str],
        names: Sequence[str],
        advice: str = LOOK,
    ) -> Float[Tensor, " b"]:
        """What `score` returns, in float32, with its gradient if it has one.

        Args:
            names: what a message calls each image.
            advice: what to do about a score that is not finite.
        Raises: UserError: if there is not one score for each, or a score is not finite (the first
            image is named).
        """
        self._say_cut(prompts)
        scores = self.score(images, prompts)
        self._refuse_bad(scores, names, advice)
        return scores.float()

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
        self._say_cut(texts, are_all=True)
        with torch.no_grad():
            scores = self._score_stored(study, samples, texts).float().cpu()
        self._refuse_bad(scores, _names(samples))
        return scores

    def score_pictures(
        self, pictures: "Iterable[Image.Image]", texts: Sequence[str], names: Sequence[str]
    ) -> Float[Tensor, " n"]:
        """Score pictures of any sizes against their texts, on the CPU, without gradients.

        Args:
            names: what a message calls each.
        Raises: UserError: if there is not one score for each, or a score is not finite (the first
            picture is named).
        """
        with torch.no_grad():
            return self._in_portions(pictures, texts, names).cpu()

    def _say_cut(self, prompts: Sequence[str], *, are_all: bool = False) -> None:
        """Say, once, that of long prompts only the beginning counts.

        Args:
            are_all: whether there will be no others.
        """
        if self.has_said_cut or not (cut := self.how_read(prompts).count(Read.BEGINNING)):
            return
        self.has_said_cut = True
        which = f"{cut} of {len(prompts)}" if are_all else "some"
        console.print(
            f"{which} prompts are longer than reward {type(self).__name__} reads; only their "
            "beginning counts, as in its authors' code",
            soft_wrap=True,
        )

    def _refuse_bad(self, scores: object, names: Sequence[str], advice: str = LOOK) -> None:
        reward = f"reward {type(self).__name__}"
        images = "1 image" if len(names) == 1 else f"{len(names)} images"
        if not isinstance(scores, Tensor):
            raise UserError(
                f"{reward} gave a {type(scores).__name__} for {images}; let its score return a "
                "tensor with one number for each"
            )
        if scores.shape != (len(names),):
            raise UserError(
                f"{reward} gave scores of shape {list(scores.shape)} for {images}; let its score "
                "return one number for each"
            )
        for name, finite in zip(names, scores.isfinite().tolist(), strict=True):
            if not finite:
                raise UserError(f"{reward} is NaN or infinite for {name}; {advice}")

    def _score_stored(
        self, study: Study, samples: Sequence[Sample], texts: Sequence[str]
    ) -> Tensor:
        """Scores from pixels; overridden where something cached makes it cheaper."""
        with progress("scoring images", len(samples)) as advance:
            # imported images may have any shape
            pictures = (study.image(s) for s in samples)
            return self._in_portions(pictures, texts, _names(samples), advance)

    def _in_portions(
        self,
        pictures: "Iterable[Image.Image]",
        texts: Sequence[str],
        names: Sequence[str],
        advance: Callable[[int], object] = lambda _: None,
    ) -> Tensor:
        scores, at = list[Tensor](), 0
        for images in stacked(pictures, BATCH_SIZE):
            rows = slice(at, at := at + len(images))
            scores.append(self.checked_score(images, texts[rows], names[rows]))
            advance(len(images))
        return torch.cat(scores)


def _names(samples: Sequence[Sample]) -> list[str]:
    return [f"sample {sample.id}" for sample in samples]


class ClipReward(Reward):
    """A reward computed from CLIP embeddings alone; those of stored samples are cached."""

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

    def how_read(self, prompts: Sequence[str]) -> list[Read]:
        """How much of each prompt CLIP reads."""
        return self.clip.how_read(prompts)

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


class PretrainedReward(Reward):
    """A reward that others trained, whose published weights the stage `reward` adds to a study.

    `convert` writes them once, as safetensors and under the names of transformers; `load` reads
    them there and refuses whatever is missing, unexpected or not finite.
    """

    def prepare(
        self,
        study: Study,  # noqa: ARG002 (whose CLIP is not used)
        device: torch.device | str,
        weights: Path | None = None,
    ) -> None:
        """Load what `convert` wrote."""
        assert weights is not None, "sayso reward has written them"
        self.load(weights, device)

    def places(self) -> Mapping[str, str | None]:
        """What the reward is made of → where that is published.

        "" where it has to be given, None where it may be left out. The names are among `weights`,
        `tokenizer` and `clip`, the options of the stage.
        """
        return {"weights": ""}

    @abstractmethod
    def convert(self, found: Mapping[str, Path], folder: Path) -> None:
        """Write to the empty `folder` all that `load` reads.

        Args:
            found: each of `places` on this machine, a file or a folder.
        Raises: UserError: if it is not what its authors published: a weight is missing, unexpected
            or of another shape (the first ones are named), or not finite.
        """

    @abstractmethod
    def load(self, weights: Path, device: torch.device | str) -> None:
        """Load what scoring needs from the folder that `convert` wrote; called once."""
