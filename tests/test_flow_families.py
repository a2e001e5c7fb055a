"""Flow-matching families draw and learn as their pipelines and scripts in diffusers do."""

import inspect
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import diffusers
import pytest
import torch
from flows import CPU, FLOWS, SQUARE, T5_LENGTH, TEXTS, Flow, flow, rows, sampler
from PIL import Image
from torch import Tensor

from sayso.aligners import Work, load_aligner
from sayso.aligners._rollouts import draw_groups, step_batch
from sayso.base.errors import UserError
from sayso.base.plugins import load_plugin
from sayso.base.samplers import checked
from sayso.base.types import Sample, Sampler, Size, sample_id
from sayso.base.weights import quiet_libraries
from sayso.data.conditions import open_conditions
from sayso.data.rows import make_rows
from sayso.families import Noise, Policy, join, log_prob, mean_squared_error
from sayso.families._loading import family
from sayso.families._tiny_flow import tiny_flux, tiny_z_image
from sayso.stages._training_data import work_of
from sayso.stages.new import NewConfig, new
from sayso.study.info import StudyInfo
from sayso.study.model_files import native_size, pipeline, too_long
from sayso.study.study import Study
from sayso.testing.toy import ToyReward
from sayso.training.options import TrainOptions

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
        with pytest.raises(UserError, match="give a --true-cfg-scale above 1"):
            both.policy.check_sampler(drawn)
        drawn = replace(drawn, true_cfg_scale=2.5)
    else:
        with pytest.raises(UserError, match=r"true_cfg_scale 2\.5 is for models"):
            both.policy.check_sampler(replace(drawn, true_cfg_scale=2.5))
    both.policy.check_sampler(drawn)
    assert both.policy.guidance(drawn) == (2.5 if both.name == "flux" else 3.0)
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
        assert even.min() > 0
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


@pytest.mark.parametrize("how", ["auto", "uniform", "logit_normal", "grid"])
def test_align_may_choose_the_times(both: Flow, tmp_path: Path, how: Any) -> None:
    policy: Any = type(both.policy).load(both.folder, CPU)
    info = StudyInfo("s", 7, str(both.folder), "tinyworld", "", sampler())
    study = Study.create(tmp_path / "study", info)
    rows = make_rows(policy, (torch.zeros(0, *policy.latent_shape(SQUARE)), []), [], [])
    options = TrainOptions(timestep_sampling=how)
    options.check()
    given = {"images": []}
    work = work_of(study, options, load_aligner("sft")(), policy, rows, given, reward="", seed=0)
    usual = "logit_normal" if both.name == "sd3" else "grid"
    assert work.policy.timestep_sampling == (usual if how == "auto" else how)


def test_training_takes_the_sampler_that_the_images_were_drawn_with(
    both: Flow, tmp_path: Path
) -> None:
    usual, other = sampler(4.0), sampler(2.0, Size(48, 32))
    info = StudyInfo("s", 7, str(both.folder), "tinyworld", "", usual)
    study = Study.create(tmp_path / "study", info)
    drawn = [usual, replace(usual, guidance_scale=3.0), other]
    samples = [
        Sample(f"s{i}", "p", "base", i, own, f"images/{i}.png", "") for i, own in enumerate(drawn)
    ]
    study.add_samples(samples, [Image.new("RGB", s.image_size) for s in drawn])
    policy: Any = both.policy
    rows = make_rows(policy, (torch.zeros(0, *policy.latent_shape(SQUARE)), []), [], [])
    for ids, expected in (
        (["s2"], other), (["s0"], usual), (["s0", "s1"], usual), ([], usual),
    ):  # fmt: skip
        inputs = {"images": [{"id": name, "text": "a"} for name in ids]}
        options, aligner = TrainOptions(), load_aligner("sft")()
        work = work_of(study, options, aligner, policy, rows, inputs, reward="", seed=0)
        assert work.sampler == expected, ids


@torch.no_grad()
def test_rollouts_without_noise_are_the_samplers_images(both: Flow) -> None:
    drawn = sampler(3.0)
    cond, uncond = (both.policy.encode_prompts(texts) for texts in (TEXTS, ["grey"]))
    found = both.policy.rollout(cond, uncond, [1, 2], drawn)
    images = both.policy.sample(cond, uncond, [1, 2], drawn)
    torch.testing.assert_close(found.latents, images, rtol=0, atol=1e-5)
    for form in get_args(Noise):
        noisy = both.policy.rollout(cond, uncond, [1, 2], replace(drawn, eta=0.5), form=form)
        assert noisy.latents.isfinite().all(), form
        assert noisy.log_prob[:-1].isfinite().all(), form
        assert (noisy.latents - images).abs().max() > 1e-2, form


