"""CLIP similarity: the reward that needs no feedback, and the baseline for those that do."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from sayso.rewards import ClipReward


@dataclass
class ClipScore(ClipReward):
    """Cosine of CLIP's image and text embeddings.

    Source: Radford et al. 2021, arXiv 2103.00020; as a measure Hessel et al. 2021, arXiv
        2104.08718, without its factor 2.5 and its cut at 0.
    """

    differentiable: ClassVar[bool] = True
    range: ClassVar[tuple[float, float]] = (-1.0, 1.0)

    def score_embeddings(
        self, images: Float[Tensor, "b d"], texts: Float[Tensor, "b d"]
    ) -> Float[Tensor, " b"]:
        """The cosine of each pair."""
        return F.cosine_similarity(images, texts, dim=1)
