"""Stable Diffusion: our sampler equals the pipeline's, our error equals diffusers' formula."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
)
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from models import tiny_pipeline
from torch.nn import functional as F

from sayso.base.errors import UserError
from sayso.base.types import Sampler, Size
from sayso.families._loading import family, resolve
from sayso.families.stable_diffusion import StableDiffusion

CPU = torch.device("cpu")
TEXTS = ["a red dog", "two cats", "on the moon"]


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def prediction_type(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, prediction_type: str) -> Path:
    return tiny_pipeline(tmp_path_factory.mktemp("sd") / "p", prediction_type=prediction_type)


@pytest.fixture(scope="module")
def policy(folder: Path) -> StableDiffusion:
    return StableDiffusion.load(folder, CPU)


@pytest.mark.parametrize(
    ("scheduler", "size", "eta", "guidance"),
    [(DPMSolverMultistepScheduler, Size(48, 32), 0.0, 4.0),
     (DDIMScheduler, Size(32, 32), 0.0, 4.0), (DDIMScheduler, Size(32, 40), 0.7, 4.0),
     (DDIMScheduler, Size(32, 32), 0.0, 1.0), (DDPMScheduler, Size(32, 32), 0.0, 3.0)],
)  # fmt: skip
def test_sample_equals_the_pipeline(
    folder: Path, scheduler: type, size: Size, eta: float, guidance: float
) -> None:
    policy = StableDiffusion.load(folder, CPU)
    policy.scheduler = scheduler.from_config(policy.scheduler.config)
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config)
    assert_drawn_alike(policy, pipeline, Sampler(6, guidance, eta, size))


def assert_drawn_alike(policy: StableDiffusion, pipeline: Any, sampler: Sampler) -> None:
    pipeline.set_progress_bar_config(disable=True)
    seeds = [3, 14, 159]
    theirs = pipeline(
        TEXTS, num_inference_steps=sampler.num_inference_steps, eta=sampler.eta,
        guidance_scale=sampler.guidance_scale, height=sampler.image_size.height,
        width=sampler.image_size.width, negative_prompt=["blue"] * 3, output_type="latent",
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
    ).images  # fmt: skip
    ours = policy.sample(
        policy.encode_prompts(TEXTS), policy.encode_prompts(["blue"]), seeds, sampler
    )
    assert theirs.std() > 0.1
    assert (ours - theirs).abs().max() <= 1e-4 * max(1, theirs.abs().max())


@pytest.fixture
def zero_snr(tmp_path: Path) -> Path:
    """A model that was trained to see pure noise at its last timestep."""
    folder = tiny_pipeline(tmp_path / "z", scheduler="ddim", prediction_type="v_prediction")
    file = folder / "scheduler/scheduler_config.json"
    row = json.loads(file.read_text())
    changes = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    file.write_text(json.dumps(row | changes))
    return folder


@pytest.mark.parametrize("scheduler", [DDIMScheduler, EulerDiscreteScheduler])
@pytest.mark.parametrize("size", [Size(32, 32), Size(48, 32)])
def test_zero_terminal_snr_is_drawn_as_by_the_pipeline(
    zero_snr: Path, scheduler: Any, size: Size
) -> None:
    policy, pipeline = (
        StableDiffusion.load(zero_snr, CPU), StableDiffusionPipeline.from_pretrained(zero_snr),
    )  # fmt: skip
    policy.scheduler = scheduler.from_config(policy.scheduler.config)
    pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config)
    assert_drawn_alike(policy, pipeline, Sampler(5, 4.0, 0.0, size))


def test_zero_terminal_snr_is_trained_from_pure_noise(zero_snr: Path) -> None:
    policy = StableDiffusion.load(zero_snr, CPU)
    latents, noise = torch.randn(2, 2, 4, 16, 16).unbind(0)
    last = torch.tensor([0.9999, 0.9999])
    assert policy.grid(Sampler(5, 4.0, 0.0, Size(32, 32)))[0] == pytest.approx(0.9995)
    assert torch.equal(policy.add_noise(latents, noise, last), noise)
    assert torch.equal(policy.target(latents, noise, last), -latents)
    cond, t = policy.encode_prompts(TEXTS[:2]), last[:1].expand(2)
    schedule = DDPMScheduler.from_pretrained(zero_snr, subfolder="scheduler")
    steps = torch.tensor([999, 999])
    with torch.no_grad():
        predicted = policy.predict(schedule.add_noise(latents, noise, steps), t, cond)
        theirs = F.mse_loss(predicted, schedule.get_velocity(latents, noise, steps))
        ours = policy.denoising_error(latents, cond, t, noise).mean()
    assert abs(ours - theirs) <= 1e-6


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_rollouts_start_from_pure_noise(zero_snr: Path, eta: float) -> None:
    policy, sampler = StableDiffusion.load(zero_snr, CPU), Sampler(5, 4.0, eta, Size(32, 32))
    cond, uncond = policy.encode_prompts(TEXTS), policy.encode_prompts(["blue"])
    # at the end of a rollout nothing is left of the noise
    policy.scheduler = DDIMScheduler.from_config(policy.scheduler.config, set_alpha_to_one=True)
    theirs = policy.sample(cond, uncond, [3, 14, 159], sampler)
    made = policy.rollout(cond, uncond, [3, 14, 159], sampler)
    torch.testing.assert_close(made.latents, theirs, rtol=1e-3, atol=1e-3)
    assert made.log_prob.isfinite().all()


@pytest.mark.parametrize(("eta", "guidance"), [(0.0, 4.0), (0.7, 4.0), (1.0, 1.0)])
def test_rollout_equals_ddim(policy: StableDiffusion, eta: float, guidance: float) -> None:
    """The way that rollouts take ends where DDIM's sampler does, noise for noise."""
    before = policy.scheduler
    # of DDIM's spacings the one whose steps lead from each timestep to the next
    policy.scheduler = DDIMScheduler.from_config(
        before.config, clip_sample=False, timestep_spacing="leading"
    )
    try:
        sampler = Sampler(6, guidance, eta, Size(32, 32))
        cond, uncond = policy.encode_prompts(TEXTS), policy.encode_prompts(["blue"])
        theirs = policy.sample(cond, uncond, [3, 14, 159], sampler)
        made = policy.rollout(cond, uncond, [3, 14, 159], sampler)
    finally:
        policy.scheduler = before
    torch.testing.assert_close(made.latents, theirs, rtol=1e-3, atol=1e-3)
    assert len(made.times) == 7
    assert made.times[-1] == 0