def test_a_step_of_grpo_is_predicted_as_it_was_drawn(both: Flow) -> None:
    """Texts of different length, guided by a shorter negative prompt, joined with other rows."""
    policy, drawn = both.policy, sampler(3.0, negative="" if both.name == "flux" else "x")
    work = Work(
        policy, make_rows(policy, (torch.zeros(0, *policy.latent_shape(SQUARE)), []), [], []),
        4, 1, 0, prompts=TEXTS, reward=ToyReward(), sampler=drawn,
    )  # fmt: skip
    noisy = replace(drawn, eta=0.5)
    found = draw_groups(work, 0, 4, 2, noisy, "ancestral")
    image, k = torch.tensor([0, 2, 1, 3]), torch.tensor([1, 0, 2, 1])
    batch = step_batch(found, image, k, policy.guidance(noisy))
    with torch.no_grad():
        step = policy.transition(
            batch["noisy"], work.prediction(batch), batch["t"], batch["s"], 0.5, "ancestral"
        )
    torch.testing.assert_close(log_prob(batch["next"], *step), batch["log_prob"], rtol=0, atol=1e-3)


# FLUX's own


def test_flux_learns_with_the_guidance_that_it_draws_with(tmp_path: Path) -> None:
    policy: Any = flow("flux", tmp_path).policy
    noisy, t = torch.randn(2, *policy.latent_shape(SQUARE)), torch.tensor([0.5, 0.5])
    cond = policy.encode_prompts(TEXTS)
    rows = make_rows(policy, (noisy, TEXTS), [1.0, 0.0], [0.5, 0.5])
    told = {}
    for scale in (3.5, 1.5):
        work = Work(policy, rows, 2, 1, 0, sampler=sampler(scale))
        batch = work.denoising_batch(torch.tensor([0, 1]), work.generator(0))
        assert batch.cond["guidance"].tolist() == [scale] * 2
        drawn = policy.rollout(cond, cond, [1, 2], sampler(scale))
        torch.testing.assert_close(drawn.latents, policy.sample(cond, cond, [1, 2], sampler(scale)))
        told[scale] = policy.predict(noisy, t, policy.with_sampler(cond, sampler(scale)))
    assert (told[3.5] - told[1.5]).abs().max() > 1e-4
    torch.testing.assert_close(policy.predict(noisy, t, cond), told[3.5])


# Stable Diffusion 3's own


@torch.no_grad()
def test_a_missing_t5_gives_zeros_as_in_the_pipeline(tmp_path: Path) -> None:
    both = without_t5(tmp_path)
    expected, ours = encoded(both, TEXTS), both.policy.encode_prompts(TEXTS)
    assert ours["states"].shape[1] == 40 + 256
    for i, one in enumerate(expected):
        for key, value in one.items():
            torch.testing.assert_close(ours[key][i], value, rtol=0, atol=1e-4)
    with pytest.raises(UserError, match=r"has 39 tokens .* reads 38"):
        both.policy.check_prompts(["a " * 39])
    assert too_long(str(tmp_path), ["b", "a " * 39]) == ("a " * 39, 39, 38, 1)


def without_t5(folder: Path) -> Flow:
    both = flow("sd3", folder)
    pipeline: Any = both.pipeline
    for part in ("text_encoder_3", "tokenizer_3"):
        shutil.rmtree(folder / part)
        pipeline.register_modules(**{part: None})
    pipeline.save_config(folder)
    return Flow("sd3", folder, type(both.policy).load(folder, CPU), pipeline)


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
    long = "a " * limit
    with pytest.raises(UserError, match=r"has \d+ tokens and would be") as refused:
        both.policy.check_prompts(["a", long])
    # and in the same words before torch is there
    found = too_long(str(both.folder), ["", "a", long])
    assert found is not None
    assert f"has {found.tokens} tokens" in str(refused.value)
    assert f"reads {found.limit}:" in str(refused.value)
    assert found.number == 1
    # a letter and a space are a token each; the T5's tokens come in pairs
    almost = long[: found.limit - (both.name in ("sd3", "flux"))]
    both.policy.check_prompts([almost])


def test_what_is_known_before_loading_is_what_the_family_does(both: Flow) -> None:
    known = pipeline(str(both.folder))
    assert known is not None
    assert known.no_guidance == both.policy.no_guidance == NONE[both.name]
    assert known.told_guidance == both.policy.told_guidance == (both.name == "flux")
    defaults = inspect.signature(type(both.pipeline).__call__).parameters
    scale = "true_cfg_scale" if both.name == "qwen_image" else "guidance_scale"
    assert known.guidance_scale == defaults[scale].default
    steps = defaults["num_inference_steps"].default
    assert known.num_inference_steps == steps
    side = 16 if both.name == "sd3" else both.pipeline.__dict__.get("default_sample_size", 128)
    assert native_size(str(both.folder)) == Size(2 * side, 2 * side)


