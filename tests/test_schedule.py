"""Schedules, conversions and the stochastic step: by hand, and against diffusers' own steps."""

import math
from typing import get_args

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor
from torch.distributions import Normal

from sayso.base.types import Sampler
from sayso.families import VARIANCE_PRESERVING, Kind, Noise, _contract, log_prob, move
from sayso.families._schedule import add_noise, step_noise, target, to_image, to_noise
from sayso.testing import ToyPolicy

KINDS = ("eps", "v", "velocity")


def vp(t: float) -> tuple[Tensor, Tensor]:
    angle = torch.tensor([t * math.pi / 2], dtype=torch.float64)
    return angle.cos(), angle.sin()


def flow(t: float) -> tuple[Tensor, Tensor]:
    return torch.tensor([1 - t], dtype=torch.float64), torch.tensor([t], dtype=torch.float64)


def drawn(seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(2, 1, 4, 3, 3, generator=rng, dtype=torch.float64).unbind(0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schedule", [vp, flow])
def test_a_perfect_prediction_gives_image_and_noise_back(kind: Kind, schedule) -> None:
    if kind == "v" and schedule is flow:
        return  # v assumes alpha² + sigma² = 1
    image, noise = drawn()
    now = schedule(0.7)
    noisy, perfect = add_noise(image, noise, *now), target(kind, image, noise, *now)
    torch.testing.assert_close(to_image(kind, noisy, perfect, *now), image)
    torch.testing.assert_close(to_noise(kind, noisy, perfect, *now), noise)


def test_targets_by_hand() -> None:
    image, noise = torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), 3.0)
    now = (torch.tensor([0.6]), torch.tensor([0.8]))
    found = [target(kind, image, noise, *now).item() for kind in KINDS]
    assert found == pytest.approx([3.0, 0.6 * 3 - 0.8 * 2, 3 - 2])


@pytest.mark.parametrize("form", VARIANCE_PRESERVING)
@pytest.mark.parametrize("schedule", [vp, flow])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_the_noise_of_a_step_adds_up(form: Noise, schedule, eta: float) -> None:
    """What is kept and what is fresh make up the noise of s."""
    then = schedule(0.6)
    std, kept = step_noise(form, eta, schedule(0.7), then, torch.tensor([0.1]).double())
    torch.testing.assert_close(std**2 + kept**2, then[1] ** 2)
    assert (std > 0) == (eta > 0)


def test_cps_adds_a_share_of_the_noise_at_s() -> None:
    for eta, share in ((1 / 3, 0.5), (0.5, 0.5**0.5), (1.0, 1.0)):
        std, _ = step_noise("cps", eta, vp(0.7), vp(0.6), torch.tensor([0.1]).double())
        torch.testing.assert_close(std, share * vp(0.6)[1])


@pytest.mark.parametrize("form", get_args(Noise))
def test_without_eta_every_form_is_the_euler_step_of_flow(form: Noise) -> None:
    image, noise = drawn()
    (alpha, sigma), t, s = flow(0.6), 0.7, 0.6
    velocity = drawn(1)[0]
    noisy = add_noise(image, noise, *flow(t))
    std, kept = step_noise(form, 0.0, flow(t), (alpha, sigma), torch.tensor([t - s]).double())
    guess = to_image("velocity", noisy, velocity, *flow(t))
    mean = alpha * guess + kept * to_noise("velocity", noisy, velocity, *flow(t))
    assert std == 0
    torch.testing.assert_close(mean, noisy + (s - t) * velocity)