def test_grid_names_the_timesteps_of_every_scheduler(folder: Path) -> None:
    import diffusers

    from sayso.families._schedulers import ACCEPTED

    policy = StableDiffusion.load(folder, CPU)
    config = policy.scheduler.config
    for name in ACCEPTED:
        policy.scheduler = getattr(diffusers, name).from_config(config)
        times = policy.grid(Sampler(8, 1.0, 0.0, Size(32, 32)))
        assert (times.diff() < 0).all(), name
        assert 0.8 < times[0] < 1, name
        assert times[-1] == 0, name
        steps = policy._timestep(times[:-1]).tolist()
        policy.scheduler.set_timesteps(8)
        named = torch.as_tensor(policy.scheduler.timesteps).round().long()
        assert set(steps) == set(named.tolist()) - {0}, name


def test_denoising_error_equals_diffusers_training_loss(
    folder: Path, policy: StableDiffusion
) -> None:
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 8, 4, 16, 16, generator=generator).unbind(0)
    timesteps = torch.tensor([0, 1, 250, 499, 500, 750, 998, 999])
    cond = policy.encode_prompts([TEXTS[i % 3] for i in range(8)])

    scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
    noisy = scheduler.add_noise(latents, noise, timesteps)
    target = noise
    if scheduler.config.prediction_type == "v_prediction":
        target = scheduler.get_velocity(latents, noise, timesteps)
    with torch.no_grad():
        prediction = policy.network(noisy, timesteps, cond["states"]).sample
        theirs = F.mse_loss(prediction.float(), target.float(), reduction="mean")
        ours = policy.denoising_error(latents, cond, (timesteps + 0.5) / 1000, noise)
    assert ours.shape == (8,)
    assert abs(ours.mean() - theirs) <= 1e-6


def test_every_timestep_is_reached_equally_often(policy: StableDiffusion) -> None:
    t = (torch.arange(5000) + 0.5) / 5000
    assert torch.equal(policy._timestep(t).bincount(), torch.full((1000,), 5))
    assert policy._timestep(torch.tensor([0.0, 1.0])).tolist() == [0, 999]


@pytest.mark.parametrize(("half", "processor"), [(False, AttnProcessor2_0), (True, AttnProcessor)])
def test_attention_is_fused_in_fp32_and_plain_in_bf16(
    policy: StableDiffusion, folder: Path, half: bool, processor: type
) -> None:
    """In each format the bits of the one, and to rounding those of the other."""
    same, other = StableDiffusion.load(folder, CPU), StableDiffusion.load(folder, CPU)
    same.network.set_attn_processor(processor())
    other.network.set_attn_processor((AttnProcessor if not half else AttnProcessor2_0)())
    noisy, t = torch.randn(2, 4, 16, 16), torch.tensor([0.1, 0.9])
    cond = policy.encode_prompts(TEXTS[:2])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
        ours, expected, near = (p.predict(noisy, t, cond) for p in (policy, same, other))
    assert torch.equal(ours, expected)
    assert not torch.equal(ours, near)
    limits = {"rtol": 0.05, "atol": 0.05} if half else {}
    torch.testing.assert_close(ours, near, **limits)


