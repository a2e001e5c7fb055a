"""grpo in the papers' forms: each option by hand, and the options that the docs give."""

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from sayso.aligners import Batch, Work
from sayso.aligners._policy_loss import trusted_policy_loss
from sayso.aligners._rollouts import draw_groups, group_advantages
from sayso.aligners.grpo import GroupPolicy
from sayso.base.errors import UserError
from sayso.base.types import Sampler
from sayso.families import Kind, log_prob, step_divergence
from sayso.testing import ToyPolicy, toy_work

PAGE = Path(__file__).parents[1] / "docs/aligners/grpo.md"
SMALL = GroupPolicy(images=8, group_size=4, steps_per_image=2)


def forms() -> dict[str, dict[str, Any]]:
    """The options of each row of the docs' table."""
    table = PAGE.read_text().partition("## The forms of the papers")[2].partition("\n\nWhere")[0]
    rows = re.findall(r"^\| ([^,|]+?)[,|].*?`(--[^`]+)`", table, flags=re.M)
    defaults = {f.name: f.default for f in dataclasses.fields(GroupPolicy)}
    found: dict[str, dict[str, Any]] = {}
    for paper, flags in rows:
        options = found[paper.strip()] = {}
        for flag, value in re.findall(r"--([\w-]+)(?: ([^-\s]\S*))?", flags):
            name = flag.replace("-", "_")
            options[name] = type(defaults[name])(value) if value else True
    return found


def work_of(policy: ToyPolicy, batch_size: int) -> Work:
    policy.keep_reference()
    return toy_work(policy, batch_size=batch_size, sampler=Sampler(10, guidance_scale=1.0))


def test_the_docs_have_every_form() -> None:
    assert {
        "DDPO",
        "DPOK",
        "Flow-GRPO",
        "DanceGRPO",
        "CPS",
        "MixGRPO",
        "Flow-DPPO",
    } <= forms().keys()
    assert forms()["DanceGRPO"]["same_start"] is True
    assert forms()["Flow-DPPO"]["divergence_limit"] == 1e-5


@pytest.mark.parametrize("paper", forms())
def test_a_forms_first_update_is_the_policy_gradient(paper: str) -> None:
    """−A · log p, of a density or of a squared distance: nothing is clipped or dropped."""
    options = forms()[paper]
    aligner = GroupPolicy(images=8, group_size=4, **options)
    policy = ToyPolicy(kind="velocity")
    work = work_of(policy, 8 * aligner.steps_per_image)
    batch = next(iter(aligner.batches(work)))
    loss, told = aligner.loss(work, batch)
    assert told["ratio"].item() == pytest.approx(1, abs=1e-5)
    assert told["clipped"] == 0
    assert batch["weight"].unique().tolist() == [1.0]
    prediction = policy.predict(batch["noisy"], batch["t"], batch.cond)
    mean, std = policy.transition(
        batch["noisy"], prediction, batch["t"], batch["s"], aligner.eta, aligner.noise
    )
    likelihood = log_prob(batch["next"], mean, std)
    if aligner.likelihood == "squared":
        likelihood = -(batch["next"] - mean).square().flatten(1).mean(1)
    wanted = _gradient(policy, (-batch["advantage"] * likelihood).mean())
    found = _gradient(policy, loss)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3 * wanted.abs().max().item())
    assert wanted.abs().max() > 0


def _gradient(policy: ToyPolicy, loss: Tensor) -> Tensor:
    grads = torch.autograd.grad(loss, [*policy.trainable().values()], retain_graph=True)
    return torch.cat([g.flatten() for g in grads])


