"""ImageReward: BLIP reads image and prompt together, and an affine map makes the score."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isqrt
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn

from sayso.base import files
from sayso.base.hub import PROCESSOR, copy_files
from sayso.base.weights import (
    ANOTHER_FILE,
    load_tokenizer,
    put,
    quiet_libraries,
    read_checkpoint,
    read_tensors,
    refuse_differences,
)
from sayso.data.clip_preprocessing import Preprocessing
from sayso.data.reading import Read, how_read
from sayso.rewards import PretrainedReward
from sayso.rewards._towers import refuse_bad_heads, refuse_bad_towers

MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Of the raw scores on the authors' training images."""
MOST_TOKENS = 35
"""What the network was trained to read of a prompt; the rest is cut."""
UNUSED = re.compile(
    r"blip\.((vision|text)_proj\.(weight|bias)|text_encoder\.embeddings\.position_ids)"
)
"""Weights of the checkpoint that its authors' score does not use."""
LINEAR = (0, 2, 4, 6, 7)
"""Where the linear layers stand in the authors' MLP; between them were dropouts."""

NAMES = (
    (r"blip\.visual_encoder\.cls_token", "vision.embeddings.class_embedding"),
    (r"blip\.visual_encoder\.pos_embed", "vision.embeddings.position_embedding"),
    (r"blip\.visual_encoder\.patch_embed\.proj\.", "vision.embeddings.patch_embedding."),
    (r"blip\.visual_encoder\.blocks\.(\d+)\.norm(\d)\.", r"vision.encoder.layers.\1.layer_norm\2."),
    (
        r"blip\.visual_encoder\.blocks\.(\d+)\.attn\.qkv\.",
        r"vision.encoder.layers.\1.self_attn.qkv.",
    ),
    (
        r"blip\.visual_encoder\.blocks\.(\d+)\.attn\.proj\.",
        r"vision.encoder.layers.\1.self_attn.projection.",
    ),
    (r"blip\.visual_encoder\.blocks\.(\d+)\.mlp\.", r"vision.encoder.layers.\1.mlp."),
    (r"blip\.visual_encoder\.norm\.", "vision.post_layernorm."),
    (r"blip\.text_encoder\.", "text."),
)
"""The authors' names, from the beginning → those of `_Network`."""


def in_transformers_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the names of transformers' BLIP, without those that no score uses.

    A name that the authors' code does not have stays as it is.
    """
    return {_renamed(name): t for name, t in tensors.items() if not UNUSED.fullmatch(name)}


def _renamed(name: str) -> str:
    for theirs, ours in NAMES:
        renamed, found = re.subn(f"^{theirs}", ours, name)
        if found:
            return renamed
    return name


class _Network(nn.Module):
    """The image's tokens, the prompt read with cross-attention to them, the map of its first."""

    def __init__(self, vision: Mapping[str, Any], text: Mapping[str, Any], mlp: Sequence[int]):
        from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

        super().__init__()
        self.vision: Any = BlipVisionModel(BlipVisionConfig(**vision))
        config = BlipTextConfig(**text)
        # masks are added to the scores, which other implementations do not do
        config._attn_implementation = "eager"
        self.text: Any = BlipTextModel(config, add_pooling_layer=False)
        linear = iter(nn.Linear(a, b) for a, b in pairwise(mlp))
        places = range(LINEAR[-1] + 1)
        layers = [next(linear) if n in LINEAR else nn.Identity() for n in places]
        self.mlp = nn.ModuleDict({"layers": nn.Sequential(*layers)})

    def forward(
        self, pixels: Float[Tensor, "b 3 s s"], tokens: Mapping[str, Tensor]
    ) -> Float[Tensor, " b"]:
        seen = self.vision(pixel_values=pixels).last_hidden_state
        read = self.text(
            input_ids=tokens["input_ids"],
            attention_mask=tokens["attention_mask"],
            encoder_hidden_states=seen,
            is_decoder=False,
        )
        raw = self.mlp["layers"](read.last_hidden_state[:, 0])[:, 0]
        return (raw - MEAN) / STD


def _made(sizes: Mapping[str, Any]) -> _Network:
    # of other sizes than the published ones they warn of words that are not used here
    with quiet_libraries():
        return _Network(**sizes)


