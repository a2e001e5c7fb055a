"""grpo: advantages and loss by hand, rollouts between updates, resuming at their boundaries."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sayso.aligners import Batch, Work
from sayso.aligners._policy_loss import clipped_policy_loss, was_clipped
from sayso.aligners._rollouts import (
    draw_groups,
    group_advantages,
    learned_steps,
    step_weights,
    window_of,
)
from sayso.aligners.grpo import GroupPolicy
from sayso.base.devices import make_accelerator
from sayso.base.errors import UserError
from sayso.base.types import Sampler
from sayso.families import Kind, log_prob
from sayso.families.stable_diffusion import StableDiffusion
from sayso.study.run import Run, open_run
from sayso.study.run_options import asked
from sayso.testing import ToyPolicy, ToyReward, toy_work
from sayso.tinyworld import paths
from sayso.tinyworld.defaults import SAMPLER
from sayso.training.loop import train
from sayso.training.options import TrainOptions

SMALL = GroupPolicy(images=8, group_size=4, steps_per_image=2)
OPTIONS = TrainOptions(
    max_steps=10, batch_size=4, warmup_steps=0, decay_fraction=0.0, checkpoint_every=2
)
"""A rollout is 16 rows: four updates."""


def test_advantages_by_hand() -> None:
    rewards = torch.tensor([1.0, 3.0, 5.0, 5.0, 100.0, 100.0])
    found = group_advantages(rewards, 2, 5.0)
    expected = torch.tensor([-1.0, 1.0, 0.0, 0.0, 0.0, 0.0]) / rewards.std()
    torch.testing.assert_close(found, expected)
    assert group_advantages(torch.ones(4), 2, 5.0).tolist() == [0.0] * 4
    assert group_advantages(torch.tensor([0.0] * 99 + [1.0]), 100, 5.0).max() == 5


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.3, 2.0, -2.4, 0.0),  # likelier than the clip, as asked: no more of it
        (0.7, 2.0, -1.4, -2.0),  # the other way: it can come back
        (1.3, -2.0, 2.6, 2.0),
        (0.7, -2.0, 1.6, 0.0),
    ],
)
def test_clipped_loss_by_hand(ratio: float, advantage: float, loss: float, slope: float) -> None:
    rho = torch.tensor([ratio], requires_grad=True)
    found = clipped_policy_loss(rho, torch.tensor([advantage]), 0.2)
    found.sum().backward()
    assert found.item() == pytest.approx(loss)
    assert rho.grad is not None
    assert rho.grad.item() == pytest.approx(slope)
    counted = was_clipped(rho.detach(), torch.tensor([advantage]), 0.2)
    assert counted.tolist() == [slope == 0.0]


def test_rows_without_an_advantage_or_at_the_clip_are_not_clipped() -> None:
    """They have no gradient that the clip could take away, or they have it still."""
    ratio, none = torch.tensor([0.5, 1.0, 1.5]), torch.zeros(3)
    assert not was_clipped(ratio, none, 0.2).any()
    ends = torch.tensor([0.75, 1.25])
    assert not was_clipped(ends, torch.tensor([-1.0, 1.0]), 0.25).any()
    assert was_clipped(ends, torch.tensor([-1.0, 1.0]), 0.24).all()


def test_each_image_gives_different_steps() -> None:
    rows = learned_steps(20, range(9), 4, torch.Generator().manual_seed(0))
    assert rows.shape == (80, 2)
    assert len({tuple(row) for row in rows.tolist()}) == 80
    assert rows[:, 0].bincount().tolist() == [4] * 20
    assert set(rows[:, 1].tolist()) == set(range(9))
    assert rows[:, 0].diff().abs().max() > 1, "in random order"


def test_a_group_is_of_one_prompt_with_rewards_of_its_images() -> None:
    work = toy_work()
    drawn = draw_groups(work, 3, 8, 4, work.sampler, "ancestral")
    assert drawn.prompt.tolist() == [0] * 4 + [1] * 4
    numbers = drawn.cond["number"][:, 0].tolist()
    assert len(set(numbers)) == 2
    assert set(numbers) <= {0.0, 1.0, 2.0}
    images = work.policy.decode(drawn.way[-1]).mul(255).round() / 255
    torch.testing.assert_close(drawn.reward, ToyReward().score(images, [""] * 8))
    assert len({tuple(x.flatten().tolist()) for x in drawn.way[0]}) == 8, "eight start noises"


class NoReward(ToyReward):
    def score(self, images, prompts):
        return torch.full((len(images),), math.nan)


def test_a_reward_that_is_not_finite_stops() -> None:
    work = toy_work(reward=NoReward())
    with pytest.raises(
        UserError, match=r"NoReward is NaN or infinite for an image generated for '\d'"
    ):
        next(iter(SMALL.batches(work)))


def test_forms_for_flow_models_are_refused_for_others() -> None:
    dance = dataclasses.replace(SMALL, noise="dance")
    with pytest.raises(UserError, match="noise dance is for flow models"):
        next(iter(dance.batches(toy_work())))
    assert len(next(iter(dance.batches(toy_work(ToyPolicy(kind="velocity")))))) == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": 12}, r"images 12 is not a multiple of group_size 8; give --images 8 or 16"),
        ({"group_size": 1}, "group_size 1 is too small"),
        ({"eta": 0.0}, r"eta 0\.0 must be above 0"),
        ({"window": 0.0}, r"window 0\.0 is not in \(0, 1\]"),
        ({"window": math.nan}, "window nan"),
        ({"window_interval": -1}, "window_interval -1 must be at least 0; try 25"),
        ({"clip_range": math.nan}, "clip_range nan"),
    ],
)
def test_bad_options_name_themselves(options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        GroupPolicy(**options)


def test_rows_that_make_no_whole_batches_are_refused() -> None:
    assert SMALL.period(8) == 2
    with pytest.raises(UserError, match=r"16 rows .* batches of 5; use batches of 4 or 8"):
        SMALL.period(5)


@pytest.mark.parametrize(
    ("window", "steps", "message"),
    [
        (0.5, 10, "of the 10 sampling steps, 5 have noise; .* 5 or fewer, or a wider --window"),
        (0.8, 10, "of the 10 sampling steps, 8 have noise; .* 8 or fewer, or a wider --window"),
        (1.0, 10, "of the 10 sampling steps, 9 have noise; give --steps-per-image 9 or fewer$"),
        (1.0, 1, "samples in 1 step, without noise"),
    ],
)
def test_more_steps_than_have_noise_are_refused(window: float, steps: int, message: str) -> None:
    too_many = dataclasses.replace(SMALL, steps_per_image=10, window=window)
    work = toy_work(sampler=Sampler(steps, guidance_scale=1.0))
    with pytest.raises(UserError, match=message):
        next(iter(too_many.batches(work)))


def test_only_the_steps_of_the_window_have_noise_and_are_learned_from() -> None:
    """The noise of the others would move rewards without any step that could learn from it."""
    aligner = GroupPolicy(images=32, steps_per_image=2, window=0.3)
    work = toy_work(batch_size=64)
    batch = next(iter(aligner.batches(work)))
    assert (
        sorted(batch["t"].unique().tolist()) == work.policy.grid(work.sampler)[[2, 1, 0]].tolist()
    )
    drawn = draw_groups(
        work, 0, 8, 4, dataclasses.replace(work.sampler, eta=1.0), "ancestral", range(3)
    )
    cond = {"number": drawn.cond["number"][drawn.prompt]}
    for k in range(10):
        t, s = (drawn.times[i].expand(8) for i in (k, k + 1))
        prediction = work.policy.predict(drawn.way[k], t, cond)
        mean, _ = work.policy.transition(drawn.way[k], prediction, t, s, 1.0 if k < 3 else 0.0)
        assert torch.allclose(drawn.way[k + 1], mean, atol=1e-5) == (k >= 3)


@pytest.mark.parametrize(
    ("rollout", "interval", "first"),
    [(0, 0, 0), (9, 0, 0), (0, 2, 0), (1, 2, 0), (2, 2, 1), (13, 2, 6), (14, 2, 0), (3, 1, 3)],
)
def test_the_window_slides_to_the_last_step_with_noise(
    rollout: int, interval: int, first: int
) -> None:
    """Three of ten steps begin at step 0 to 6, for the tenth never has noise."""
    assert window_of(rollout, 3, 10, interval) == range(first, first + 3)


@pytest.mark.parametrize("trust", ["clip", "dppo"])
def test_each_rollout_has_noise_in_its_window_and_learns_from_that(trust: str) -> None:
    """And a first update on it finds every step as it was drawn, in the resumed run too."""
    aligner = GroupPolicy(
        images=8, group_size=4, steps_per_image=2, window=0.3, window_interval=2, trust=trust
    )
    work = toy_work(batch_size=16, max_steps=16)
    sampler, times = dataclasses.replace(work.sampler, eta=1.0), work.policy.grid(work.sampler)
    for step, batch in enumerate(aligner.batches(work)):
        window = window_of(step, 3, 10, 2)
        assert set(batch["t"].tolist()) == set(times[window.start : window.stop].tolist())
        weight = step_weights(work.policy, times, window, 1.0, "ancestral")
        place = (batch["t"][:, None] == times).float().argmax(1)
        torch.testing.assert_close(batch["weight"], weight[place - window.start])
        _, told = aligner.loss(work, batch)
        assert told["ratio"].item() == pytest.approx(1, abs=1e-5)
        assert told.get("divergence", torch.zeros(())).item() == pytest.approx(0, abs=1e-8)
        resumed = next(iter(aligner.batches(dataclasses.replace(work, start_step=step))))
        assert all(torch.equal(batch[name], resumed[name]) for name in batch.tensors)
    drawn = draw_groups(work, 0, 8, 4, sampler, "ancestral", range(4, 7))
    cond = {"number": drawn.cond["number"][drawn.prompt]}
    for k in range(10):
        t, s = (drawn.times[i].expand(8) for i in (k, k + 1))
        mean, _ = work.policy.transition(
            drawn.way[k], work.policy.predict(drawn.way[k], t, cond), t, s, float(4 <= k < 7)
        )
        assert torch.allclose(drawn.way[k + 1], mean, atol=1e-5) == (not 4 <= k < 7)


def test_a_window_that_cannot_move_is_refused() -> None:
    wide = GroupPolicy(images=8, group_size=4, window=1.0, window_interval=5)
    with pytest.raises(UserError, match="window_interval 5 would have no effect, because the wind"):
        next(iter(wide.batches(toy_work())))
    narrower = dataclasses.replace(wide, window=0.8, steps_per_image=1)
    assert next(iter(narrower.batches(toy_work())))


@pytest.mark.parametrize("kind", ["eps", "v", "velocity"])
def test_weights_make_every_steps_gradient_equally_noisy(kind: Kind) -> None:
    """Of log p by the prediction it is fresh noise times c / std; c by hand, for each kind."""
    policy, times = ToyPolicy(kind=kind), torch.tensor([0.99, 0.7, 0.4, 0.1])
    (a, s), (b, r) = policy.alpha_sigma(times[:-1]), policy.alpha_sigma(times[1:])
    std = 0.8 * r * (1 - (a * r / (b * s)) ** 2).sqrt()
    kept = (r**2 - std**2).sqrt()
    moved = {
        "eps": kept - b * s / a,
        "v": kept * a - b * s,
        "velocity": (kept * a - b * s) / (a + s),
    }[kind]
    found = step_weights(policy, times, range(3), 0.8, "ancestral")
    noise = found * (moved / std).abs()
    torch.testing.assert_close(noise, noise[:1].expand(3), rtol=1e-4, atol=0)
    assert found.mean().item() == pytest.approx(1)
    assert kind == "eps" or found[0] > 1 > found[2], "late steps count less"


@pytest.mark.parametrize("likelihood", ["gaussian", "squared"])
def test_in_the_loss_every_step_is_equally_noisy(likelihood: str) -> None:
    """The gradient of a row to its prediction is as large as the row's fresh noise, for all."""
    aligner = dataclasses.replace(SMALL, images=32, likelihood=likelihood, eta=0.5)
    policy = ToyPolicy(kind="v")
    work = toy_work(policy, batch_size=64)
    batch = next(iter(aligner.batches(work)))
    prediction = work.prediction(batch).detach().requires_grad_()
    batch.predicted["policy"] = prediction
    (slopes,) = torch.autograd.grad(aligner.loss(work, batch)[0], prediction)
    mean, std = policy.transition(
        batch["noisy"], prediction, batch["t"], batch["s"], aligner.eta, aligner.noise
    )
    fresh = (batch["next"] - mean).flatten(1) / std[:, None]
    loud = slopes.flatten(1).norm(dim=1) / (fresh.norm(dim=1) * batch["advantage"].abs())
    assert len(batch["t"].unique()) == 5
    torch.testing.assert_close(loud, loud[:1].expand(64), rtol=1e-2, atol=0)


