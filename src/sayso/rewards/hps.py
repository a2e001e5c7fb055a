"""HPS v2 and v2.1: a CLIP trained on how people ranked the images of a prompt."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from sayso.base.errors import UserError
from sayso.base.hub import PROCESSOR, copy_files
from sayso.base.weights import (
    ANOTHER_FILE,
    put,
    quiet_libraries,
    read_checkpoint,
    refuse_differences,
)
from sayso.data.clip import ClipEncoder
from sayso.rewards import ClipReward, PretrainedReward
from sayso.rewards._towers import refuse_bad_heads, refuse_bad_towers

FILES = {"2.0": "HPS_v2_compressed.pt", "2.1": "HPS_v2.1_compressed.pt"}
"""Version → its file in the hub's repository xswu/HPSv2."""

PLACES = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "visual.proj": "visual_projection.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
}
"""open_clip's names outside of the blocks → those of transformers."""
TRANSPOSED = {"visual.proj", "text_projection"}
"""Weights that open_clip multiplies from the right."""
BLOCK = re.compile(r"(?P<visual>visual\.)?transformer\.resblocks\.(?P<n>\d+)\.(?P<rest>.+)")
IN_BLOCK = {
    "ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
}  # fmt: skip


def in_transformers_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of an open_clip ViT under the names of transformers' `CLIPModel`.

    The joined projection of attention holds query, key and value in this order. A name that
    open_clip does not have stays as it is.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if match := BLOCK.fullmatch(name):
            tower = "vision_model" if match["visual"] else "text_model"
            where = f"{tower}.encoder.layers.{match['n']}."
            found |= _of_block(name, where, match["rest"], tensor)
        else:
            found[PLACES.get(name, name)] = tensor.T if name in TRANSPOSED else tensor
    return found


def _of_block(name: str, where: str, rest: str, tensor: Tensor) -> dict[str, Tensor]:
    module, _, part = rest.rpartition(".")
    if rest in ("attn.in_proj_weight", "attn.in_proj_bias"):
        kind = rest.rpartition("_")[2]
        names = [f"{where}self_attn.{letter}_proj.{kind}" for letter in "qkv"]
        return dict(zip(names, tensor.chunk(3), strict=True))
    return {f"{where}{IN_BLOCK[module]}.{part}" if module in IN_BLOCK else name: tensor}


@dataclass(frozen=True)
class _Letterbox:
    """A whole picture in a square: the longest side resized, the rest black, then normalised.

    As the authors do it, on floats; what bicubic resizing overshoots is clipped, which they do not.
    """

    side_px: int

    def __call__(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 s s"]:
        """What the network sees of pictures in [0, 1]; differentiable."""
        from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

        if not images.requires_grad:
            images = (images * 255).round() / 255
        scale = self.side_px / max(images.shape[-2:])
        height, width = (max(1, round(side * scale)) for side in images.shape[-2:])
        if scale != 1:
            small = F.interpolate(images, (height, width), mode="bicubic", antialias=True)
            images = small.clamp(0, 1)
        across, down = self.side_px - width, self.side_px - height
        edges = (across // 2, across - across // 2, down // 2, down - down // 2)
        mean, std = (
            images.new_tensor(v)[:, None, None] for v in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
        )
        return (F.pad(images, edges) - mean) / std


@dataclass
class Hps(PretrainedReward, ClipReward):
    """Cosine of a CLIP ViT-H/14 trained on the Human Preference Dataset v2; mostly 0.2 to 0.35.

    Scores of v2.0 and v2.1 cannot be compared. Heads and layers are of the published networks; give
    others for your own ViT in open_clip's names.

    Source: Wu et al. 2023, arXiv 2306.09341.
    """

    version: Literal["2.1", "2.0"] = "2.1"
    """Which of the published weights to fetch."""
    vision_heads: int = 16
    """Attention heads of the image tower."""
    vision_layers: int = 32
    """Layers of the image tower."""
    text_heads: int = 16
    """Attention heads of the text tower."""
    text_layers: int = 24
    """Layers of the text tower."""

    differentiable: ClassVar[bool] = True
    range: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    licence: ClassVar[str] = "apache-2.0"
    source: ClassVar[str] = "HPS v2 and v2.1, Wu et al. 2023, xswu/HPSv2"

    def __post_init__(self) -> None:
        if self.version not in FILES:
            raise UserError(f"version {self.version!r}; choose {' or '.join(FILES)}")
        refuse_bad_towers(self)

    def places(self) -> Mapping[str, str | None]:
        return {
            "weights": f"xswu/HPSv2/{FILES[self.version]}",
            "tokenizer": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        }

    def convert(self, found: Mapping[str, Path], folder: Path) -> None:
        """Write the weights as a `CLIPModel`, which has the same architecture, in their format."""
        from transformers import CLIPModel

        file = found["weights"]
        tensors = read_checkpoint(file)
        model: Any = CLIPModel(self._config(file, tensors))
        put(model, in_transformers_names(tensors), file, ANOTHER_FILE)
        formats = {tensor.dtype for tensor in tensors.values()}
        with quiet_libraries():
            model.to(formats.pop() if len(formats) == 1 else torch.float32).save_pretrained(folder)
        copy_files(found["tokenizer"], folder, PROCESSOR)

    def _config(self, file: Path, tensors: Mapping[str, Tensor]) -> Any:
        """The architecture: heads and layers as the options say, sizes as the weights have them."""
        from transformers import CLIPConfig

        towers = {
            "vision": ("visual.transformer.resblocks.0.mlp.c_fc.weight", self.vision_heads),
            "text": ("transformer.resblocks.0.mlp.c_fc.weight", self.text_heads),
        }
        needed = {*PLACES, *(name for name, _ in towers.values())}
        unknown = [k for k in tensors if k not in PLACES and not BLOCK.fullmatch(k)]
        refuse_differences(file, needed - tensors.keys(), unknown, advice=ANOTHER_FILE)
        for tower, (name, heads) in towers.items():
            refuse_bad_heads(file, tower, heads, tensors[name].shape[1])
        patches, words = tensors["visual.conv1.weight"], tensors["token_embedding.weight"]
        positions = len(tensors["visual.positional_embedding"]) - 1
        common = {"hidden_act": "gelu", "projection_dim": tensors["visual.proj"].shape[1]}
        vision = {
            "hidden_size": len(patches), "patch_size": patches.shape[-1],
            "image_size": isqrt(positions) * patches.shape[-1],
            "intermediate_size": len(tensors[towers["vision"][0]]),
            "num_attention_heads": self.vision_heads, "num_hidden_layers": self.vision_layers,
        }  # fmt: skip
        text = {
            "hidden_size": words.shape[1], "vocab_size": len(words),
            "max_position_embeddings": len(tensors["positional_embedding"]),
            "intermediate_size": len(tensors[towers["text"][0]]),
            "num_attention_heads": self.text_heads, "num_hidden_layers": self.text_layers,
            # the two last words of CLIP's vocabulary
            "bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1,
            "pad_token_id": len(words) - 1,
        }  # fmt: skip
        return CLIPConfig(
            text_config=common | text,
            vision_config=common | vision,
            projection_dim=common["projection_dim"],
        )

    def load(self, weights: Path, device: torch.device | str) -> None:
        """Load its own CLIP."""
        self.clip = ClipEncoder.of_reward(weights, device, _Letterbox)

    def score_embeddings(
        self, images: Float[Tensor, "b d"], texts: Float[Tensor, "b d"]
    ) -> Float[Tensor, " b"]:
        """The cosine of each pair, without CLIP's scale."""
        return F.cosine_similarity(images, texts, dim=1)
