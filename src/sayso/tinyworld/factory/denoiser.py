"""The tiny U-Net and its text encoder, trained on latents with careless captions.

Two phases: captions careful enough to learn what the words mean and how to count, then captions
as careless as the web's, which teach the wrong habits that alignment has to unlearn.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel

from sayso.tinyworld.defaults import CAPTION_NOISE
from sayso.tinyworld.factory import autoencoder, data
from sayso.tinyworld.factory.checkpoints import Checkpoint
from sayso.tinyworld.factory.optimizers import Pair
from sayso.tinyworld.factory.tokens import MAX_TOKENS
from sayso.tinyworld.scenes import CaptionNoise

TEXT_WIDTH = 128
NOISE_SCHEDULE = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
}
CAREFUL = CaptionNoise(
    omit_count=0.3,
    wrong_count=0.15,
    omit_colour=0.2,
    wrong_colour=0.1,
    omit_background=0.2,
    wrong_background=0.1,
)


VERY_CARELESS = CaptionNoise(0.35, 0.5, 0.2, 0.55, 0.2, 0.5)


@dataclass(frozen=True)
class DenoiserPlan:
    """How the denoiser is trained.

    `rates` are (step, factor on the learning rates), joined by straight lines: four times up and
    down to 0. Captions are careful before `careless_from`, `very_careless` before `mild_from`, and
    from then on `careless`.
    """

    scenes: int = 48_000
    steps: int = 10_000
    rates: tuple[tuple[int, float], ...] = (
        (0, 0.0), (150, 1.0), (2_100, 1.0), (4_200, 0.0),
        (4_250, 0.5), (5_300, 0.0),
        (5_350, 0.6), (6_500, 0.6), (9_500, 0.0),
        (9_530, 0.3), (9_700, 0.3), (10_000, 0.0),
    )  # fmt: skip
    careless_from: int = 3_000
    mild_from: int = 4_200
    batch_size: int = 64
    muon_lr: float = 0.01
    adam_lr: float = 1e-3
    prompt_dropout: float = 0.1
    ema_decay: float = 0.998
    very_careless: CaptionNoise = VERY_CARELESS
    careless: CaptionNoise = CAPTION_NOISE

    def captions_at(self, step: int) -> CaptionNoise:
        """Return how careless the captions of a step are."""
        if step < self.careless_from:
            return CAREFUL
        return self.very_careless if step < self.mild_from else self.careless

    def rate_at(self, step: int) -> float:
        """Return the factor on the learning rates at a step."""
        steps, factors = zip(*self.rates, strict=True)
        return float(np.interp(step + 1, steps, factors))


def build_unet() -> Any:
    """Return an untrained U-Net: attention over 8×8 and 4×4 positions, 5.6 M weights."""
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=autoencoder.LATENT_CHANNELS,
        out_channels=autoencoder.LATENT_CHANNELS,
        block_out_channels=(96, 160),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        attention_head_dim=4,  # diffusers takes it for the number of heads
        norm_num_groups=16,
        cross_attention_dim=TEXT_WIDTH,
    )
    nn.init.zeros_(unet.conv_out.weight)
    # the plain attention trains faster than the fused one at these sizes
    unet.set_attn_processor(AttnProcessor())
    return unet


def build_text_encoder(tokenizer: Any) -> Any:
    """Return an untrained text encoder of two layers."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=TEXT_WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


class Denoiser(nn.Module):
    """U-Net and text encoder under one roof, for one optimizer and one moving average."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self.unet = build_unet()
        self.text_encoder = build_text_encoder(tokenizer)

    def forward(
        self, noisy: Float[Tensor, "b c h w"], t: Int[Tensor, " b"], tokens: Int[Tensor, "b s"]
    ) -> Float[Tensor, "b c h w"]:
        """Return the predicted velocity."""
        states = self.text_encoder(tokens).last_hidden_state
        return self.unet(noisy, t, states).sample


def tokenize(tokenizer: Any, texts: list[str]) -> Int[Tensor, "b s"]:
    """Return token ids, padded to the model's length."""
    return tokenizer(
        texts, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
    ).input_ids


