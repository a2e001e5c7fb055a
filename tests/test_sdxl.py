"""Stable Diffusion XL: conditions, images and loss equal diffusers' pipeline and script."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
)
from torch.nn import functional as F

from sayso.base.errors import UserError
from sayso.base.types import Sampler, Size
from sayso.families.sdxl import StableDiffusionXL

CPU = torch.device("cpu")
TEXTS = ["a red dog", "two cats", "on the moon"]
SEEDS = [3, 14, 159]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return StableDiffusionXL.tiny(tmp_path_factory.mktemp("sdxl") / "p")


@pytest.fixture(scope="module")
def policy(folder: Path) -> StableDiffusionXL:
    return StableDiffusionXL.load(folder, CPU)


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> StableDiffusionXLPipeline:
    loaded = StableDiffusionXLPipeline.from_pretrained(folder)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def change(file: Path, **fields: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.mark.parametrize("negative", [None, "blue"])
def test_conditions_equal_the_pipelines(
    policy: StableDiffusionXL, pipeline: StableDiffusionXLPipeline, negative: str | None
) -> None:
    blue = None if negative is None else [negative] * 3
    theirs = pipeline.encode_prompt(TEXTS, device=CPU, negative_prompt=blue)
    ours, without = policy.encode_prompts(TEXTS), policy.encode_prompts([negative or ""] * 3)
    found = (ours["states"], without["states"], ours["pooled"], without["pooled"])
    for one, other in zip(found, theirs, strict=True):
        assert (one - other).abs().max() <= 1e-6
    assert bool(without["states"].any()) == bool(negative)


def test_without_forced_zeros_the_empty_prompt_is_encoded(copy: Path) -> None:
    change(copy / "model_index.json", force_zeros_for_empty_prompt=False)
    pipeline = StableDiffusionXLPipeline.from_pretrained(copy)
    _, theirs, _, pooled = pipeline.encode_prompt("a dog", device=CPU)
    ours = StableDiffusionXL.load(copy, CPU).encode_prompts([""])
    assert theirs.abs().max() > 0.1
    torch.testing.assert_close(ours["states"], theirs)
    torch.testing.assert_close(ours["pooled"], pooled)


@pytest.mark.parametrize(
    ("scheduler", "size", "eta", "guidance", "negative"),
    [
        (EulerDiscreteScheduler, Size(32, 32), 0.0, 5.0, ""),
        (EulerDiscreteScheduler, Size(48, 32), 0.0, 1.0, ""),
        (EulerDiscreteScheduler, Size(32, 56), 0.0, 5.0, "blue"),
        (DPMSolverMultistepScheduler, Size(48, 32), 0.0, 5.0, "blue"),
        (DDIMScheduler, Size(32, 32), 0.7, 5.0, "blue"),
    ],
)
def test_sample_equals_the_pipeline(
    folder: Path,
    pipeline: StableDiffusionXLPipeline,
    scheduler: Any,
    size: Size,
    eta: float,
    guidance: float,
    negative: str,
) -> None:
    policy, before = StableDiffusionXL.load(folder, CPU), pipeline.scheduler
    policy.scheduler = scheduler.from_config(before.config, clip_sample=False)
    pipeline.scheduler = scheduler.from_config(before.config, clip_sample=False)
    try:
        theirs = pipeline(
            TEXTS, num_inference_steps=6, guidance_scale=guidance, eta=eta, height=size.height,
            width=size.width,
            negative_prompt=[negative] * 3 if negative else None, output_type="latent",
            generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        ).images  # fmt: skip
    finally:
        pipeline.scheduler = before
    ours = policy.sample(
        policy.encode_prompts(TEXTS), policy.encode_prompts([negative]), SEEDS,
        Sampler(6, guidance, eta, size),
    )  # fmt: skip
    assert theirs.std() > 0.1
    assert (ours - theirs).abs().max() <= 1e-4


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_training_loss_equals_that_of_diffusers_script(copy: Path, prediction: str) -> None:
    """As train_text_to_image_sdxl.py computes it from latents, noise, timesteps and texts."""
    change(copy / "scheduler/scheduler_config.json", prediction_type=prediction)
    policy = StableDiffusionXL.load(copy, CPU)
    latents, noise = torch.randn(2, 8, 4, 16, 16).unbind(0)
    timesteps = torch.tensor([0, 1, 250, 499, 500, 750, 998, 999])
    texts = [TEXTS[i % 3] for i in range(8)]
    pipeline = StableDiffusionXLPipeline.from_pretrained(copy)
    states, _, pooled, _ = pipeline.encode_prompt(texts, device=CPU)

    schedule = DDPMScheduler.from_pretrained(copy, subfolder="scheduler")
    noisy = schedule.add_noise(latents, noise, timesteps)
    sizes = torch.tensor([[32, 32, 0, 0, 32, 32]] * 8, dtype=torch.float32)
    added = {"time_ids": sizes, "text_embeds": pooled}
    with torch.no_grad():
        predicted = pipeline.unet(noisy, timesteps, states, added_cond_kwargs=added).sample
        ours = policy.denoising_error(
            latents, policy.encode_prompts(texts), (timesteps + 0.5) / 1000, noise
        )
    target = noise
    if prediction == "v_prediction":
        target = schedule.get_velocity(latents, noise, timesteps)
    theirs = F.mse_loss(predicted.float(), target.float(), reduction="mean")
    assert ours.shape == (8,)
    assert abs(ours.mean() - theirs) <= 1e-6


@pytest.mark.parametrize("statistics", [{}, {"latents_mean": [0.1, 0.2, -0.3, 0.0],
                                             "latents_std": [0.5, 1.0, 2.0, 1.5]}])  # fmt: skip
def test_images_are_decoded_as_by_the_pipeline(copy: Path, statistics: dict[str, Any]) -> None:
    change(copy / "vae/config.json", **statistics)
    policy, pipeline = (
        StableDiffusionXL.load(copy, CPU),
        StableDiffusionXLPipeline.from_pretrained(copy),
    )
    pipeline.set_progress_bar_config(disable=True)
    sampler = Sampler(2, 5.0, 0.0, Size(32, 32))
    latents = policy.sample(
        policy.encode_prompts(TEXTS), policy.encode_prompts([""]), SEEDS, sampler
    )
    theirs = pipeline(
        TEXTS, num_inference_steps=2, guidance_scale=5.0, height=32, width=32, output_type="pt",
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
    ).images  # fmt: skip
    assert theirs.std() > 0.01
    assert (policy.decode(latents) - theirs).abs().max() <= 1e-4
    # encoding is the inverse of the normalisation
    pixels = torch.rand(2, 3, 32, 32)
    raw = policy.vae.encode(pixels * 2 - 1).latent_dist.mode()
    mean, std = (
        torch.tensor(statistics.get(name, [filler] * 4)).view(1, 4, 1, 1)
        for name, filler in (("latents_mean", 0.0), ("latents_std", 1.0))
    )
    torch.testing.assert_close(policy.encode_images(pixels), (raw - mean) / std * 0.13025)


@pytest.mark.parametrize("upcast", [True, False])
def test_an_autoencoder_that_overflows_stays_in_fp32(copy: Path, upcast: bool) -> None:
    """Half precision comes as autocast or as the format of the weights; bf16 is borne."""
    change(copy / "vae/config.json", force_upcast=upcast)
    formats = []
    for dtype, autocast in ((torch.float32, torch.float16), (torch.float32, torch.bfloat16),
                            (torch.float16, None), (torch.bfloat16, None)):  # fmt: skip
        policy = StableDiffusionXL.load(copy, CPU, dtype=dtype, parts=("vae",))
        decode = policy.vae.decode

        def seen(latents: torch.Tensor, decode: Any = decode, policy: Any = policy) -> Any:
            decoded = decode(latents)
            formats.append(decoded.sample.dtype)
            return decoded

        policy.vae.decode = seen
        with torch.no_grad(), torch.autocast("cpu", autocast, enabled=autocast is not None):
            policy.decode(torch.randn(1, 4, 16, 16))
    half = torch.float32 if upcast else torch.float16
    assert formats == [half, torch.bfloat16, half, torch.bfloat16]


@pytest.mark.parametrize(
    ("file", "fields", "says"),
    [
        ("unet", {"addition_time_embed_dim": 16}, "text_encoder_2 and sizes give 120 numbers"),
        ("model_index.json", {"text_encoder_2": ["transformers", "CLIPTextModel"]},
         r"text_encoder_2 is a CLIPTextModel; StableDiffusionXLPipeline has CLIPTextModelWithProj"),
        ("model_index.json", {"text_encoder": [None, None]}, "names no text_encoder;"),
    ],
)  # fmt: skip
def test_parts_of_other_models_are_refused(
    copy: Path, file: str, fields: dict[str, Any], says: str
) -> None:
    change(copy / (file if file.endswith("json") else f"{file}/config.json"), **fields)
    with pytest.raises(UserError, match=says):
        StableDiffusionXL.load(copy, CPU, parts=("vae",))
