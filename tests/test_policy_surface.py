"""What every family inherits: the error of a prediction, portions, rows, checks, by hand."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sayso.base.errors import UserError
from sayso.base.types import Sampler, Size
from sayso.families import mean_squared_error, move, take
from sayso.families._contract import PIXELS_AT_ONCE
from sayso.families._schedule import LATEST, TimestepSampling, training_times
from sayso.families.stable_diffusion import StableDiffusion
from sayso.testing import ToyPolicy


def test_error_of_each_image_is_torchs_mse_of_it() -> None:
    torch.manual_seed(0)
    prediction, target = torch.randn(3, 4, 5, 6), torch.randn(3, 4, 5, 6)
    errors = mean_squared_error(prediction, target)
    theirs = [F.mse_loss(p, t) for p, t in zip(prediction, target, strict=True)]
    torch.testing.assert_close(errors, torch.stack(theirs))
    torch.testing.assert_close(errors.mean(), F.mse_loss(prediction, target))


@pytest.mark.parametrize("which", [0, 1])
def test_error_is_summed_in_fp32_whatever_the_format(which: int) -> None:
    """4,099 squares of 1/16 are exact in fp32; bf16 has 8 bits."""
    pair = [torch.zeros(1, 4099), torch.zeros(1, 4099)]
    pair[which] = torch.full((1, 4099), 1 + 1 / 128)
    exact = (1 + 1 / 128) ** 2
    for formats in ((torch.bfloat16, torch.bfloat16), (torch.float32, torch.bfloat16)):
        a, b = (x.to(kind) for x, kind in zip(pair, formats, strict=True))
        found = mean_squared_error(a, b)
        assert found.dtype == torch.float32
        assert found.item() == pytest.approx(exact, rel=1e-6)


def test_denoising_error_is_that_of_the_noise_in_the_noisy_latents() -> None:
    policy = ToyPolicy(8)
    latents, noise = torch.randn(2, 3, 2, 1, 1).unbind(0)
    t, cond = torch.tensor([0.1, 0.5, 0.9]), {"number": torch.tensor([[0.0], [1.0], [2.0]])}
    angle = t[:, None, None, None] * torch.pi / 2
    noisy = angle.cos() * latents + angle.sin() * noise
    expected = [
        F.mse_loss(p, n) for p, n in zip(policy.predict(noisy, t, cond), noise, strict=True)
    ]
    torch.testing.assert_close(
        policy.denoising_error(latents, cond, t, noise), torch.stack(expected)
    )


def test_only_what_requires_a_gradient_is_trained() -> None:
    policy = ToyPolicy(8)
    assert isinstance(policy.network, nn.Sequential)
    policy.network[0].requires_grad_(False)
    names = [f"{i}.{kind}" for i in (2, 4, 6) for kind in ("weight", "bias")]
    assert list(policy.trainable()) == names
    assert policy.trainable()["2.bias"] is policy.network[2].bias


@pytest.mark.parametrize(
    ("size", "images"),
    [((32, 32), 256), ((512, 512), 1), ((513, 513), 1), ((1024, 512), 1), ((256, 512), 2)],
)
def test_portions_have_the_pixels_that_fit(size: tuple[int, int], images: int) -> None:
    assert ToyPolicy(8).portion(Size(*size)) == images
    assert images == 1 or images * math.prod(size) == PIXELS_AT_ONCE


def test_a_text_is_cut_when_its_check_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = ToyPolicy(8)

    def check(texts: list[str]) -> None:
        (text,) = texts
        if len(text) > 3:
            raise UserError("too long")

    monkeypatch.setattr(policy, "check_prompts", check)
    assert policy.is_cut("cats") is True
    assert policy.is_cut("cat") is False


def test_a_sampler_is_checked_by_its_fields_and_by_the_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy, sizes = ToyPolicy(8), []
    monkeypatch.setattr(policy, "latent_shape", sizes.append)
    policy.check_sampler(Sampler(3, 2.0, 0.0, Size(32, 32)))
    assert sizes == [Size(32, 32)]
    with pytest.raises(UserError, match="num_inference_steps"):
        policy.check_sampler(Sampler(0, 2.0, 0.0, Size(32, 32)))


def test_guidance_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both halves in one pass, the negative prompt's first; a scale for all or for each row."""
    policy = ToyPolicy(8)
    assert policy.combine(torch.tensor(3.0), torch.tensor(1.0), 4.0) == 9
    cond, uncond = policy.encode_prompts(["1", "2"]), policy.encode_prompts(["7", "8"])
    noisy, t = torch.randn(2, 2, 1, 1), torch.tensor([0.2, 0.9])
    shown, predict = [], policy.predict
    monkeypatch.setattr(policy, "predict", lambda *a: shown.append(a[2]["number"]) or predict(*a))
    scale = torch.tensor([2.0, 5.0]).reshape(2, 1, 1, 1)
    found = policy.guided(noisy, t, cond, uncond, scale)
    assert [x.flatten().tolist() for x in shown] == [[7, 8, 1, 2]]
    within, without = predict(noisy, t, cond), predict(noisy, t, uncond)
    torch.testing.assert_close(found, without + scale * (within - without))