def test_new_takes_steps_and_guidance_of_the_pipeline(both: Flow, tmp_path: Path) -> None:
    config = NewConfig(base_model=str(both.folder), image_size="32")
    known = pipeline(str(both.folder))
    assert known is not None
    drawn = new(tmp_path / "study", config).info.sampler
    assert drawn.num_inference_steps == known.num_inference_steps
    assert drawn.guidance_scale == known.guidance_scale
    least = new(tmp_path / "least", replace(config, guidance_scale=NONE[both.name]))
    assert least.info.sampler.guidance_scale == NONE[both.name]
    with pytest.raises(UserError, match=r"guidance_scale .*; give . \(no guidance\) or more"):
        new(tmp_path / "other", replace(config, guidance_scale=NONE[both.name] - 0.5))
    guided = replace(config, negative_prompt="grey", true_cfg_scale=2.0)
    if both.name == "flux":
        assert new(tmp_path / "guided", guided).info.sampler.true_cfg_scale == 2
    else:
        with pytest.raises(UserError, match=r"true_cfg_scale 2 is for models"):
            new(tmp_path / "guided", guided)


def test_few_step_models_are_refused(tmp_path: Path) -> None:
    for refused, name, sign in (
        (tiny_flux(tmp_path / "flux", guidance_embeds=False), "flux", "no guidance_embeds"),
        (tiny_z_image(tmp_path / "z", shift=3.0), "z_image", "shift of Z-Image-Turbo"),
    ):
        with pytest.raises(UserError, match=rf"{sign}.* distilled to draw in few steps.*; give "):
            load_plugin("family", name, Policy).load(refused, CPU)


OTHER_TASKS = {
    "flux": ("FluxFillPipeline", "FluxKontextPipeline", "FluxControlPipeline"),
    "qwen_image": (
        "QwenImageEditPipeline", "QwenImageEditPlusPipeline", "QwenImageLayeredPipeline",
    ),
    "z_image": ("ZImageOmniPipeline", "ZImageImg2ImgPipeline"),
    "sd3": ("StableDiffusion3InpaintPipeline",),
}  # fmt: skip
"""Pipelines that need more than a text, by the family whose parts they are made of."""


@pytest.mark.parametrize("name", OTHER_TASKS)
def test_pipelines_for_other_tasks_are_refused(tmp_path: Path, name: str) -> None:
    index = load_plugin("family", name, Policy).tiny(tmp_path / "m") / "model_index.json"
    row = json.loads(index.read_text())
    for wanted in OTHER_TASKS[name]:
        assert hasattr(diffusers, wanted)
        index.write_text(json.dumps(row | {"_class_name": wanted}))
        says = f"is a {wanted}, which does not draw from a text alone; give .*FluxPipeline"
        with pytest.raises(UserError, match=says):
            family(index.parent)


@pytest.mark.parametrize(
    ("name", "config", "says"),
    [
        ("flux", {"in_channels": 24, "out_channels": 16},
         "takes 24 channels and gives 16: it is for inpainting or editing; give FLUX.1 dev"),
        ("qwen_image", {"zero_cond_t": True}, "has zero_cond_t: it is for editing or layers; give"),
        ("qwen_image", {"use_additional_t_cond": True}, "has use_additional_t_cond: it is for edi"),
        ("qwen_image", {"use_layer3d_rope": True}, "has use_layer3d_rope: it is for editing or l"),
        ("qwen_image", {"guidance_embeds": True},
         "has guidance_embeds: it was distilled to draw in few steps, .*; give Qwen-Image"),
        ("z_image", {"siglip_feat_dim": 8}, "takes images beside the text: it is Omni; give Z-I"),
    ],
)  # fmt: skip
def test_networks_for_other_tasks_are_refused(
    tmp_path: Path, name: str, config: dict[str, Any], says: str
) -> None:
    """Whatever the pipeline is called: a whole network of that kind, under a plain name."""
    kind = load_plugin("family", name, Policy)
    folder = kind.tiny(tmp_path / "m")
    network: Any = kind.load(folder, CPU, parts=("network",)).network
    made = type(network).from_config({**network.config, **config})
    shutil.rmtree(folder / "transformer")
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.nan_to_num_().clamp_(-1, 1)  # some are left as they lay in memory
    made.save_pretrained(folder / "transformer")
    with pytest.raises(UserError, match=f"transformer {says}"):
        kind.load(folder, CPU)


