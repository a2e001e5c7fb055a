"""What every family inherits: the error of a prediction, portions, rows, checks, by hand."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sayso.base.errors import UserError
from sayso.base.types import Sampler, Size
from sayso.families import mean_squared_error, move, take
from sayso.families._contract import PIXELS_AT_ONCE
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