def test_times_to_train_at_by_hand() -> None:
    """One in each of b equal parts of [0, 1), in random order, and never 1 itself."""
    rng, same = (torch.Generator().manual_seed(3) for _ in range(2))
    order = torch.randperm(6, generator=same)
    expected = (order + torch.rand(6, generator=same)) / 6
    assert torch.equal(ToyPolicy(8).draw_t(6, rng), expected)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("uniform", [0.0, 0.25, 0.5, 0.8413447, LATEST]),
        # the logistic function of the normal distribution's quantiles
        ("logit_normal", [0.0, 0.337492, 0.5, 0.731059, LATEST]),
        ("grid", [0.9, 0.6, 0.3, 0.1, 0.1]),
    ],
)
def test_quantiles_of_the_times_to_train_at(how: TimestepSampling, expected: list[float]) -> None:
    """Of a number that rounding has made 1, too."""
    u, grid = torch.tensor([0.0, 0.25, 0.5, 0.8413447, 1.0]), torch.tensor([0.9, 0.6, 0.3, 0.1])
    found = training_times(u, how, grid if how == "grid" else None)
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


def test_times_to_train_at_are_of_the_kind_that_is_asked_for() -> None:
    policy, sampler = ToyPolicy(8), Sampler(4)
    policy.timestep_sampling = "grid"
    for asked, steps in ((sampler, 4), (None, Sampler().num_inference_steps)):
        drawn = policy.draw_t(3 * steps, torch.Generator().manual_seed(0), asked)
        grid = policy.grid(Sampler(steps))[:-1]
        assert torch.equal(drawn.sort(descending=True).values, grid.repeat_interleave(3))
    uniform, rng = ToyPolicy(8), torch.Generator()
    policy.timestep_sampling = "logit_normal"
    u, t = (p.draw_t(9, rng.manual_seed(0), sampler) for p in (uniform, policy))
    assert torch.equal(t, training_times(u, "logit_normal"))


def test_a_sampler_is_checked_by_what_the_model_knows_of_guidance() -> None:
    policy = ToyPolicy(8)
    weak, double = Sampler(3, 0.5), Sampler(3, 2.0, negative_prompt="1", true_cfg_scale=2.0)
    for sampler, says in ((weak, "guidance_scale 0.5"), (double, "true_cfg_scale 2 is for")):
        with pytest.raises(UserError, match=says):
            policy.check_sampler(sampler)
    policy.no_guidance, policy.told_guidance = 0.0, True
    policy.check_sampler(weak)
    policy.check_sampler(double)


def test_a_picture_costs_an_evaluation_for_each_step(tmp_path: Path) -> None:
    assert ToyPolicy.evaluations(tmp_path, 17) == 17


def test_adapters_are_all_that_is_trained_and_start_at_nothing(tmp_path: Path) -> None:
    folder = StableDiffusion.tiny(tmp_path / "sd")

    def adapted(rank: int, seed: int) -> StableDiffusion:
        policy = StableDiffusion.load(folder, torch.device("cpu"), parts=("network",))
        policy.add_lora(rank, seed)
        return policy

    torch.manual_seed(0)
    one, other = adapted(3, 1), adapted(3, 2)
    drawn = torch.rand(2)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(2), drawn), "the seed of everything else is left alone"
    same = adapted(3, 1)
    assert one.has_adapters
    config = one.network.peft_config["default"]
    assert (config.r, config.lora_alpha) == (3, 3), "adapters are added with weight 1"
    assert set(config.target_modules) == set(one.lora_targets)
    for name, parameter in one.network.named_parameters():
        assert parameter.requires_grad == ("lora" in name)
    for name, parameter in one.trainable().items():
        assert torch.equal(parameter, same.trainable()[name])
        assert (parameter == 0).all() == ("lora_B" in name)
        assert torch.equal(parameter, other.trainable()[name]) == ("lora_B" in name)


def test_rows_and_devices_of_conditions() -> None:
    cond = {"a": torch.arange(6).view(3, 2), "b": torch.arange(3)}
    some = take(cond, torch.tensor([2, 0]))
    assert some["a"].tolist() == [[4, 5], [0, 1]]
    assert some["b"].tolist() == [2, 0]
    assert take(cond, slice(1, 2))["b"].tolist() == [1]
    assert {value.device.type for value in move(cond, torch.device("meta")).values()} == {"meta"}
    same = move(cond, torch.device("cpu"))
    assert same.keys() == cond.keys()
    assert all(torch.equal(same[key], cond[key]) for key in cond)
