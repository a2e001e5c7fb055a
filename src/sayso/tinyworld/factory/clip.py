"""The tiny CLIP: a vision and a text transformer trained to match pictures and captions."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from sayso.tinyworld.factory import data, denoiser
from sayso.tinyworld.factory.checkpoints import Checkpoint, learning_rate_factor
from sayso.tinyworld.factory.optimizers import Pair
from sayso.tinyworld.factory.tokens import MAX_TOKENS
from sayso.tinyworld.scenes import CaptionNoise

_PROJECTION = 128
_MEAN = _STD = 0.5


MOSTLY_RIGHT = CaptionNoise(0.15, 0.1, 0.1, 0.1, 0.1, 0.1)


@dataclass(frozen=True)
class ClipPlan:
    """How CLIP is trained; its captions are careless too, but more often right than wrong.

    From the step `hard_from` on, each batch holds `groups` groups of pictures that differ in their
    count alone; before, counts hardly help to tell pictures apart, and CLIP does not learn them.
    """

    images: int = 16_000
    steps: int = 1_500
    hard_from: int = 800
    groups: int = 16
    batch_size: int = 128
    decoded: int = 8_000
    muon_lr: float = 0.01
    adam_lr: float = 1e-3
    noise: CaptionNoise = MOSTLY_RIGHT


def build(tokenizer: Any) -> Any:
    """Return an untrained CLIP for 64×64 pictures in patches of 8×8."""
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=_PROJECTION,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(
        hidden_size=160,
        intermediate_size=480,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=64,
        patch_size=8,
        projection_dim=_PROJECTION,
    )
    config = CLIPConfig(
        text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=_PROJECTION
    )
    # the plain attention trains faster than the fused one at these sizes
    return CLIPModel._from_config(config, attn_implementation="eager")


def build_processor() -> Any:
    """Return the preprocessing that belongs to the model: 64 pixels, values in [−1, 1]."""
    return CLIPImageProcessor(
        size={"shortest_edge": 64},
        crop_size={"height": 64, "width": 64},
        image_mean=[_MEAN] * 3,
        image_std=[_STD] * 3,
    )


def contrastive_loss(
    images: Float[Tensor, "b d"], texts: Float[Tensor, "b d"], scale: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """Cross-entropy of finding the caption of each picture and the picture of each caption.

    Source: Radford et al. 2021, arXiv 2103.00020, Fig. 3.
    """
    images, texts = F.normalize(images, dim=-1), F.normalize(texts, dim=-1)
    logits = scale * images @ texts.T
    target = torch.arange(len(images))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def train(work: Path, seed: int, plan: ClipPlan, vae: Any, tokenizer: Any, report: Any) -> Any:
    """Train or continue; returns the CLIP model. `report(step, text)` is called each step."""
    images, rows = data.scenes(work, seed, plan.images)
    decoded = _decoded(work, vae, images[: plan.decoded])
    torch.manual_seed(seed)
    model = build(tokenizer)
    optimizer = Pair(model, plan.muon_lr, plan.adam_lr)
    checkpoint = Checkpoint(work / "clip.pt", model=model, optimizer=optimizer)
    groups = _alike_but_count(rows)
    for step in range(checkpoint.load(), plan.steps):
        rng = np.random.default_rng((seed, 3, step))
        index = _picked(groups if step >= plan.hard_from else [], len(images), plan, rng)
        pixels = data.to_pixels(_mixed(images, decoded, index, rng))
        tokens = denoiser.tokenize(tokenizer, data.captions(rows[index], rng, plan.noise))
        loss = _loss(model, pixels, tokens)
        loss.backward()
        optimizer.step(learning_rate_factor(step, plan.steps, 100, 0.6))
        model.logit_scale.data.clamp_(max=4.6)
        report(step + 1, f"loss {loss.item():.3f}")
        checkpoint.maybe_save(step + 1)
    checkpoint.save(plan.steps)
    return model.eval()


def _alike_but_count(rows: np.ndarray) -> list[list[np.ndarray]]:
    """For each object, colour and background: the indices of its pictures, count by count."""
    kinds: dict[tuple[int, ...], dict[int, list[int]]] = {}
    for i, (noun, colour, count, background) in enumerate(rows.tolist()):
        kinds.setdefault((noun, colour, background), {}).setdefault(count, []).append(i)
    return [[np.array(found) for found in counts.values()] for counts in kinds.values()]


def _picked(
    groups: list[list[np.ndarray]], n: int, plan: ClipPlan, rng: np.random.Generator
) -> np.ndarray:
    """Draw a batch: one picture of each count from some groups, the rest at random."""
    chosen = rng.choice(len(groups), plan.groups, replace=False) if groups else []
    alike = [int(rng.choice(found)) for g in chosen for found in groups[g]]
    others = rng.choice(n, plan.batch_size, replace=False).tolist()
    return np.sort([*alike, *[i for i in others if i not in alike]][: plan.batch_size])


def _loss(model: Any, pixels: Tensor, tokens: Int[Tensor, "b s"]) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        out = model(input_ids=tokens, pixel_values=pixels)
    return contrastive_loss(
        out.image_embeds.float(), out.text_embeds.float(), model.logit_scale.exp()
    )


def _mixed(
    images: np.ndarray, decoded: np.ndarray, index: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Take the decoded version of a picture half the time, if there is one."""
    coin = rng.random(len(index)) < 0.5
    pairs = zip(index, coin, strict=True)
    return np.stack([(decoded if i < len(decoded) and c else images)[i] for i, c in pairs])


@torch.no_grad()
def _decoded(work: Path, vae: Any, images: np.ndarray) -> np.ndarray:
    """Pass pictures through the autoencoder, as all generated ones have been; done once."""
    file = work / f"decoded-{len(images)}.npy"
    if not file.exists():
        parts = []
        for first in range(0, len(images), 250):
            with torch.autocast("cpu", torch.bfloat16):
                latents = vae.encode(data.to_pixels(images[first : first + 250])).latents
                pixels = vae.decode(latents).sample.float().clamp(-1, 1)
            parts.append(pixels.add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).numpy())
        np.save(file, np.concatenate(parts))
    return np.load(file, mmap_mode="r")
