"""Weights under the names of Stable Diffusion's original code, as single files have them."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
UNET_ENDS = {
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}  # fmt: skip
VAE_ATTENTION = {
    "group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out",
}  # fmt: skip
OPEN_CLIP = {
    "encoder.layers.": "transformer.resblocks.", "layer_norm": "ln_", ".fc1": ".c_fc",
    ".fc2": ".c_proj", ".self_attn": ".attn", "final_ln_": "ln_final",
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding": "token_embedding",
}  # fmt: skip


def original_names(unet: Any, vae: Any, encoders: Sequence[Any]) -> dict[str, Tensor]:
    """All weights of a pipeline of Stable Diffusion or Stable Diffusion XL as they were published.

    Args:
        unet, vae: modules of diffusers.
        encoders: the text encoders, of transformers: one, or the two of Stable Diffusion XL.
    """
    weights = {
        f"model.diffusion_model.{_unet_name(name, unet.config)}": value
        for name, value in unet.state_dict().items()
    }
    blocks = len(vae.config.block_out_channels)
    for name, value in vae.state_dict().items():
        linear = "attentions" in name and value.ndim == 2
        named = f"first_stage_model.{_vae_name(name, blocks)}"
        weights[named] = value[:, :, None, None] if linear else value
    first = "conditioner.embedders.0" if len(encoders) > 1 else "cond_stage_model"
    for name, value in encoders[0].state_dict().items():
        weights[f"{first}.transformer.text_model.{name.removeprefix('text_model.')}"] = value
    if len(encoders) > 1:
        weights |= _open_clip(encoders[1].state_dict(), "conditioner.embedders.1.model.")
    return weights


def _unet_name(name: str, config: Any) -> str:
    per_block = config.layers_per_block + 1
    for ours, theirs in UNET_ENDS.items():
        if name.startswith(f"{ours}."):
            return theirs + _resnet(name.removeprefix(ours))
    side, block, kind, layer, rest = re.fullmatch(
        r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)(\..*)", name
    ).groups()  # type: ignore[union-attr]
    stem, start = ("input_blocks", 1) if side == "down" else ("output_blocks", 0)
    index = start + int(block) * per_block + int(layer)
    if kind == "downsamplers":
        return f"{stem}.{index + config.layers_per_block}.0.op{rest.removeprefix('.conv')}"
    if kind == "upsamplers":
        place = 2 if "CrossAttn" in config.up_block_types[int(block)] else 1
        return f"{stem}.{index + config.layers_per_block}.{place}{rest}"
    return f"{stem}.{index}.{int(kind == 'attentions')}{_resnet(rest)}"


def _resnet(rest: str) -> str:
    """`.norm1.weight` → `.in_layers.0.weight`; names of attention stay."""
    layer, _, kind = rest[1:].rpartition(".")
    return f".{RESNET.get(layer, layer)}.{kind}" if layer else rest


def _vae_name(name: str, blocks: int) -> str:
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    if "mid_block.attentions.0" in name:
        stem, layer, kind = re.fullmatch(r"(.*)mid_block\.attentions\.0\.(.*)\.(.*)", name).groups()  # type: ignore[union-attr]
        return f"{stem}mid.attn_1.{VAE_ATTENTION[layer]}.{kind}"
    name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    return re.sub(
        r"up_blocks\.(\d)\.(resnets|upsamplers\.0)",
        lambda m: f"up.{blocks - 1 - int(m[1])}.{'block' if m[2] == 'resnets' else 'upsample'}",
        name,
    )


def _open_clip(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    found = {}
    for name, value in weights.items():
        if name == "text_projection.weight":
            found[f"{prefix}text_projection"] = value.T
            continue
        renamed = name.removeprefix("text_model.")
        for ours, theirs in OPEN_CLIP.items():
            renamed = renamed.replace(ours, theirs)
        found[prefix + renamed] = value
    for stem in {name.rpartition(".q_proj")[0] for name in found if ".q_proj." in name}:
        for kind in ("weight", "bias"):
            parts = [found.pop(f"{stem}.{part}_proj.{kind}") for part in "qkv"]
            found[f"{stem}.in_proj_{kind}"] = torch.cat(parts)
    return found