@pytest.mark.parametrize(
    ("ratio", "advantage", "divergence", "loss", "slope"),
    [
        (1.0, 2.0, 0.0, -2.0, -2.0),
        (1.5, 2.0, 0.09, -3.0, -2.0),  # far less likely to be clipped: it moved little
        (1.5, 2.0, 0.1, 0.0, 0.0),
        (0.5, 2.0, 0.5, -1.0, -2.0),  # far, but the other way: it can come back
        (0.5, -2.0, 0.5, 0.0, 0.0),
        (1.5, -2.0, 0.5, 3.0, 2.0),
        (1.0, 2.0, 0.5, -2.0, -2.0),  # no likelier: it may have turned
        (1.0, -2.0, 0.5, 2.0, 2.0),
    ],
)
def test_trust_by_divergence_by_hand(
    ratio: float, advantage: float, divergence: float, loss: float, slope: float
) -> None:
    rho = torch.tensor([ratio], requires_grad=True)
    found = trusted_policy_loss(rho, torch.tensor([advantage]), torch.tensor([divergence]), 0.1)
    found.sum().backward()
    assert found.item() == pytest.approx(loss)
    assert rho.grad is not None
    assert rho.grad.item() == pytest.approx(slope)


def test_divergence_is_that_of_gaussians() -> None:
    rng = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 3, 2, 2, 2, generator=rng)
    std = torch.tensor([0.2, 1.0, 3.0])
    wide = std.view(-1, 1, 1, 1)
    expected = kl_divergence(Normal(a, wide), Normal(b, wide)).flatten(1).mean(1)
    torch.testing.assert_close(step_divergence(a, b, std), expected)


def test_advantages_within_groups_by_hand() -> None:
    rewards = torch.tensor([1.0, 3.0, 5.0, 5.0, 0.0, 0.1])
    half = math.sqrt(0.5)
    expected = torch.tensor([-half, half, 0.0, 0.0, -half, half])
    torch.testing.assert_close(group_advantages(rewards, 2, 5.0, within=True), expected)
    assert group_advantages(rewards, 2, 5.0)[4:].abs().max() < 0.03


@pytest.mark.parametrize("noisy_steps", [range(3), range(2, 6), None])
def test_the_means_are_what_the_steps_added_noise_to(noisy_steps: range | None) -> None:
    work = toy_work()
    sampler = dataclasses.replace(work.sampler, eta=0.8)
    drawn = draw_groups(work, 0, 8, 4, sampler, "ancestral", noisy_steps, means=True)
    assert drawn.mean is not None
    noisy = noisy_steps or range(9)
    assert len(drawn.mean) == len(noisy)
    cond = {"number": drawn.cond["number"][drawn.prompt]}
    for k, mean in zip(noisy, drawn.mean, strict=True):
        t, s = (drawn.times[i].expand(8) for i in (k, k + 1))
        prediction = work.policy.predict(drawn.way[k], t, cond)
        expected, std = work.policy.transition(drawn.way[k], prediction, t, s, 0.8)
        torch.testing.assert_close(mean, expected.detach())
        torch.testing.assert_close(log_prob(drawn.way[k + 1], mean, std), drawn.log_prob[k])
    assert draw_groups(work, 0, 8, 4, sampler, "ancestral").mean is None


def test_images_of_a_group_may_start_from_one_noise() -> None:
    """Which none of them has again as the noise of a step."""
    work = toy_work(micro_batch=3)
    sampler = dataclasses.replace(work.sampler, eta=1.0)
    drawn = draw_groups(work, 0, 8, 4, sampler, "ancestral", same_start=True, means=True)
    starts = drawn.way[0].reshape(2, 4, 2)
    assert (starts == starts[:, :1]).all()
    assert (starts[0] != starts[1]).any()
    assert len({tuple(x.flatten().tolist()) for x in drawn.way[1]}) == 8
    assert drawn.mean is not None
    fresh = (drawn.way[1] - drawn.mean[0]).flatten(1)
    along = torch.nn.functional.cosine_similarity(fresh, drawn.way[0].flatten(1))
    assert (along < 0.999).all()