def test_the_loss_counts_steps_by_their_weight() -> None:
    work = toy_work(batch_size=16)
    batch = next(iter(SMALL.batches(work)))
    equal = next(iter(dataclasses.replace(SMALL, weighting="equal").batches(work)))
    assert equal["weight"].tolist() == [1.0] * 16
    assert len(batch["weight"].unique()) > 2
    by_row = -batch["advantage"] * batch["weight"]
    torch.testing.assert_close(SMALL.loss(work, batch)[0], by_row.mean())


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_rollouts_first_update_is_the_policy_gradient_on_the_tiny_world(precision: str) -> None:
    """What trains predicts what drew, to the last bit: guidance, precision, adapters, train mode.

    So ratios are 1, and the gradient is that of −A · log p: nothing is clipped.
    """
    policy = StableDiffusion.load(paths().pipeline, torch.device("cpu"))
    policy.add_lora(2, 0)
    rng = torch.Generator().manual_seed(0)
    for name, parameter in policy.trainable().items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02, generator=rng)
    policy.network.train()
    policy.network = make_accelerator(precision).prepare(policy.network)
    made = toy_work(prompts=("a cat", "two dogs"), sampler=SAMPLER, batch_size=12)
    work = dataclasses.replace(made, policy=policy)
    aligner = GroupPolicy(images=4, group_size=2)
    batch = next(iter(aligner.batches(work)))
    loss, told = aligner.loss(work, batch)
    assert told["ratio"].item() == pytest.approx(1, abs=1e-5)
    assert told["clipped"] == 0
    ours = torch.autograd.grad(loss, [*policy.trainable().values()])
    wanted = (-batch["weight"] * batch["advantage"] * _log_probs(policy, batch)).mean()
    theirs = torch.autograd.grad(wanted, [*policy.trainable().values()])
    rounding = 1e-3 if precision == "no" else 5e-2
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=rounding * b.abs().max().item())
    assert max(g.abs().max() for g in ours) > 0


