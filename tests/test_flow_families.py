"""Flow-matching families draw and learn as their pipelines and scripts in diffusers do."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flows import FLOWS, T5_LENGTH, TEXTS, Flow, flow, rows, sampler
from sayso.base.errors import UserError
from sayso.base.types import Sampler, Size
from sayso.families import join, mean_squared_error

NONE = {"sd3": 1.0, "flux": 1.0, "qwen_image": 1.0, "z_image": 0.0}
"""The guidance scale without guidance."""


@pytest.fixture(scope="module", params=FLOWS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Flow:
    return flow(request.param, tmp_path_factory.mktemp("flow") / request.param)


def encoded(both: Flow, texts: list[str]) -> list[dict[str, Tensor]]:
    """What the pipeline makes of each text, alone or in the batch: only what is no filling."""
    pipeline: Any = both.pipeline
    if both.name == "sd3":
        states, _, pooled, _ = pipeline.encode_prompt(texts, None, None, **both.text)
        return [{"states": s, "pooled": p} for s, p in zip(states, pooled, strict=True)]
    if both.name == "flux":
        states, pooled, _ = pipeline.encode_prompt(texts, None, **both.text)
        return [{"states": s, "pooled": p} for s, p in zip(states, pooled, strict=True)]
    if both.name == "qwen_image":
        states, mask = pipeline.encode_prompt(texts)
        mask = torch.ones(states.shape[:2]) if mask is None else mask
        return [{"states": s[m.bool()]} for s, m in zip(states, mask, strict=True)]
    return [{"states": s} for s in pipeline.encode_prompt(list(texts))[0]]


@torch.no_grad()
@pytest.mark.parametrize("texts", [TEXTS, ["", "a"], ["one"]])
def test_prompts_are_encoded_as_the_pipeline_does(both: Flow, texts: list[str]) -> None:
    theirs, ours = encoded(both, texts), both.policy.encode_prompts(texts)
    for i, expected in enumerate(theirs):
        own = rows(ours, i)
        assert expected.keys() == own.keys() - {"mask"}
        for key, value in expected.items():
            torch.testing.assert_close(own[key][0], value, rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [Size(32, 32), Size(48, 24)], ids=str)
@pytest.mark.parametrize("guided", [True, False])
def test_images_are_the_pipelines(both: Flow, size: Size, guided: bool) -> None:
    scale = 4.0 if guided else NONE[both.name]
    drawn = sampler(scale, size)
    theirs = both.draw(drawn, [3, 4])
    torch.testing.assert_close(both.ours(drawn, [3, 4]), theirs, rtol=0, atol=1e-4)


def test_a_negative_prompt_is_the_pipelines(both: Flow) -> None:
    drawn = sampler(3.0, negative="grey")
    if both.name == "flux":
        with pytest.raises(UserError, match="sees no negative prompt"):
            both.policy.check_sampler(drawn)
        return
    theirs = both.draw(drawn, [5, 6])
    assert (theirs - both.draw(sampler(3.0), [5, 6])).abs().max() > 1e-3, "it changes nothing"
    torch.testing.assert_close(both.ours(drawn, [5, 6]), theirs, rtol=0, atol=1e-4)


def test_pixels_are_the_pipelines(both: Flow) -> None:
    theirs = both.draw(sampler(), [1, 2], output="pt")
    with torch.no_grad():
        ours = both.policy.decode(both.ours(sampler(), [1, 2]))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_latents_of_images_are_those_of_the_scripts(both: Flow) -> None:
    images = torch.rand(2, 3, 32, 48)
    vae, pixels = both.pipeline.vae, images * 2 - 1
    if both.name == "qwen_image":
        latents = vae.encode(pixels.unsqueeze(2)).latent_dist.mode()
        mean, std = (
            torch.tensor(getattr(vae.config, name)).view(1, -1, 1, 1, 1)
            for name in ("latents_mean", "latents_std")
        )
        expected = ((latents - mean) / std).squeeze(2)
    else:
        latents = vae.encode(pixels).latent_dist.mode()
        expected = (latents - vae.config.shift_factor) * vae.config.scaling_factor
    torch.testing.assert_close(both.policy.encode_images(images), expected, rtol=0, atol=1e-5)


# training


@torch.no_grad()
def script_prediction(both: Flow, noisy: Tensor, sigmas: Tensor, texts: list[str]) -> Tensor:
    """The velocity that diffusers' training script of the model takes from its transformer."""
    network, pipeline, time = both.pipeline.transformer, both.pipeline, sigmas * 1000
    given = encoded(both, texts)
    b, c, h, w = noisy.shape
    if both.name == "z_image":
        states = [one["states"] for one in given]
        out = network([*noisy.unsqueeze(2)], (1000 - time) / 1000, states, return_dict=False)[0]
        return -torch.stack(out).squeeze(2)
    if both.name == "qwen_image":
        states, mask = pipeline.encode_prompt(texts)
        packed = pipeline._pack_latents(noisy.unsqueeze(1), b, c, h, w)
        out = network(
            packed, timestep=time / 1000, encoder_hidden_states=states,
            encoder_hidden_states_mask=mask, img_shapes=[[(1, h // 2, w // 2)]] * b,
            return_dict=False,
        )[0]  # fmt: skip
        return pipeline._unpack_latents(out, h * 2, w * 2, 2).squeeze(2)
    states, pooled = (torch.stack([one[key] for one in given]) for key in ("states", "pooled"))
    if both.name == "sd3":
        return network(noisy, states, pooled, time, return_dict=False)[0]
    out = network(
        pipeline._pack_latents(noisy, b, c, h, w), timestep=time / 1000,
        guidance=torch.full((b,), 3.5), pooled_projections=pooled, encoder_hidden_states=states,
        txt_ids=torch.zeros(states.shape[1], 3),
        img_ids=pipeline._prepare_latent_image_ids(b, h // 2, w // 2, "cpu", torch.float32),
        return_dict=False,
    )[0]  # fmt: skip
    return pipeline._unpack_latents(out, h * 2, w * 2, 2)


@torch.no_grad()
def test_the_loss_is_that_of_diffusers_script(both: Flow) -> None:
    rng = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 2, *both.policy.latent_shape(Size(32, 24)), generator=rng)
    scheduler = both.pipeline.scheduler.from_config(both.pipeline.scheduler.config)
    t = scheduler.timesteps[torch.tensor([120, 700])] / 1000
    sigmas = t.view(-1, 1, 1, 1)
    noisy = (1 - sigmas) * latents + sigmas * noise
    predicted = script_prediction(both, noisy, t, TEXTS)
    expected = mean_squared_error(predicted, noise - latents)
    both.policy.adopt(Sampler(guidance_scale=3.5))
    error = both.policy.denoising_error(latents, both.policy.encode_prompts(TEXTS), t, noise)
    torch.testing.assert_close(error, expected, rtol=0, atol=1e-6)
    if both.name == "sd3":  # its script's default is the error of the image
        image = mean_squared_error(predicted * -sigmas + noisy, latents)
        torch.testing.assert_close(t.square() * error, image, rtol=0, atol=1e-6)


@torch.no_grad()
def test_a_text_is_predicted_the_same_beside_a_longer_one(both: Flow) -> None:
    rng = torch.Generator().manual_seed(0)
    noisy, t = torch.randn(2, *both.policy.latent_shape(Size(32, 32)), generator=rng), torch.ones(2)
    apart = [both.policy.encode_prompts([text]) for text in TEXTS]
    alone = torch.cat([
        both.policy.predict(noisy[i : i + 1], t[:1] / 2, apart[i]) for i in range(2)
    ])  # fmt: skip
    together = both.policy.predict(noisy, t / 2, join(apart))
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    assert (alone[0] - both.policy.predict(noisy[:1], t[:1] / 2, apart[1])).abs().max() > 1e-4


def test_times_to_train_at(both: Flow) -> None:
    policy, drawn = both.policy, sampler()
    usual, rng = policy.timestep_sampling, torch.Generator().manual_seed(0)
    try:
        policy.timestep_sampling = "grid"
        times = policy.draw_t(10, rng, drawn)
        assert times.sort(descending=True).values.tolist() == (
            policy.grid(drawn)[:-1].repeat_interleave(2).tolist()
        )
        policy.timestep_sampling = "uniform"
        even = policy.draw_t(1001, rng, drawn)
        assert 0 < even.min()
        assert even.max() < 1
        # half of the times lie on either side of what 1/2 is shifted to
        shift = policy.scheduler.shift
        if policy.scheduler.config.use_dynamic_shifting:
            shift = torch.tensor(policy._shift(drawn)).exp().item()
        assert abs(even.median().item() - shift / (1 + shift)) < 2e-3
        policy.timestep_sampling = "logit_normal"
        spread = policy.draw_t(1001, rng, drawn)
        assert abs(spread.median().item() - shift / (1 + shift)) < 2e-3
        inner = torch.tensor([-1.0, 1.0]).sigmoid()
        low, high = (shift * inner / (1 + (shift - 1) * inner)).tolist()
        within = ((spread > low) & (spread < high)).float().mean().item()
        assert abs(within - 0.6827) < 5e-3, "one standard deviation"
    finally:
        policy.timestep_sampling = usual


# FLUX's own


def test_flux_is_told_the_samplers_guidance_in_training_too(both: Flow) -> None:
    if both.name != "flux":
        pytest.skip("its network is told no guidance")
    policy = both.policy
    noisy = torch.randn(1, *policy.latent_shape(Size(32, 32)))
    cond = policy.encode_prompts(["a"])
    told = []
    for scale in (3.5, 1.5):
        policy.sample(cond, cond, [1], sampler(scale))
        told.append(policy.predict(noisy, torch.tensor([0.5]), cond).detach())
    assert (told[0] - told[1]).abs().max() > 1e-4
    policy.adopt(sampler(3.5))
    torch.testing.assert_close(policy.predict(noisy, torch.tensor([0.5]), cond), told[0])


# what is refused


def test_noise_while_drawing_is_refused(both: Flow) -> None:
    both.policy.check_sampler(sampler())
    with pytest.raises(UserError, match="adds no noise"):
        both.policy.check_sampler(Sampler(5, 4.0, 0.5, Size(32, 32)))


def test_a_size_that_makes_no_whole_tokens_is_refused(both: Flow) -> None:
    assert both.policy.latent_shape(Size(36, 32)) == (4, 16, 18)
    for size in (Size(34, 32), Size(32, 0)):
        with pytest.raises(UserError, match="multiples of 4"):
            both.policy.latent_shape(size)


def test_a_text_that_would_be_cut_is_refused(both: Flow) -> None:
    limit = {"sd3": T5_LENGTH, "flux": T5_LENGTH}.get(both.name, 512)
    both.policy.check_prompts(["", "a"])
    with pytest.raises(UserError, match=r"has \d+ tokens and would be cut"):
        both.policy.check_prompts(["a", "a " * limit])
