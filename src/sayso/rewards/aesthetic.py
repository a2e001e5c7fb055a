"""LAION's aesthetic predictor: how people rated pictures like this, whatever they show."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from sayso.base.errors import UserError
from sayso.base.hub import MODEL, PROCESSOR, copy_files
from sayso.base.types import Sample
from sayso.base.weights import ANOTHER_FILE, read_checkpoint, read_tensors
from sayso.data.clip import ClipEncoder, embed_samples, embed_together
from sayso.rewards import PretrainedReward
from sayso.study.study import Study

WEIGHT = re.compile(r"(?:layers\.(?P<layer>\d+)\.)?(?P<part>weight|bias)")
"""Names in the published files: `layers.0.weight` …, or `weight` where there is one layer."""


def collapsed(
    layers: Sequence[tuple[Float[Tensor, "_ _"], Float[Tensor, " _"]]],
) -> tuple[Float[Tensor, " d"], Float[Tensor, ""]]:
    """The one affine map that linear layers without activations between them come to.

    W₂(W₁x + b₁) + b₂ = (W₂W₁)x + (W₂b₁ + b₂), computed in double precision.

    Args:
        layers: weight and bias of each, first to last; the last has one output.
    """
    width = layers[0][0].shape[1]
    weight, bias = torch.eye(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
    for own_weight, own_bias in layers:
        weight, bias = own_weight.double() @ weight, own_weight.double() @ bias + own_bias.double()
    return weight[0].float(), bias[0].float()


@dataclass
class Aesthetic(PretrainedReward):
    """An affine map of the direction of CLIP's image embedding; the prompt does not count.

    Made for scores from 1 to 10; images mostly get 4.5 to 7.

    Source: Schuhmann 2022, LAION-Aesthetics.
    """

    differentiable: ClassVar[bool] = True
    licence: ClassVar[str] = "apache-2.0 (v2) or mit (v1)"
    source: ClassVar[str] = (
        "LAION aesthetic predictor, Schuhmann 2022; v2: "
        "christophschuhmann/improved-aesthetic-predictor (Apache-2.0), v1: "
        "LAION-AI/aesthetic-predictor (MIT)"
    )

    def places(self) -> Mapping[str, str | None]:
        return {"weights": "", "clip": "openai/clip-vit-large-patch14"}

    def convert(self, found: Mapping[str, Path], folder: Path) -> None:
        """Collapse the published layers, five of v2 or one of v1, and copy the CLIP."""
        weight, bias = collapsed(_layers(found["weights"]))
        clip = folder / "clip"
        clip.mkdir()
        copy_files(found["clip"], clip, (*MODEL, *PROCESSOR))
        save_file({"weight": weight, "bias": bias}, folder / "aesthetic.safetensors")

    def load(self, weights: Path, device: torch.device | str) -> None:
        """Load its own CLIP and the map.

        Raises: UserError: if the map is for embeddings of another width.
        """
        self.clip = ClipEncoder.of_reward(weights / "clip", device)
        tensors = read_tensors(weights / "aesthetic.safetensors")
        self._weight, self._bias = (tensors[k].to(device) for k in ("weight", "bias"))
        if len(self._weight) != self.clip.width:
            raise UserError(
                f"the weights expect CLIP embeddings of width {len(self._weight)}, but those of "
                f"this CLIP model have width {self.clip.width}; give the --clip that the weights "
                "were trained with"
            )

    def score(
        self,
        images: Float[Tensor, "b 3 h w"],
        prompts: Sequence[str],  # noqa: ARG002 (any prompt)
    ) -> Float[Tensor, " b"]:
        """Score each image, RGB in [0, 1]; differentiable to the images."""
        return self._score_embeddings(self.clip.images(images))

    def prepare_samples(self, study: Study, samples: Sequence[Sample]) -> None:
        """Embed the images that are not embedded yet."""
        embed_together(study, self.clip, samples)

    def _score_stored(
        self,
        study: Study,
        samples: Sequence[Sample],
        texts: Sequence[str],  # noqa: ARG002 (any prompt)
    ) -> Tensor:
        embeddings = embed_samples(study, self.clip, samples)
        return self._score_embeddings(embeddings.to(self._weight.device))

    def _score_embeddings(self, images: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        # no matrix product, which autocast would round
        return (F.normalize(images, dim=1) * self._weight).sum(1) + self._bias


def _layers(file: Path) -> list[tuple[Tensor, Tensor]]:
    """Weight and bias of each layer of the published file, first to last.

    Raises: UserError: if a name is none of a layer, a layer lacks one of the two, or they do not
        fit on each other.
    """
    tensors = read_checkpoint(file)
    names = {key: WEIGHT.fullmatch(key) for key in tensors}
    found: dict[int, dict[str, Tensor]] = {}
    for key, match in names.items():
        if match:
            found.setdefault(int(match["layer"] or 0), {})[match["part"]] = tensors[key]
    odd = [key for key, match in names.items() if not match]
    odd += [f"layers.{n}" for n, layer in found.items() if len(layer) < 2]
    if odd or not found:
        raise UserError(
            f"{file} is not an aesthetic predictor, whose weights are layers.<n>.weight and .bias, "
            f"but for {', '.join(odd[:3]) or 'nothing'}; {ANOTHER_FILE}"
        )
    layers = [(found[n]["weight"], found[n]["bias"]) for n in sorted(found)]
    shapes = [list(weight.shape) for weight, _ in layers]
    fits = all(lower[0] == upper[1] for lower, upper in pairwise(shapes)) and shapes[-1][0] == 1
    if not fits or any(bias.shape != weight.shape[:1] for weight, bias in layers):
        raise UserError(
            f"the layers of {file} do not fit on each other (shapes {shapes}); {ANOTHER_FILE}"
        )
    return layers