def test_flow_grpo_step_by_the_papers_formula() -> None:
    """Mean z + v·dt + std²/(2t)·(z + (1 − t)·v)/|dt| · |dt|, std a·sqrt(t/(1 − t))·sqrt|dt|."""
    a, t, s = 0.7, 0.8, 0.7
    noisy, velocity = drawn()
    std, kept = step_noise("flow_grpo", a, flow(t), flow(s), torch.tensor([t - s]).double())
    assert std.item() == pytest.approx(a * math.sqrt(t / (1 - t)) * math.sqrt(t - s))
    guess = to_image("velocity", noisy, velocity, *flow(t))
    mean = (1 - s) * guess + kept * to_noise("velocity", noisy, velocity, *flow(t))
    dt, rate = s - t, (std**2 / (t - s)).item()
    theirs = noisy + velocity * dt + rate / (2 * t) * (noisy + (1 - t) * velocity) * dt
    torch.testing.assert_close(mean, theirs)
    dance, _ = step_noise("dance", 0.3, flow(t), flow(s), torch.tensor([t - s]).double())
    assert dance.item() == pytest.approx(0.3 * math.sqrt(0.1))
    first, _ = step_noise("flow_grpo", a, flow(1.0), flow(0.9), torch.tensor([0.1]).double())
    assert first.item() == pytest.approx(a * math.sqrt(0.9 / 0.1) * math.sqrt(0.1))


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_ancestral_step_is_ddims(eta: float, kind: str) -> None:
    ddim = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        prediction_type=kind,
    )  # fmt: skip
    ddim.set_timesteps(10)
    noisy, prediction = (x.float() for x in drawn())
    fresh = torch.randn(noisy.shape, generator=torch.Generator().manual_seed(5))
    theirs = ddim.step(prediction, 400, noisy, eta=eta, variance_noise=fresh).prev_sample
    at = {i: (ddim.alphas_cumprod[i] ** 0.5)[None] for i in (400, 300)}
    now, then = ((a, (1 - a**2) ** 0.5) for a in at.values())
    std, kept = step_noise("ancestral", eta, now, then, torch.tensor([0.1]))
    own = "eps" if kind == "epsilon" else "v"
    mean = then[0] * to_image(own, noisy, prediction, *now) + kept * to_noise(
        own, noisy, prediction, *now
    )
    torch.testing.assert_close(mean + std * fresh, theirs, rtol=1e-4, atol=1e-4)


def test_log_prob_is_the_mean_density() -> None:
    value, mean = (x.float() for x in drawn())
    found = log_prob(value, mean, torch.tensor([0.3]))
    torch.testing.assert_close(found, Normal(mean, 0.3).log_prob(value).mean()[None])
    assert log_prob(mean, mean, torch.tensor([0.0])).isfinite()


def test_transition_to_the_end_is_the_image() -> None:
    policy = ToyPolicy()
    noisy, prediction = torch.randn(2, 2, 2, 1, 1)
    t, end = torch.tensor([0.1, 0.2]), torch.zeros(2)
    mean, std = policy.transition(noisy, prediction, t, end, 1.0)
    torch.testing.assert_close(mean, policy.to_image(noisy, prediction, t))
    assert std.tolist() == [0, 0]


def test_log_probs_of_a_rollout_are_those_of_its_steps() -> None:
    policy = ToyPolicy()
    cond = policy.encode_prompts(["1", "2", "1"])
    made = policy.rollout(cond, policy.encode_prompts([""]), [3, 4, 5], Sampler(6, 1.0, 1.0))
    assert made.way.shape == (7, 3, 2, 1, 1)
    assert torch.equal(made.way[-1], made.latents)
    for k in range(5):
        t, s = (made.times[i].expand(3) for i in (k, k + 1))
        prediction = policy.predict(made.way[k], t, cond)
        mean, std = policy.transition(made.way[k], prediction, t, s, 1.0)
        torch.testing.assert_close(log_prob(made.way[k + 1], mean, std), made.log_prob[k])
    alone = policy.rollout(
        {"number": cond["number"][1:2]}, policy.encode_prompts([""]), [4], Sampler(6, 1.0, 1.0)
    )
    torch.testing.assert_close(alone.way[:, 0], made.way[:, 1])


class Leftover(ToyPolicy):
    """A schedule as those of Stable Diffusion, in which a little noise is left at t = 0."""

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return super().alpha_sigma(0.05 + 0.9 * t)


@pytest.mark.parametrize("form", get_args(Noise))
def test_the_end_is_the_image_whatever_noise_the_schedule_leaves(form: Noise) -> None:
    policy = Leftover()
    noisy, prediction = torch.randn(2, 2, 2, 1, 1)
    t, s = torch.tensor([0.1, 0.5]), torch.tensor([0.0, 0.4])
    mean, std = policy.transition(noisy, prediction, t, s, 0.5, form)
    guess, noise = (f(noisy, prediction, t) for f in (policy.to_image, policy.to_noise))
    torch.testing.assert_close(mean[0], guess[0])
    assert std[0] == 0
    now, then = policy.alpha_sigma(t), policy.alpha_sigma(s)
    by_formula, kept = step_noise(form, 0.5, now, then, t - s)
    torch.testing.assert_close(mean[1], then[0][1] * guess[1] + kept[1] * noise[1])
    assert std[1] == by_formula[1] > 0


