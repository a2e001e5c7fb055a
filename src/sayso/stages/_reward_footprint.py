"""Bytes of a reward beside the model that is trained, from the files of its weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.filesize import decimal

from sayso.base import files
from sayso.base.weights import bytes_in_memory
from sayso.families._trace import trace_decoding
from sayso.rewards import reward_at_hand
from sayso.study.identity import NotHereError, NotMadeError
from sayso.study.study import Study


class RewardFootprint(NamedTuple):
    """What a reward takes.

    Attributes:
        name: of the reward.
        weights: bytes of all that it loads.
        clip: folder of the CLIP that gradients pass through; None = there is none.
        missing: why more is not known; "" = all is.
    """

    name: str
    weights: int = 0
    clip: Path | None = None
    missing: str = ""

    @property
    def part(self) -> str:
        """What a forecast calls it."""
        return f"reward {self.name}"

    def said(self, beside: int, otherwise: str) -> dict[str, str]:
        """What a forecast says of it.

        Args:
            beside: bytes beside the model; 0 = it is not there at the same time.
            otherwise: when it is there then.
        """
        said = [decimal(beside)] if beside else []
        if self.weights and not beside:
            said = [f"{decimal(self.weights)}, {otherwise}"]
        said += [self.missing] if self.missing else []
        return {f"memory, {self.part}": "; ".join(said)} if said else {}

    def backward(self, images: int) -> int:
        """Bytes of activations while a gradient goes through the CLIP to so many images."""
        return _through_clip(self.clip, images) if self.clip and images else 0


def reward_footprint(study: Study, name: str) -> RewardFootprint:
    """What the reward called `name` takes; a reward that is not here yet is said to be missing.

    Raises: UserError: if there can be no such reward, or its weights cannot be read.
    """
    try:
        reward, folders = reward_at_hand(study, name)
        weights = sum(bytes_in_memory(folder, reward.number_format_kept) for folder in folders)
    except (NotMadeError, NotHereError) as error:
        return RewardFootprint(name, missing=f"not counted: {error}")
    missing = ""
    if name.endswith(".py"):
        missing = "without what your own file loads" if weights else "what it loads is not counted"
    return RewardFootprint(name, weights, _clip_among(folders), missing)


def _clip_among(folders: Sequence[Path]) -> Path | None:
    """The folder with a CLIP; None if there is none."""
    for folder in folders:
        for config in sorted(folder.rglob("config.json")):
            if files.read_json(config).get("model_type") == "clip":
                return config.parent
    return None


def _through_clip(folder: Path, images: int) -> int:
    from transformers import CLIPConfig, CLIPModel

    config: Any = CLIPConfig.from_pretrained(folder)
    side = config.vision_config.image_size
    with torch.device("meta"):
        model: Any = CLIPModel(config).requires_grad_(False)

    def embed(pixels: torch.Tensor) -> torch.Tensor:
        return model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)

    return trace_decoding(model, embed, (images, 3, side, side), gradient=True).peak