def _log_probs(policy: StableDiffusion, batch: Batch) -> Tensor:
    t, s, noisy = batch["t"], batch["s"], batch["noisy"]
    prediction = policy.guided(noisy, t, batch.cond, batch.uncond, SAMPLER.guidance_scale)
    mean, std = policy.transition(noisy, prediction, t, s, 1.0)
    return log_prob(batch["next"], mean, std)


def run_at(path: Path, aligner: GroupPolicy = SMALL) -> tuple[ToyPolicy, Run]:
    policy, run = ToyPolicy(8), open_run(path, asked({}), 0)
    run.finish(train(toy_work(policy), aligner, OPTIONS, run, make_accelerator("no")))
    return policy, run


class Stop(Exception):
    """Stands for a kill."""


@dataclasses.dataclass(frozen=True)
class Stopped(GroupPolicy):
    at: int = 7

    def loss(self, work: Work, batch: Batch):
        if batch["reward"].sum() and int(work.policy.updates) == self.at:  # type: ignore[attr-defined]
            raise Stop
        work.policy.updates += 1  # type: ignore[attr-defined]
        return super().loss(work, batch)


def test_a_rollout_begins_after_the_updates_on_the_last(tmp_path: Path) -> None:
    """The first update on a rollout finds every probability as it was when it was drawn."""
    _, run = run_at(tmp_path / "r")
    ratios = [row["ratio"] for row in run.history()]
    assert ratios[::4] == pytest.approx([1.0] * 3, abs=1e-6)
    assert all(abs(r - 1) > 1e-7 for i, r in enumerate(ratios) if i % 4)


def test_resumed_between_rollouts_it_is_bit_identical(tmp_path: Path) -> None:
    whole, run = run_at(tmp_path / "whole")
    policy, cut = ToyPolicy(8), open_run(tmp_path / "cut", asked({}), 0)
    policy.updates = 0  # type: ignore[attr-defined]
    stopped = Stopped(images=8, group_size=4, steps_per_image=2)
    with pytest.raises(Stop):
        train(toy_work(policy), stopped, OPTIONS, cut, make_accelerator("no"))
    # asked for every second step, but in the middle of a rollout nothing can be resumed
    assert [p.name for p in cut.checkpoint_folders()] == ["4"]
    resumed, again = run_at(tmp_path / "cut")
    ours, theirs = (load_file(r.weights / "toy.safetensors") for r in (again, run))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert [row["loss"] for row in again.history()] == [row["loss"] for row in run.history()]
    assert whole.network[0].weight.equal(resumed.network[0].weight)