def latent_set(work: Path, seed: int, n: int, vae: Any) -> tuple[Tensor, np.ndarray]:
    """Render and encode `n` scenes, once; returns scaled fp16 latents and the scenes' rows."""
    file, rows_file = work / f"latents-{seed}-{n}.npy", work / f"latent-rows-{seed}-{n}.npy"
    if not rows_file.exists():
        parts = [(_encode(vae, x), rows) for x, rows in data.chunks(seed, 0, n)]
        np.save(file, np.concatenate([latents for latents, _ in parts])[:n])
        np.save(rows_file, np.concatenate([rows for _, rows in parts])[:n])
    return torch.from_numpy(np.load(file)), np.load(rows_file)


def _encode(vae: Any, images: np.ndarray) -> np.ndarray:
    latents = autoencoder.encode(vae, images) * vae.config.scaling_factor
    return latents.half().numpy()


def train(
    work: Path, seed: int, plan: DenoiserPlan, vae: Any, tokenizer: Any, report: Any
) -> Denoiser:
    """Train or continue; returns the moving average. `report(step, text)` is called each step."""
    latents, rows = latent_set(work, seed, plan.scenes, vae)
    torch.manual_seed(seed)
    model = Denoiser(tokenizer)
    average = Denoiser(tokenizer).requires_grad_(False)
    average.load_state_dict(model.state_dict())
    optimizer = Pair(model, plan.muon_lr, plan.adam_lr)
    checkpoint = Checkpoint(work / "denoiser.pt", model=model, average=average, optimizer=optimizer)
    scheduler = DDPMScheduler(**NOISE_SCHEDULE)
    total = 0.0
    for step in range(checkpoint.load(), plan.steps):
        batch = _batch(latents, rows, tokenizer, plan, (seed, 2, step))
        loss = _loss(model, scheduler, *batch)
        loss.backward()
        optimizer.step(plan.rate_at(step))
        _follow(average, model, min(plan.ema_decay, (step + 1) / (step + 10)))
        total = loss.item() if total == 0 else 0.98 * total + 0.02 * loss.item()
        report(step + 1, f"loss {total:.4f}")
        checkpoint.maybe_save(step + 1)
    checkpoint.save(plan.steps)
    return average.eval()


def _batch(
    latents: Tensor, rows: np.ndarray, tokenizer: Any, plan: DenoiserPlan, key: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw latents, noise, timesteps and tokens of a step from its own generator."""
    rng = np.random.default_rng(key)
    index = rng.integers(len(rows), size=plan.batch_size)
    texts = data.captions(rows[index], rng, plan.captions_at(key[-1]))
    dropped = rng.random(len(texts)) < plan.prompt_dropout
    texts = ["" if drop else text for text, drop in zip(texts, dropped, strict=True)]
    clean = latents[torch.from_numpy(index)].float()
    noise = torch.from_numpy(rng.standard_normal(clean.shape, np.float32))
    t = torch.from_numpy(_timesteps(rng, len(texts)))
    return clean, noise, t, tokenize(tokenizer, texts)


def _timesteps(rng: np.random.Generator, n: int) -> np.ndarray:
    """Draw timesteps, most of them from the middle, where shapes and numbers are decided."""
    middle = rng.random(n) < 0.65
    return np.where(middle, rng.integers(200, 850, size=n), rng.integers(1000, size=n))


def _loss(
    model: Denoiser, scheduler: Any, clean: Tensor, noise: Tensor, t: Tensor, tokens: Tensor
) -> Tensor:
    noisy = scheduler.add_noise(clean, noise, t)
    with torch.autocast("cpu", torch.bfloat16):
        prediction = model(noisy, t, tokens)
    return F.mse_loss(prediction.float(), scheduler.get_velocity(clean, noise, t))


@torch.no_grad()
def _follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    ours: list[Tensor] = [p for p in average.parameters() if p.is_floating_point()]
    theirs: list[Tensor] = [*model.parameters()]
    torch._foreach_lerp_(ours, theirs, 1 - decay)