def test_matrices_of_large_images_are_never_written_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, called = StableDiffusion.load(folder, CPU), []
    plain = AttnProcessor.__call__
    monkeypatch.setattr(
        AttnProcessor,
        "__call__",
        lambda *args, **options: called.append(1) or plain(*args, **options),
    )
    cond, t = policy.encode_prompts(TEXTS[:1]), torch.tensor([0.5])
    for side, expected in ((80, False), (16, True)):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            policy.predict(torch.randn(1, 4, side, side), t, cond)
        assert bool(called) == expected


def test_encoding_equals_the_pipeline(folder: Path, policy: StableDiffusion) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    theirs, _ = pipeline.encode_prompt(TEXTS, CPU, 1, False)
    assert torch.equal(policy.encode_prompts(TEXTS)["states"], theirs)
    latents = torch.randn(2, 4, 16, 16)
    decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    images = pipeline.image_processor.postprocess(decoded.detach(), output_type="pt")
    torch.testing.assert_close(policy.decode(latents), images)
    encoded = pipeline.vae.encode(images * 2 - 1).latent_dist.mean
    theirs = encoded * pipeline.vae.config.scaling_factor
    torch.testing.assert_close(policy.encode_images(images), theirs)


def test_lora_weights_load_in_diffusers(
    folder: Path, policy: StableDiffusion, tmp_path: Path
) -> None:
    tuned = StableDiffusion.load(folder, CPU)
    tuned.add_lora(rank=4, seed=0)
    assert all("lora" in name for name in tuned.trainable())
    with torch.no_grad():
        for parameter in tuned.trainable().values():
            parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    tuned.save_weights(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["pytorch_lora_weights.safetensors"]

    noisy, t = torch.randn(2, 4, 16, 16), torch.tensor([0.1, 0.9])
    cond = policy.encode_prompts(TEXTS[:2])
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.load_lora_weights(tmp_path)
    with torch.no_grad():
        ours = tuned.predict(noisy, t, cond)
        theirs = pipeline.unet(noisy, policy._timestep(t), cond["states"]).sample
        merged = StableDiffusion.load(folder, CPU, tmp_path)
        assert (ours - policy.predict(noisy, t, cond)).abs().max() > 1e-3
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(merged.predict(noisy, t, cond), ours, rtol=1e-4, atol=1e-5)
    assert not any("lora" in name for name in merged.trainable())


def test_full_weights_load_in_diffusers(
    policy: StableDiffusion, folder: Path, tmp_path: Path
) -> None:
    policy.save_weights(tmp_path)
    unet = type(policy.network).from_pretrained(tmp_path / "unet")
    assert (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").exists()
    for name, value in policy.network.state_dict().items():
        assert torch.equal(value, unet.state_dict()[name])


def test_long_prompt_is_refused_with_the_limit(policy: StableDiffusion) -> None:
    policy.check_prompts(["a" * 38])
    with pytest.raises(UserError, match=r"'a{39}' has 39 tokens .* reads 38"):
        policy.check_prompts(["a", "a" * 39])


def test_odd_size_is_refused(policy: StableDiffusion) -> None:
    assert policy.latent_shape(Size(48, 32)) == (4, 16, 24)
    with pytest.raises(UserError, match=r"image_size 32x33 .* multiples of 2"):
        policy.latent_shape(Size(32, 33))


def test_pickled_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    import shutil

    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "vae" / "diffusion_pytorch_model.safetensors").rename(copy / "vae" / "model.bin")
    with pytest.raises(UserError, match=r"no \.safetensors weights"):
        StableDiffusion.load(copy, CPU)


def test_models_are_found(folder: Path, tmp_path: Path) -> None:
    assert resolve(str(folder)) == folder
    assert family(folder) is StableDiffusion
    with pytest.raises(UserError, match="no model at"):
        resolve(str(tmp_path))
    (tmp_path / "model_index.json").write_text('{"_class_name": "PixArtSigmaPipeline"}')
    with pytest.raises(
        UserError,
        match=r"is a PixArtSigmaPipeline; give a model .* sdxl .* stable_diffusion",
    ):
        family(tmp_path)