@pytest.mark.parametrize("form", ["ancestral", "cps"])
@pytest.mark.parametrize(("guidance", "eta"), [(1.0, 1.0), (1.5, 0.5), (3.0, 0.0)])
def test_a_rollout_written_out(
    form: Noise, guidance: float, eta: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, sampler = ToyPolicy(), Sampler(4, guidance, eta)
    cond, uncond = policy.encode_prompts(["1", "2", "0"]), policy.encode_prompts(["5"])
    sizes, predict = list[int](), policy.predict
    monkeypatch.setattr(
        policy, "predict", lambda x, *more: sizes.append(len(x)) or predict(x, *more)
    )
    made = policy.rollout(cond, uncond, [3, 1, 4], sampler, form=form)
    # without guidance the network is shown every row once
    assert sizes == [3 if guidance == 1 else 6] * 4
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 1, 4)]
    fresh = torch.stack([torch.randn(4, 2, 1, 1, generator=g) for g in generators], dim=1)
    x, times = fresh[0], policy.grid(sampler)
    assert torch.equal(made.times, times)
    for k in range(4):
        torch.testing.assert_close(made.way[k], x)
        t, s = times[k].expand(3), times[k + 1].expand(3)
        within, without = predict(x, t, cond), predict(x, t, {"number": torch.full((3, 1), 5.0)})
        prediction = without + guidance * (within - without)
        mean, std = policy.transition(x, prediction, t, s, eta, form)
        x = mean + std.reshape(3, 1, 1, 1) * fresh[k + 1] if eta and k < 3 else mean
        torch.testing.assert_close(made.log_prob[k], log_prob(x, mean, std))
    torch.testing.assert_close(made.latents, x)
    assert not made.latents.requires_grad


def test_steps_after_the_noisy_ones_are_ddims() -> None:
    policy, sampler, seeds = ToyPolicy(), Sampler(6, 1.0, 1.0), [3, 4, 5]
    cond, uncond = policy.encode_prompts(["1", "2", "1"]), policy.encode_prompts([""])
    whole = policy.rollout(cond, uncond, seeds, sampler)
    made = policy.rollout(cond, uncond, seeds, sampler, noisy_steps=range(2))
    assert torch.equal(made.way[:3], whole.way[:3])
    for k in range(2, 6):
        t, s = (made.times[i].expand(3) for i in (k, k + 1))
        mean, _ = policy.transition(made.way[k], policy.predict(made.way[k], t, cond), t, s, 0.0)
        torch.testing.assert_close(made.way[k + 1], mean)


def test_noise_is_drawn_for_all_steps_but_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, drawn, plain = ToyPolicy(), [], _contract.noise_of
    monkeypatch.setattr(_contract, "noise_of", lambda *a: drawn.append(a) or plain(*a))
    cond, uncond = policy.encode_prompts(["1", "2"]), policy.encode_prompts([""])
    policy.rollout(cond, uncond, [3, 4], Sampler(5, 1.0, 1.0))
    assert [(shape, device) for _, shape, device in drawn] == [((2, 1, 1), policy.device)] * 5
    drawn.clear()
    policy.rollout(cond, uncond, [3, 4], Sampler(5, 1.0, 0.0))
    assert len(drawn) == 1


def test_a_rollout_stays_on_the_models_device() -> None:
    policy, meta = ToyPolicy(), torch.device("meta")
    policy.device, policy.network = meta, policy.network.to(meta)
    policy.frozen = torch.nn.Parameter(torch.ones((), device=meta), requires_grad=False)
    cond = move(policy.encode_prompts(["1", "2"]), meta)
    made = policy.rollout(cond, cond, [3, 4], Sampler(5, 1.0, 0.0))
    assert {x.device for x in made} == {meta}