def test_scale_and_start_are_those_of_the_batches() -> None:
    """By the rewards and the first latents of every row of a rollout."""
    policy = ToyPolicy(kind="velocity")
    work = work_of(policy, 72)
    whole = dataclasses.replace(SMALL, window=1.0, steps_per_image=9)
    sampler = dataclasses.replace(work.sampler, eta=1.0)
    for scale in ("all", "group"):
        drawn = draw_groups(work, 0, 8, 4, sampler, "ancestral", range(9))
        within = group_advantages(drawn.reward, 4, 5.0, within=scale == "group")
        batch = next(iter(dataclasses.replace(whole, scale=scale).batches(work)))
        found = dict(zip(batch["reward"].tolist(), batch["advantage"].tolist(), strict=True))
        wanted = dict(zip(drawn.reward.tolist(), within.tolist(), strict=True))
        assert found == pytest.approx(wanted), scale
    for same_start, starts in ((False, 8), (True, 2)):
        batch = next(iter(dataclasses.replace(whole, same_start=same_start).batches(work)))
        first = batch["noisy"][batch["t"] == batch["t"].max()].flatten(1).tolist()
        assert len({tuple(row) for row in first}) == starts
        assert len(first) == 8


@pytest.mark.parametrize("kind", ["eps", "v", "velocity"])
def test_the_divergence_from_the_start_is_part_of_the_loss(kind: Kind) -> None:
    """(dmean/dp)² times the mean squared difference of predictions over 2 std², for each kind."""
    policy = ToyPolicy(kind=kind)
    work, aligner = work_of(policy, 16), dataclasses.replace(SMALL, step_kl=3.0)
    batch = next(iter(aligner.batches(work)))
    assert aligner.loss(work, batch)[1]["step_kl"] == 0
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.add_(0.01)
    batch = batch.rows(slice(None))
    loss, told = aligner.loss(work, batch)
    nothing = torch.zeros(16, 1, 1, 1)
    slope, std = policy.transition(nothing, nothing + 1, batch["t"], batch["s"], 1.0)
    apart = work.prediction(batch) - work.prediction(batch, "reference")
    by_hand = slope.flatten() ** 2 * apart.square().flatten(1).mean(1) / (2 * std**2)
    torch.testing.assert_close(told["step_kl"], by_hand.mean(), rtol=1e-3, atol=0)
    without = dataclasses.replace(aligner, step_kl=0.0).loss(work, batch)[0]
    torch.testing.assert_close(loss - without, 3 * by_hand.mean(), rtol=1e-3, atol=1e-6)
    assert aligner.required() - SMALL.required() == {"reference"}


def test_rows_that_moved_far_as_asked_are_dropped_and_counted() -> None:
    policy = ToyPolicy()
    work = work_of(policy, 16)
    tight = dataclasses.replace(SMALL, trust="dppo", divergence_limit=1e-12)
    batch = next(iter(tight.batches(work)))
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.add_(0.01)
    loss, told = tight.loss(work, batch)
    ratio = _ratios(policy, batch)
    as_asked = (ratio - 1) * batch["advantage"] > 0
    assert 0 < as_asked.sum() < 16
    torch.testing.assert_close(told["clipped"], as_asked.float().mean())
    assert told["divergence"] > 1e-12
    kept = -batch["weight"] * batch["advantage"] * ratio * ~as_asked
    torch.testing.assert_close(loss, kept.mean())


def _ratios(policy: ToyPolicy, batch: Batch) -> Tensor:
    prediction = policy.predict(batch["noisy"], batch["t"], batch.cond)
    step = policy.transition(batch["noisy"], prediction, batch["t"], batch["s"], 1.0)
    return (log_prob(batch["next"], *step) - batch["log_prob"]).exp()


@pytest.mark.parametrize("options", [{"divergence_limit": 0.0}, {"step_kl": -1.0}])
def test_bad_options_name_themselves(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        GroupPolicy(**options)
