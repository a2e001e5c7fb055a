"""Rollouts: which images are drawn, what is learned of them, in which batches, by hand."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from sayso.aligners import Work, _rollouts, stratified
from sayso.aligners._rollouts import (
    Drawn,
    draw_groups,
    group_advantages,
    learned_steps,
    rewarded,
    step_batch,
    step_weights,
)
from sayso.aligners.grpo import GroupPolicy
from sayso.base.errors import UserError
from sayso.base.types import Sampler
from sayso.families import Noise, log_prob
from sayso.rewards import Reward
from sayso.testing import ToyPolicy, toy_work
from sayso.training.needs import check_options
from sayso.training.options import TrainOptions

SMALL = GroupPolicy(images=8, group_size=4, steps_per_image=2)
GUIDED = Sampler(num_inference_steps=6, guidance_scale=1.5, negative_prompt="7")


class Watched(ToyPolicy):
    """Notes what each rollout is asked for."""

    def __init__(self) -> None:
        super().__init__(8)
        self.asked: list[dict[str, Any]] = []

    def rollout(self, cond, uncond, seeds, sampler, **more):
        numbers = cond["number"].flatten().tolist(), uncond["number"].flatten().tolist()
        self.asked.append({
            "texts": numbers[0], "negative": numbers[1], "seeds": [*seeds], "sampler": sampler,
            **more,
        })  # fmt: skip
        return super().rollout(cond, uncond, seeds, sampler, **more)


def asked_of(work: Work, step: int = 3) -> list[dict[str, Any]]:
    assert isinstance(work.policy, Watched)
    work.policy.asked.clear()
    draw_groups(work, step, 12, 4, GUIDED, "cps")
    return [*work.policy.asked]


def test_groups_are_drawn_in_portions_with_a_seed_for_each_image() -> None:
    work = toy_work(Watched(), micro_batch=5)
    asked = asked_of(work)
    assert [len(a["seeds"]) for a in asked] == [5, 5, 2]
    assert all(a["sampler"] == GUIDED for a in asked)
    assert {(a["form"], *a["negative"]) for a in asked} == {("cps", 7.0)}
    texts = [text for a in asked for text in a["texts"]]
    # as many groups as prompts: each has one, in an order of the step's own
    assert sorted(texts[::4]) == [0.0, 1.0, 2.0]
    assert texts == [text for text in texts[::4] for _ in range(4)]
    generator = work.generator(3, "rollout")
    chosen = stratified(torch.ones(3), 3, generator)
    assert texts[::4] == chosen[torch.randperm(3, generator=generator)].tolist()
    seeds = torch.randint(2**31, (12,), generator=generator).tolist()
    assert [seed for a in asked for seed in a["seeds"]] == seeds
    orders = {tuple(t for a in asked_of(work, step) for t in a["texts"]) for step in range(12)}
    assert len(orders) > 3
    seeds = [s for step in range(40) for a in asked_of(work, step) for s in a["seeds"]]
    assert len(set(seeds)) == len(seeds) == 480
    assert 0 <= min(seeds) < 2**25
    assert 2**31 - 2**25 < max(seeds) < 2**31


def test_each_process_draws_its_share_and_all_get_all() -> None:
    whole = asked_of(toy_work(Watched()))
    gathered = list[Tensor]()
    parts = [
        toy_work(Watched(), rank=rank, world=2, gather=lambda x: gathered.append(x) or x)
        for rank in (0, 1)
    ]
    mine = [asked_of(part) for part in parts]
    for name in ("seeds", "texts"):
        assert [x for part in mine for a in part for x in a[name]] == whole[0][name]
    assert [len(a["seeds"]) for part in mine for a in part] == [6, 6]
    assert [len(x) for x in gathered] == [6] * 6


def test_what_is_drawn_is_what_the_policy_drew() -> None:
    work = toy_work(prompts=("0", "1", "2"), micro_batch=3)
    drawn = draw_groups(work, 0, 8, 2, GUIDED, "ancestral")
    whole = draw_groups(dataclasses.replace(work, micro_batch=8), 0, 8, 2, GUIDED, "ancestral")
    for ours, theirs in zip(drawn[:5], whole[:5], strict=True):
        torch.testing.assert_close(ours, theirs)
    assert drawn.way.shape == (7, 8, 2, 1, 1)
    assert drawn.log_prob.shape == (6, 8)
    assert torch.equal(drawn.times, work.policy.grid(GUIDED))
    assert drawn.prompt.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert drawn.uncond["number"].tolist() == [[7.0]]
    assert len(drawn.cond["number"]) == 4
    policy, cond = work.policy, drawn.cond["number"][drawn.prompt]
    for k in range(5):
        t, s = drawn.times[k].expand(8), drawn.times[k + 1].expand(8)
        without = {"number": torch.full((8, 1), 7.0)}
        guess = policy.guided(drawn.way[k], t, {"number": cond}, without, 1.5)
        step = policy.transition(drawn.way[k], guess, t, s, GUIDED.eta)
        torch.testing.assert_close(log_prob(drawn.way[k + 1], *step), drawn.log_prob[k])


class Naming(Reward):
    """The reward of an image is the number of its prompt, or NaN; notes what it was shown."""

    def __init__(self) -> None:
        self.shown: list[Tensor] = []

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        assert not images.requires_grad
        self.shown.append(images)
        return torch.tensor([float(p) for p in prompts], dtype=torch.float64)


def test_rewards_are_of_the_images_as_they_would_be_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    reward = Naming()
    work = toy_work(reward=reward)
    monkeypatch.setattr(work.policy, "portion", lambda size: size.width // 256)
    latents = torch.linspace(-2, 2, 10).reshape(5, 2, 1, 1).requires_grad_()
    found = rewarded(work, latents, ["3", "1", "4", "1", "5"])
    assert found.tolist() == [3, 1, 4, 1, 5]
    assert found.dtype == torch.float32
    assert [len(x) for x in reward.shown] == [2, 2, 1], "in portions of the autoencoder's"
    levels = [(x + 2) / 4 * 255 for x in latents.flatten().tolist()]
    shown = torch.cat(reward.shown)[:, :2].flatten() * 255
    assert shown.tolist() == pytest.approx([round(level) for level in levels], abs=1e-4)
    with pytest.raises(UserError, match=r"Naming is NaN or infinite for an image .* for 'nan'"):
        rewarded(work, latents, ["3", "nan", "inf", "1", "5"])
    with pytest.raises(UserError, match="this aligner needs a reward in the loop"):
        rewarded(toy_work(reward=None), latents, ["3"] * 5)


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        (torch.tensor(1.0), r"Fixed gave scores of shape \[\] for 2 images"),
        (torch.ones(2, 1), r"Fixed gave scores of shape \[2, 1\] for 2 images"),
        (torch.ones(1), r"Fixed gave scores of shape \[1\] for 2 images"),
        ([1.0, 2.0], "Fixed gave a list for 2 images"),
        (None, "Fixed gave a NoneType for 2 images"),
    ],
)
def test_a_reward_without_one_score_for_each_image_is_refused(
    monkeypatch: pytest.MonkeyPatch, returned: Any, says: str
) -> None:
    class Fixed(Reward):
        def score(self, images, prompts):
            return returned

    work = toy_work(reward=Fixed())
    monkeypatch.setattr(work.policy, "portion", lambda _: 2)
    with pytest.raises(UserError, match=says):
        rewarded(work, torch.zeros(2, 2, 1, 1), ["0", "1"])


def numbered() -> Drawn:
    """Three images of two prompts in four steps; every number is another one."""
    numbers = torch.arange(100.0)
    return Drawn(
        numbers[:30].reshape(5, 3, 2, 1, 1), numbers[30:35], numbers[40:52].reshape(4, 3),
        numbers[60:63], torch.tensor([1, 0, 0]), {"number": torch.tensor([[70.0], [71.0]])},
        {"number": torch.tensor([[80.0]])},
    )  # fmt: skip


@pytest.mark.parametrize("scale", [None, 1.5])
def test_a_row_is_a_step_of_an_image(scale: float | None) -> None:
    image, k = torch.tensor([2, 0, 2, 1]), torch.tensor([3, 0, 1, 2])
    batch = step_batch(numbered(), image, k, scale)
    expected = {
        "noisy": [
            [6.0 * k + 2 * i, 6.0 * k + 2 * i + 1] for i, k in ((2, 3), (0, 0), (2, 1), (1, 2))
        ],
        "next": [
            [6.0 * k + 6 + 2 * i, 6.0 * k + 7 + 2 * i] for i, k in ((2, 3), (0, 0), (2, 1), (1, 2))
        ],
        "t": [33.0, 30.0, 31.0, 32.0],
        "s": [34.0, 31.0, 32.0, 33.0],
        "log_prob": [51.0, 40.0, 45.0, 47.0],
        "reward": [62.0, 60.0, 62.0, 61.0],
        "cond.number": [[70.0], [71.0], [70.0], [70.0]],
    }
    if scale:
        expected |= {"guidance": [1.5] * 4, "uncond.number": [[80.0]] * 4}
    found = {
        name: (x.flatten(1) if x.ndim > 2 else x).tolist() for name, x in batch.tensors.items()
    }
    assert found == expected


def test_all_steps_of_a_rollout_are_learned_from_once() -> None:
    """A rollout is 16 rows: two updates of 8; of the last in a run of five only the first."""
    work = toy_work(max_steps=5, micro_batch=4)
    for start in (0, 2):
        batches = list(SMALL.batches(dataclasses.replace(work, start_step=start)))
        assert len(batches) == 5 - start
        for at, batch in enumerate(batches, start):
            first = at - at % 2
            sampler = dataclasses.replace(work.sampler, eta=SMALL.eta)
            # of 10 steps the first half has noise
            drawn = draw_groups(work, first, 8, 4, sampler, "ancestral", range(5))
            rows = learned_steps(8, range(5), 2, work.generator(first, "steps"))
            weight = step_weights(work.policy, drawn.times, range(5), 1.0, "ancestral")
            image, k = rows[8 * (at - first) :][:8].unbind(1)
            expected = step_batch(drawn, image, k, None).tensors
            assert batch.tensors.keys() == expected.keys() | {"advantage", "weight"}
            for name, value in expected.items():
                torch.testing.assert_close(batch[name], value)
            advantage = group_advantages(drawn.reward, 4, 5.0)[image]
            torch.testing.assert_close(batch["advantage"], advantage)
            torch.testing.assert_close(batch["weight"], weight[k])


def test_form_eta_noisy_steps_and_cut_are_the_aligners() -> None:
    policy = Watched()
    aligner = dataclasses.replace(SMALL, eta=0.3, noise="cps", advantage_clip=0.5)
    batch = next(iter(aligner.batches(toy_work(policy))))
    asked = {(a["sampler"].eta, a["form"], a["noisy_steps"]) for a in policy.asked}
    assert asked == {(0.3, "cps", range(5))}
    assert batch["advantage"].abs().max() == 0.5


def test_processes_share_out_the_rows_of_an_update() -> None:
    whole = next(iter(SMALL.batches(toy_work())))
    work = toy_work()
    drawn = draw_groups(work, 0, 8, 4, dataclasses.replace(work.sampler, eta=1.0), "ancestral")
    three = [
        drawn.way.transpose(0, 1).contiguous(), drawn.log_prob.T.contiguous(), drawn.reward
    ]  # fmt: skip
    for rank in (0, 1):
        waiting = iter(three)
        alone = toy_work(rank=rank, world=2, gather=lambda _, waiting=waiting: next(waiting))
        mine = next(iter(SMALL.batches(alone)))
        assert len(mine) == 4
        for name, value in whole.tensors.items():
            torch.testing.assert_close(mine[name], value[4 * rank :][:4])


@pytest.mark.parametrize("noise", ["ancestral", "cps"])
def test_loss_of_a_batch_written_out(noise: str) -> None:
    """The policy has moved since the steps were drawn: some are beyond the clip, some are not."""
    aligner = dataclasses.replace(SMALL, noise=noise, eta=0.5)
    policy, rng = ToyPolicy(), torch.Generator().manual_seed(0)
    work = toy_work(policy)
    batch = next(iter(aligner.batches(work)))
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=rng))
    prediction = policy.predict(batch["noisy"], batch["t"], batch.cond)
    step = policy.transition(batch["noisy"], prediction, batch["t"], batch["s"], 0.5, noise)
    ratio = [math.exp(x) for x in (log_prob(batch["next"], *step) - batch["log_prob"]).tolist()]
    clip = sum(sorted(abs(r - 1) for r in ratio)[3:5]) / 2
    loss, scalars = dataclasses.replace(aligner, clip_range=clip).loss(work, batch)
    rows = [*zip(ratio, batch["advantage"].tolist(), batch["weight"].tolist(), strict=True)]
    losses = [w * max(-a * r, -a * min(max(r, 1 - clip), 1 + clip)) for r, a, w in rows]
    outside = [abs(r - 1) > clip for r in ratio]
    # the others of these have their gradient: they went the other way
    stopped = [o and (r - 1) * a > 0 for o, (r, a, _) in zip(outside, rows, strict=True)]
    assert 0 < sum(stopped) < sum(outside) == 4
    assert loss.item() == pytest.approx(sum(losses) / 8, rel=1e-4)
    expected = {
        "reward": batch["reward"].mean().item(), "ratio": sum(ratio) / 8,
        "clipped": sum(stopped) / 8,
    }  # fmt: skip
    assert {k: v.item() for k, v in scalars.items()} == pytest.approx(expected, rel=1e-4)
    assert not any(v.requires_grad for v in scalars.values())
    assert loss.requires_grad


def test_a_ratio_at_the_end_of_the_clip_range_is_not_clipped() -> None:
    """The clamp has its gradient there."""
    policy = ToyPolicy()
    work = toy_work(policy)
    batch = next(iter(SMALL.batches(work))).rows(slice(0, 1))
    with torch.no_grad():
        policy.network[-1].bias.add_(0.01)
    ratio = SMALL.loss(work, batch.plus())[1]["ratio"]
    assert ratio != 1
    as_asked = batch.plus(advantage=(ratio - 1).sign().reshape(1))
    for factor, clipped in ((1.0, 0), (0.99, 1)):
        at_end = dataclasses.replace(SMALL, clip_range=factor * (ratio - 1).abs().item())
        assert at_end.loss(work, as_asked.plus())[1]["clipped"] == clipped
        other_way = as_asked.plus(advantage=-as_asked["advantage"])
        assert at_end.loss(work, other_way)[1]["clipped"] == 0


@pytest.mark.parametrize(
    "options",
    [
        {"images": 2, "group_size": 2, "steps_per_image": 1}, {"eta": 0.5}, {"clip_range": 2.0},
        {"window": 1.0}, {"window": 0.01}, {"advantage_clip": 0.5}, {"noise": "cps"},
        {"noise": "dance"}, {"images": 24},
    ],
)  # fmt: skip
def test_options_to_the_ends_of_their_ranges(options: dict[str, Any]) -> None:
    assert GroupPolicy(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps_per_image": 0}, "steps_per_image 0 is too small; give 1 or more"),
        ({"images": 7}, "images 7 is too small; give 8 or more"),
        ({"images": 20}, "give --images 16 or 24"),
        ({"group_size": 1}, "group_size 1 is too small; give 2 or more"),
        ({"clip_range": 0.0}, r"clip_range 0\.0 must be above 0"),
        ({"clip_range": math.inf}, "clip_range inf must be above 0"),
        ({"advantage_clip": 0.0}, r"advantage_clip 0\.0 must be above 0"),
        ({"advantage_clip": math.inf}, "advantage_clip inf must be above 0"),
        ({"window": 0.0}, r"window 0\.0 is not in"),
        ({"window": 1.1}, r"window 1\.1 is not in"),
        ({"eta": -0.1}, r"eta -0\.1 must be above 0"),
        ({"eta": 1.5}, r"eta 1\.5 is more noise than a step of noise ancestral can have; give 1 "),
        ({"eta": 2.0, "noise": "cps"}, r"eta 2\.0 is more noise than a step of noise cps"),
    ],
)
def test_bad_options_name_themselves(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        GroupPolicy(**options)
    assert GroupPolicy(eta=1.5, noise="dance").eta == 1.5


@pytest.mark.parametrize(
    ("batch_size", "message"),
    [
        (3, "whole batches of 3; use batches of 2 or 4$"),
        (6, "whole batches of 6; use batches of 4 or 8$"),
        (12, "whole batches of 12; use batches of 8 or 16$"),
        (17, "whole batches of 17; use batches of 16$"),
    ],
)
def test_sizes_near_by_are_advised(batch_size: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        SMALL.period(batch_size)


def test_of_a_prime_number_of_rows_one_or_all_fit() -> None:
    seven = dataclasses.replace(SMALL, images=7, group_size=7, steps_per_image=1)
    with pytest.raises(UserError, match=r"use batches of 1 or 7$"):
        seven.period(3)


def test_rows_are_guided_as_they_were_drawn() -> None:
    batch = next(iter(SMALL.batches(toy_work(sampler=GUIDED))))
    assert batch["guidance"].tolist() == [1.5] * 8
    assert batch.uncond["number"].flatten().tolist() == [7.0] * 8


def test_what_the_work_does_not_allow_is_refused() -> None:
    all_nine = dataclasses.replace(SMALL, steps_per_image=9, window=1.0)
    assert len(next(iter(all_nine.batches(toy_work())))) == 8
    few = dataclasses.replace(SMALL, steps_per_image=4, window=1.0).batches(
        toy_work(sampler=Sampler(3, 1.0))
    )
    with pytest.raises(UserError, match=r"of the 3 sampling steps, 2 have noise; .* 2 or fewer$"):
        next(few)
    uneven = "3 processes cannot share 8 images of a rollout evenly; give --images 12, or start"
    with pytest.raises(UserError, match=uneven):
        check_options(TrainOptions(batch_size=9), SMALL, processes=3)
    with pytest.raises(UserError, match=r"16 images of .*; give --images 12 or 24, or start"):
        dataclasses.replace(SMALL, images=16).check_shares(8, 8, 3)
    flow = dataclasses.replace(SMALL, noise="flow_grpo")
    with pytest.raises(UserError, match="is not one; choose ancestral or cps"):
        next(iter(flow.batches(toy_work())))
    assert next(iter(SMALL.batches(toy_work(ToyPolicy(kind="velocity")))))


def test_advantages_of_nearly_equal_rewards_are_not_blown_up() -> None:
    rewards = torch.tensor([0.0, 2e-8, 0.0, 2e-8])
    assert group_advantages(rewards, 2, 5.0).tolist() == pytest.approx([-0.01, 0.01] * 2)
    assert group_advantages(torch.tensor([0.0] * 99 + [1.0]), 100, 3.0).max() == 3
    assert group_advantages(torch.tensor([1.0] * 99 + [0.0]), 100, 3.0).min() == -3


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("noise", ["ancestral", "cps"])
def test_weights_of_steps_by_hand(noise: Noise, squared: bool) -> None:
    """Noise over the mean's slope in the prediction, which is eps here; 1 on average.

    Of −distance², whose gradient is 2 std² times that of the density, one over both.
    """
    policy, times = ToyPolicy(8), torch.tensor([0.8, 0.6, 0.3, 0.0])
    expected = []
    for t, s in ((0.8, 0.6), (0.6, 0.3)):
        (a, b), (c, d) = ((math.cos(x * math.pi / 2), math.sin(x * math.pi / 2)) for x in (t, s))
        share = (
            math.sin(math.pi / 4) if noise == "cps" else 0.5 * math.sqrt(1 - (a * d / c / b) ** 2)
        )
        std = d * share
        slope = abs(math.sqrt(d**2 - std**2) - c * b / a)
        expected.append(1 / (std * slope) if squared else std / slope)
    found = step_weights(policy, times, range(2), 0.5, noise, squared=squared)
    mean = sum(expected) / 2
    assert found.tolist() == pytest.approx([x / mean for x in expected], rel=1e-4)
    equal = dataclasses.replace(SMALL, weighting="equal")
    assert next(iter(equal.batches(toy_work())))["weight"].tolist() == [1.0] * 8


# where it is computed, of which a CPU shows nothing


def test_weights_of_steps_are_computed_on_the_policys_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy, given = ToyPolicy(8), list[Tensor]()

    def transition(*args: Any) -> tuple[Tensor, Tensor]:
        given.extend(arg for arg in args if isinstance(arg, Tensor))
        return torch.ones(2, 1, 1, 1), torch.ones(2)

    policy.device = torch.device("meta")
    monkeypatch.setattr(policy, "transition", transition)
    step_weights(policy, torch.tensor([0.8, 0.6, 0.3, 0.0]), range(2), 0.5, "ancestral")
    assert [x.device.type for x in given] == ["meta"] * 4


def test_rewards_are_on_the_latents_device(monkeypatch: pytest.MonkeyPatch) -> None:
    work = toy_work()
    monkeypatch.setattr(work.policy, "decode", lambda _: torch.zeros(1, 3, 1, 1))
    found = rewarded(work, torch.zeros(1, 2, 1, 1, device="meta"), ["1"])
    assert found.device.type == "meta"


class Begun(Exception):
    """Drawing has begun."""


def test_conditions_are_taken_on_the_policys_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(*_: object, **__: object) -> None:
        raise Begun

    work, rows = toy_work(), list[Tensor]()
    work.policy.device = torch.device("meta")
    monkeypatch.setattr(_rollouts, "take", lambda _, index: rows.append(index))
    monkeypatch.setattr(work.policy, "rollout", begin)
    with pytest.raises(Begun):
        draw_groups(work, 0, 4, 2, GUIDED, "ancestral")
    assert [index.device.type for index in rows] == ["meta"]