@pytest.mark.parametrize(
    "name", ["Z-Image-Turbo", "Qwen-Image-Lightning", "FLUX.1-schnell", "sd3.5-large-turbo"]
)
def test_few_step_models_are_known_by_name(tmp_path: Path, name: str) -> None:
    folder = tiny_flux(tmp_path / name)
    with pytest.raises(UserError, match=f"is called {name}, with .* in it: it was distilled"):
        load_plugin("family", "flux", Policy).load(folder, CPU)


def test_a_scheduler_without_enough_times_is_refused(both: Flow) -> None:
    one = Sampler(1, 4.0, 0.0, Size(32, 32))
    if both.name != "qwen_image":
        both.policy.check_sampler(one)
        return
    # its times are stretched so that the last is at shift_terminal: of one, that is 0 / 0
    with pytest.raises(UserError, match="choose another --num-inference-steps"):
        both.policy.check_sampler(one)


def test_another_scheduler_is_refused(both: Flow, tmp_path: Path) -> None:
    copy = shutil.copytree(both.folder, tmp_path / "copy")
    index = copy / "model_index.json"
    name = "FlowMatchEulerDiscreteScheduler"
    index.write_text(index.read_text().replace(name, "FlowMatchHeunDiscreteScheduler"))
    with pytest.raises(UserError, match=f"sayso draws .* with {name}"):
        type(both.policy).load(copy, CPU)


def test_parts_of_another_model_are_refused(both: Flow, tmp_path: Path) -> None:
    copy = shutil.copytree(both.folder, tmp_path / "copy")
    config = json.loads((copy / "vae/config.json").read_text())
    channels = "z_dim" if both.name == "qwen_image" else "latent_channels"
    (copy / "vae/config.json").write_text(json.dumps(config | {channels: 8}))
    shutil.rmtree(copy / "vae")
    kind: Any = type(both.pipeline.vae)
    more = {"latents_mean": [0.0] * 8, "latents_std": [1.0] * 8} if channels == "z_dim" else {}
    kind.from_config({**config, channels: 8, **more}).save_pretrained(copy / "vae")
    with pytest.raises(UserError, match="vae makes latents of 8 channels, transformer takes 4"):
        type(both.policy).load(copy, CPU)


# conditions of texts of different length


def test_a_table_of_conditions_gives_each_text_its_own(
    both: Flow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sayso.data.conditions.TEXTS_AT_ONCE", 2)
    texts = ["", "a", *TEXTS, "the end"]
    table = open_conditions(both.policy, texts, tmp_path, "x", "table")
    for chosen in ([4], [3, 0], [1, 2, 3, 4, 0]):
        found = table[torch.tensor(chosen)]
        for i, row in enumerate(chosen):
            alone = both.policy.encode_prompts([texts[row]])
            for key, value in rows(found, i).items():
                torch.testing.assert_close(value, alone[key], rtol=0, atol=1e-5)


# what comes out


@torch.no_grad()
@pytest.mark.parametrize("rank", [0, 2])
def test_trained_weights_draw_the_same_in_plain_diffusers(
    both: Flow, tmp_path: Path, rank: int
) -> None:
    policy = type(both.policy).load(both.folder, CPU)
    if rank:
        policy.add_lora(rank, 0)
    for parameter in policy.trainable().values():
        parameter.add_((0.3 if rank else 0.03) * torch.randn(parameter.shape))
    policy.save_weights(tmp_path)
    ours = replace(both, policy=policy).ours(sampler(), [1, 2])
    assert (ours - both.ours(sampler(), [1, 2])).abs().max() > 1e-2, "nothing was trained"
    with quiet_libraries():
        pipeline: Any = diffusers.DiffusionPipeline.from_pretrained(both.folder)
        pipeline.set_progress_bar_config(disable=True)
        if rank:
            pipeline.load_lora_weights(tmp_path)
        else:
            kind = type(pipeline.transformer)
            pipeline.transformer = kind.from_pretrained(tmp_path / "transformer")
    theirs = replace(both, pipeline=pipeline).draw(sampler(), [1, 2])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    again = type(policy).load(both.folder, CPU, tmp_path)
    torch.testing.assert_close(
        replace(both, policy=again).ours(sampler(), [1, 2]), ours, rtol=0, atol=1e-4
    )


def test_another_true_cfg_scale_is_another_image() -> None:
    drawn = sampler(3.5, negative="grey")
    ids = {
        sample_id("p", "base", 1, replace(drawn, true_cfg_scale=scale)) for scale in (1.0, 2.0, 3.0)
    }
    assert len(ids) == 3
    with pytest.raises(UserError, match="would have no effect without a negative prompt"):
        checked(replace(sampler(3.5), true_cfg_scale=2.0))