@dataclass
class ImageReward(PretrainedReward):
    """BLIP ViT-L/16 trained on ranked images of real users' prompts; mostly −2 to 2.

    Heads and layers are of the published network.

    Source: Xu et al. 2023, arXiv 2304.05977.
    """

    vision_heads: int = 16
    """Attention heads of the image encoder."""
    vision_layers: int = 24
    """Layers of the image encoder."""
    text_heads: int = 12
    """Attention heads of the text encoder."""
    text_layers: int = 12
    """Layers of the text encoder."""

    differentiable: ClassVar[bool] = True
    licence: ClassVar[str] = "apache-2.0"
    source: ClassVar[str] = "ImageReward v1.0, Xu et al. 2023, THUDM/ImageReward"

    def __post_init__(self) -> None:
        refuse_bad_towers(self)

    def places(self) -> Mapping[str, str | None]:
        return {
            "weights": "THUDM/ImageReward/ImageReward.pt",
            "tokenizer": "google-bert/bert-base-uncased",
        }

    def convert(self, found: Mapping[str, Path], folder: Path) -> None:
        """Write the weights under transformers' names, and the sizes that they have."""
        file = found["weights"]
        tensors = in_transformers_names(read_checkpoint(file))
        sizes = self._sizes(file, tensors)
        put(_made(sizes), tensors, file, ANOTHER_FILE)
        files.write_json(folder / "config.json", sizes)
        save_file({k: t.contiguous() for k, t in tensors.items()}, folder / "model.safetensors")
        copy_files(found["tokenizer"], folder, PROCESSOR)

    def _sizes(self, file: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """Arguments of `_Network`: heads and layers of the options, the rest of the weights."""
        places = "vision.embeddings.position_embedding"
        patches = "vision.embeddings.patch_embedding.weight"
        words, spots = (f"text.embeddings.{k}_embeddings.weight" for k in ("word", "position"))
        inner = "vision.encoder.layers.0.mlp.fc1.weight"
        text_inner = "text.encoder.layer.0.intermediate.dense.weight"
        mlp = [f"mlp.layers.{n}.weight" for n in LINEAR]
        needed = {places, patches, words, spots, inner, text_inner, *mlp}
        unknown = [k for k in tensors if not k.startswith(("vision.", "text.", "mlp."))]
        refuse_differences(file, needed - tensors.keys(), unknown, advice=ANOTHER_FILE)
        width, _, side, _ = tensors[patches].shape
        vision = {
            "hidden_size": width, "patch_size": side, "layer_norm_eps": 1e-6,
            "image_size": isqrt(tensors[places].shape[1] - 1) * side,
            "intermediate_size": len(tensors[inner]),
            "num_attention_heads": self.vision_heads, "num_hidden_layers": self.vision_layers,
        }  # fmt: skip
        text = {
            "hidden_size": tensors[words].shape[1], "vocab_size": len(tensors[words]),
            "max_position_embeddings": len(tensors[spots]), "encoder_hidden_size": width,
            "intermediate_size": len(tensors[text_inner]), "is_decoder": True,
            "num_attention_heads": self.text_heads, "num_hidden_layers": self.text_layers,
        }  # fmt: skip
        refuse_bad_heads(file, "vision", self.vision_heads, width)
        refuse_bad_heads(file, "text", self.text_heads, text["hidden_size"])
        widths = [tensors[mlp[0]].shape[1], *(len(tensors[name]) for name in mlp)]
        return {"vision": vision, "text": text, "mlp": widths}

    def load(self, weights: Path, device: torch.device | str) -> None:
        """Load the network, in float32, and its tokenizer."""
        from transformers import BertTokenizer
        from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

        sizes, file = files.read_json(weights / "config.json"), weights / "model.safetensors"
        network = _made(sizes)
        put(network, read_tensors(file), file)
        self._network = network.to(device, torch.float32).eval().requires_grad_(False)
        self._tokenizer = load_tokenizer(BertTokenizer, weights)
        side = sizes["vision"]["image_size"]
        self._preprocessing = Preprocessing(
            side, (side, side), "bicubic", 1.0, tuple(OPENAI_CLIP_MEAN), tuple(OPENAI_CLIP_STD),
            rounds=True,
        )  # fmt: skip

    def how_read(self, prompts: Sequence[str]) -> list[Read]:
        """How much of each prompt the network reads."""
        return how_read(self._tokenizer, prompts, MOST_TOKENS)

    def score(
        self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[str]
    ) -> Float[Tensor, " b"]:
        """Score each image, RGB in [0, 1], against its own prompt; differentiable to the images."""
        device = next(self._network.parameters()).device
        pixels = self._preprocessing(images.to(device, torch.float32))
        with torch.autocast(device.type, enabled=False):
            return self._network(pixels, self._tokens(prompts).to(device))

    def _tokens(self, prompts: Sequence[str]) -> Any:
        """The prompts as the authors' code gives them: 35 tokens each, padded or cut."""
        return self._tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=MOST_TOKENS,
            return_tensors="pt",
        )  # fmt: skip
