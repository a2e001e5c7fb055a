"""The judge of truth: reads count, colour, object and background off the picture alone.

`python -m sayso.tinyworld.judge_check` measures it on pictures never used in training.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from sayso.base.errors import UserError
from sayso.base.types import Prompt
from sayso.base.weights import put, read_tensors
from sayso.tinyworld import paths
from sayso.tinyworld.judge_network import CELL_PX, JudgeNetwork, Maps
from sayso.tinyworld.reading import THRESHOLD, Detection, Reading, Verdict, verdict
from sayso.tinyworld.scenes import BACKGROUNDS, COLOURS, OBJECTS

__all__ = ["Detection", "Judge", "Reading", "Verdict", "verdict"]

WEIGHTS = "judge.safetensors"
_BATCH = 128
_REACH = 2  # cells; the centres of two objects are at least three apart


@dataclass(frozen=True, slots=True)
class Judge:
    """Reads pictures; shares no weights and no features with any reward."""

    network: JudgeNetwork

    @classmethod
    def load(cls, path: Path | None = None, device: str | torch.device = "cpu") -> "Judge":
        """Load the shipped judge, or one from another folder.

        Raises: UserError: if there are no weights in the folder, or not the judge's.
        """
        file = (path or paths().judge) / WEIGHTS
        if not file.is_file():
            raise UserError(
                f"the judge's weights {file} are missing; "
                "train them with `python -m sayso.tinyworld.factory.judge_training`"
            )
        network = JudgeNetwork()
        put(network, {k: v.float() for k, v in read_tensors(file).items()}, file)
        return cls(network.eval().requires_grad_(False).to(device))

    def read(self, images: Float[Tensor, "b 3 h w"]) -> list[Reading]:
        """Read pictures with values in [0, 1]; other sizes than 64×64 are resized first."""
        return [reading for maps in self._maps(images) for reading in _readings(maps)]

    def verdicts(
        self,
        images: Float[Tensor, "b 3 h w"],
        prompts: Sequence[Prompt] | Sequence[Mapping[str, str | int]],
    ) -> list[Verdict]:
        """Judge each picture against its own prompt (or the prompt's slots).

        Raises: ValueError: if the numbers differ or a prompt names no object.
        """
        if len(images) != len(prompts):
            raise ValueError(f"{len(images)} images but {len(prompts)} prompts")
        slots = [prompt.slots if isinstance(prompt, Prompt) else prompt for prompt in prompts]
        return [verdict(*pair) for pair in zip(self.read(images), slots, strict=True)]

    def features(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 128"]:
        """Pooled features of the picture, for distances between sets of pictures."""
        return torch.cat([maps.features.cpu() for maps in self._maps(images)])

    @torch.no_grad()
    def _maps(self, images: Tensor) -> list[Maps]:
        device = next(self.network.parameters()).device
        if images.shape[-2:] != (64, 64):
            images = F.interpolate(images, (64, 64), mode="bilinear", antialias=True)
        return [self.network(part.to(device).float()) for part in images.split(_BATCH)]


def as_images(pictures: Sequence[np.ndarray]) -> Float[Tensor, "b 3 h w"]:
    """Turn uint8 pictures [h, w, 3] into a tensor with values in [0, 1]."""
    stacked = torch.from_numpy(np.stack(pictures))
    return stacked.permute(0, 3, 1, 2).float().div_(255)


def _readings(maps: Maps) -> list[Reading]:
    """Keep the local maxima of the objectness and name what stands there."""
    score = maps.objectness.sigmoid()
    best = F.max_pool2d(score[:, None], 2 * _REACH + 1, stride=1, padding=_REACH)[:, 0]
    peak = torch.where(score == best, score, torch.zeros_like(score)).cpu()
    names = [maps.object.softmax(1).max(1), maps.colour.softmax(1).max(1)]
    cells = [value.cpu() for name in names for value in name]
    sure, where = maps.background.softmax(1).max(1)
    return [
        Reading(
            objects=_detections(peak[i], [value[i] for value in cells]),
            background=BACKGROUNDS[int(where[i])],
            background_score=float(sure[i]),
            faint=float(peak[i][peak[i] < THRESHOLD].max()),
        )
        for i in range(len(peak))
    ]


def _detections(peak: Tensor, cells: list[Tensor]) -> tuple[Detection, ...]:
    object_score, object_index, colour_score, colour_index = cells
    found = [
        Detection(
            OBJECTS[int(object_index[y, x])],
            COLOURS[int(colour_index[y, x])],
            float(peak[y, x]),
            float(object_score[y, x]),
            float(colour_score[y, x]),
            (x + 0.5) * CELL_PX,
            (y + 0.5) * CELL_PX,
        )
        for y, x in (peak >= THRESHOLD).nonzero().tolist()
    ]
    return tuple(sorted(found, key=lambda item: -item.score))
