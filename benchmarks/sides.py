"""Both sides of the speed benchmarks: Sayso's own step and sampling, and those of diffusers.

diffusers' side is the loop's body of its train_text_to_image.py, which encodes images and texts in
every step, and the call of StableDiffusionPipeline. Both sides use the same folder, batch, number
format and, for parity, the same noise and times.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from torch import Tensor
from torch.nn import functional as F

from sayso.aligners import Aligner, Work
from sayso.aligners.rwr import RewardWeighted
from sayso.base.devices import make_accelerator
from sayso.base.types import Sampler
from sayso.data.rows import make_rows
from sayso.families import Policy, mean_squared_error
from sayso.families._loading import family
from sayso.study.run import open_run
from sayso.study.run_options import asked
from sayso.training.loop import _Loop, placed
from sayso.training.options import TrainOptions

STEPS = 100_000
"""More steps than any benchmark makes, so that the learning rate stays."""


@dataclass(frozen=True)
class Setting:
    """What both sides are given.

    Attributes:
        folder: a Stable Diffusion folder in diffusers' layout.
        device: where both run.
        bf16: number format of the arithmetic; the weights that are trained stay fp32.
        batch: rows of a step, images of a call.
        sampler: size, steps and guidance.
        texts: prompts, repeated to fill the batch.
        scratch: a folder for runs and pictures.
    """

    folder: Path
    device: torch.device
    bf16: bool
    batch: int
    sampler: Sampler
    texts: tuple[str, ...]
    scratch: Path

    @property
    def prompts(self) -> list[str]:
        return [self.texts[i % len(self.texts)] for i in range(self.batch)]

    @property
    def weights(self) -> torch.dtype:
        """Number format of weights that only draw: on a GPU people load them as bf16."""
        return torch.bfloat16 if self.bf16 and self.device.type == "cuda" else torch.float32

    def autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    def images(self) -> Tensor:
        """Noise in the place of images, in [0, 1]."""
        width, height = self.sampler.image_size
        seeded = torch.Generator().manual_seed(0)
        return torch.rand(self.batch, 3, height, width, generator=seeded).to(self.device)


# training


def our_step(setting: Setting, *, lora_rank: int = 0, **options: Any) -> Callable[[], object]:
    """A step of the loop: rwr on kept latents and kept conditions of texts.

    Args:
        lora_rank: adapters in place of the whole network.
        options: of the loop, see `TrainOptions`.
    """
    policy = loaded(setting)
    latents = policy.encode_images(setting.images()).cpu()
    labels = [1.0] * setting.batch
    data = make_rows(policy, (latents, setting.prompts), labels, labels)
    if lora_rank:
        policy.add_lora(lora_rank, 0)
    work = Work(policy, data, setting.batch, STEPS, 0)
    return loop_step(setting, RewardWeighted(weight="label"), work, **options)


def loop_step(
    setting: Setting, aligner: Aligner, work: Work, **options: Any
) -> Callable[[], object]:
    """A step of the loop with any aligner, as `align` makes it.

    Args:
        work: policy, data and what else the aligner needs.
        options: of the loop; without these no average, no warm-up and no pre-training rows.
    """
    given = {
        "ema_decay": 0.0, "warmup_steps": 0, "decay_fraction": 0.0, "learning_rate": 1e-6,
        "pretraining_weight": 0.0, "max_steps": STEPS, "batch_size": setting.batch,
    }  # fmt: skip
    chosen = TrainOptions(**(given | options)).for_aligner(aligner.defaults)
    accelerator = make_accelerator("bf16" if setting.bf16 else "no")
    work = placed(work, aligner, chosen, accelerator)
    name = f"run-{len(list(setting.scratch.glob('run-*')))}"
    loop = _Loop(work, aligner, chosen, open_run(setting.scratch / name, asked({}), 0), accelerator)
    batches = iter(aligner.batches(replace(work, start_step=0)))
    return lambda: loop.update(next(batches).to(setting.device))


def their_step(setting: Setting, *, kept: bool = False, fast: bool = False) -> Callable[[], object]:
    """The loop's body of train_text_to_image.py.

    Args:
        kept: latents and conditions are computed once, before.
        fast: our attention, optimiser and memory format too.
    """
    parts = _pipeline(setting)
    noising = DDPMScheduler.from_config(parts.scheduler.config)
    parts.unet.train()
    if fast:
        parts.unet = loaded(setting).network.train()
    optimizer = torch.optim.AdamW(parts.unet.parameters(), 1e-6, fused=True if fast else None)
    images = setting.images() * 2 - 1
    generator = torch.Generator().manual_seed(0)
    given = _encoded(parts, setting, images) if kept else None

    def step() -> object:
        with setting.autocast():
            latents, states = given or _encoded(parts, setting, images)
            noise = torch.randn(latents.shape, generator=generator).to(setting.device)
            t = torch.randint(0, len(noising.timesteps), (setting.batch,), generator=generator)
            t = t.to(setting.device)
            noisy = noising.add_noise(latents, noise, t)
            prediction = parts.unet(noisy, t, states, return_dict=False)[0]
        target = _target(noising, latents, noise, t)
        F.mse_loss(prediction.float(), target.float(), reduction="mean").backward()
        torch.nn.utils.clip_grad_norm_(parts.unet.parameters(), 1.0)
        optimizer.step()
        return optimizer.zero_grad()

    return step


@torch.no_grad()
def _encoded(parts: Any, setting: Setting, images: Tensor) -> tuple[Tensor, Tensor]:
    coded = parts.vae.encode(images.to(parts.vae.dtype))
    latents = coded.latents if hasattr(coded, "latents") else coded.latent_dist.sample()
    tokens = parts.tokenizer(
        setting.prompts, padding="max_length", truncation=True, return_tensors="pt",
        max_length=parts.tokenizer.model_max_length,
    ).input_ids  # fmt: skip
    states = parts.text_encoder(tokens.to(setting.device), return_dict=False)[0]
    return latents.float() * parts.vae.config.scaling_factor, states


def _target(noising: Any, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    v = noising.config.prediction_type == "v_prediction"
    return noising.get_velocity(latents, noise, t) if v else noise


@torch.no_grad()
def loss_difference(setting: Setting) -> float:
    """Relative difference of both losses, in fp32, for the same latents, noise and times."""
    policy, parts = loaded(setting), _pipeline(setting)
    noising = DDPMScheduler.from_config(parts.scheduler.config)
    latents = policy.encode_images(setting.images())
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    noise = noise.to(setting.device)
    n = len(noising.timesteps)
    steps = (torch.arange(setting.batch) * n // setting.batch).to(setting.device)
    _, states = _encoded(parts, setting, setting.images() * 2 - 1)
    predicted = parts.unet(noising.add_noise(latents, noise, steps), steps, states).sample
    theirs = F.mse_loss(predicted, _target(noising, latents, noise, steps))
    t = (steps + 0.5) / n
    cond = policy.encode_prompts(setting.prompts)
    prediction = policy.predict(policy.add_noise(latents, noise, t), t, cond)
    ours = mean_squared_error(prediction, policy.target(latents, noise, t)).mean()
    return abs(ours.item() / theirs.item() - 1)


# sampling


def our_sampling(setting: Setting) -> Callable[[], Tensor]:
    policy = loaded(setting, setting.weights)

    @torch.inference_mode()
    def draw() -> Tensor:
        with setting.autocast():
            cond, uncond = policy.encode_prompts(setting.prompts), policy.encode_prompts([""])
            latents = policy.sample(cond, uncond, range(setting.batch), setting.sampler)
            size = policy.portion(setting.sampler.image_size)
            return torch.cat([policy.decode(part) for part in latents.split(size)])

    return draw


def their_sampling(setting: Setting) -> Callable[[], Tensor]:
    pipeline = _pipeline(setting, setting.weights)
    sampler = setting.sampler

    def draw() -> Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in range(setting.batch)]
        with setting.autocast():
            return pipeline(
                setting.prompts, num_inference_steps=sampler.num_inference_steps,
                width=sampler.image_size.width, height=sampler.image_size.height,
                guidance_scale=sampler.guidance_scale, generator=generators, output_type="pt",
            ).images  # fmt: skip

    return draw


def image_difference(setting: Setting) -> float:
    """Largest difference of a pixel, in [0, 1], between both sides' images of the same seeds."""
    exact = replace(setting, bf16=False)
    return (our_sampling(exact)() - their_sampling(exact)()).abs().max().item()


def loaded(setting: Setting, dtype: torch.dtype = torch.float32) -> Policy:
    return family(setting.folder).load(setting.folder, setting.device, dtype=dtype)


def _pipeline(setting: Setting, dtype: torch.dtype = torch.float32) -> Any:
    pipeline = StableDiffusionPipeline.from_pretrained(setting.folder, torch_dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(setting.device)
