"""PickScore: a CLIP trained on which of two images people picked."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from sayso.base.hub import MODEL, PROCESSOR, copy_files
from sayso.data.clip import ClipEncoder
from sayso.rewards import ClipReward, PretrainedReward


def scaled_cosine(
    images: Float[Tensor, "b d"], texts: Float[Tensor, "b d"], log_scale: Float[Tensor, ""]
) -> Float[Tensor, " b"]:
    """exp(s) · cos(x, z): the logit by which CLIP compares an image and a text.

    Args:
        log_scale: s, which the checkpoint holds; ln 100 in the published one.
    Source: Kirstain et al. 2023, arXiv 2305.01569, Sec. 4.
    """
    return log_scale.exp() * F.cosine_similarity(images, texts, dim=1)


@dataclass
class PickScore(PretrainedReward, ClipReward):
    """Scaled cosine of a CLIP ViT-H/14 trained on Pick-a-Pic; mostly 18 to 24.

    Source: Kirstain et al. 2023, arXiv 2305.01569.
    """

    differentiable: ClassVar[bool] = True
    range: ClassVar[tuple[float, float]] = (-100.0, 100.0)
    licence: ClassVar[str] = "mit"
    source: ClassVar[str] = "PickScore v1, Kirstain et al. 2023, yuvalkirstain/PickScore_v1"

    def places(self) -> Mapping[str, str | None]:
        return {"weights": "yuvalkirstain/PickScore_v1", "tokenizer": None}

    def convert(self, found: Mapping[str, Path], folder: Path) -> None:
        """Copy the CLIP, in transformers' layout; tokenizer and preprocessor may be apart."""
        copy_files(found["weights"], folder, MODEL)
        copy_files(found.get("tokenizer", found["weights"]), folder, PROCESSOR)

    def load(self, weights: Path, device: torch.device | str) -> None:
        """Load its own CLIP; the study's is not used."""
        self.clip = ClipEncoder.of_reward(weights, device)

    def score_embeddings(
        self, images: Float[Tensor, "b d"], texts: Float[Tensor, "b d"]
    ) -> Float[Tensor, " b"]:
        """The scaled cosine of each pair."""
        return scaled_cosine(images, texts, self.clip.model.logit_scale)
