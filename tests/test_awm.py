"""awm: weights, ratio and loss by hand, groups at one t and noise, and what is logged."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from sayso.aligners.awm import AdvantageWeighted, group_weights, matching_ratio, time_weights
from sayso.base.errors import UserError
from sayso.families import Kind
from sayso.testing import ToyPolicy, toy_work

SMALL = AdvantageWeighted(images=8, group_size=4, times_per_image=2, prompt_dropout=0.0)
GROUPS = dataclasses.replace(SMALL, groups=True)


def apart(kind: Kind = "eps", by: float = 0.02) -> ToyPolicy:
    """A policy that is neither its frozen start nor its older self."""
    policy = ToyPolicy(kind=kind)
    policy.keep_reference()
    policy.remember("old")
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.add_(by)
    return policy


def test_weights_and_ratio_by_hand() -> None:
    t, old = torch.tensor([0.2, 0.8]), torch.tensor([0.25, 4.0])
    assert time_weights("equal", t, old).tolist() == [1.0, 1.0]
    assert time_weights("t", t, old).tolist() == t.tolist()
    assert time_weights("error", t, old).tolist() == [2.0, 0.5]
    assert time_weights("error", t, torch.zeros(2)).isfinite().all()
    found = matching_ratio(torch.tensor([0.5, 4.0]), old, torch.tensor([2.0, 0.5]))
    assert found.tolist() == pytest.approx([math.exp(-0.5), 1.0])


def test_group_weights_by_hand() -> None:
    """In the first group the better image is fitted more closely, as asked; in the second less."""
    rise = torch.tensor([[-0.02, 0.02], [0.02, -0.02], [0.0, 0.0]], requires_grad=True)
    advantage = torch.tensor([[1.0, -1.0]] * 3)
    found = group_weights(rise, advantage, 100.0)
    assert found.tolist() == pytest.approx([1 / (1 + math.exp(2)), 1 / (1 + math.exp(-2)), 0.5])
    assert not found.requires_grad


@pytest.mark.parametrize("kind", ["eps", "v", "velocity"])
@pytest.mark.parametrize("weighting", ["error", "t", "equal"])
def test_at_the_start_the_gradient_is_that_of_weighted_errors(kind: Kind, weighting: str) -> None:
    """A · w · e, whatever the clip and the weight of the distance to the older self."""
    policy = apart(kind, 0.0)
    work, aligner = toy_work(policy), dataclasses.replace(SMALL, weighting=weighting)
    batch = next(iter(aligner.batches(work)))
    ours = _gradient(policy, aligner.loss(work, batch)[0])
    again = batch.rows(slice(None))
    error = work.error(again)
    weight = time_weights(weighting, batch["t"], error.detach())  # type: ignore[arg-type]
    theirs = _gradient(policy, (batch["advantage"] / 5 * weight * error).mean())
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)
    assert ours.abs().max() > 1e-4


def test_groups_halve_it_at_the_start_and_let_go_later() -> None:
    policy = apart(by=0.0)
    work, alone = toy_work(policy), dataclasses.replace(GROUPS, groups=False)
    batch = next(iter(GROUPS.batches(work)))
    ours, theirs = (_gradient(policy, a.loss(work, batch)[0]) for a in (GROUPS, alone))
    torch.testing.assert_close(ours, theirs / 2, rtol=1e-4, atol=1e-7)
    work = toy_work(apart())
    batch = next(iter(GROUPS.batches(work)))
    loss, told = GROUPS.loss(work, batch)
    error, old, start = (work.error(batch, m) for m in ("policy", "old", "reference"))
    left = group_weights((error - start).reshape(2, 4), batch["advantage"].reshape(2, 4), 100.0)
    assert left.sub(0.5).abs().min() > 1e-3
    ratio = (-(error - old) / old.sqrt()).exp()
    apart_by = (work.prediction(batch) - work.prediction(batch, "old")).square().mean()
    by_hand = (-left.repeat_interleave(4) * batch["advantage"] / 5 * ratio).mean() + apart_by
    torch.testing.assert_close(loss, by_hand)
    torch.testing.assert_close(told["group_weight"], left.mean())


def _gradient(policy: ToyPolicy, loss: Tensor) -> Tensor:
    grads = torch.autograd.grad(loss, [*policy.trainable().values()], retain_graph=True)
    return torch.cat([g.flatten() for g in grads])


def test_a_group_shares_time_and_noise_and_is_whole() -> None:
    work = toy_work(apart(), max_steps=4)
    for batch in GROUPS.batches(work):
        for name in ("t", "noise"):
            values = batch[name].reshape(2, 4, -1)
            assert (values == values[:, :1]).all(), name
            assert (values[0] != values[1]).any(), name
        # advantages are centred in a whole group only
        sums = batch["advantage"].reshape(2, 4).sum(1)
        torch.testing.assert_close(sums, torch.zeros(2), rtol=0, atol=1e-5)
        for values in (batch.cond["number"].reshape(2, 4),):
            assert (values == values[:, :1]).all()


def test_beyond_the_clip_there_is_no_gradient_and_the_log_says_so() -> None:
    policy = apart(by=0.05)
    tight = dataclasses.replace(SMALL, clip_range=1e-6, old_weight=0.0)
    work = toy_work(policy)
    batch = next(iter(tight.batches(work)))
    _, told = tight.loss(work, batch)
    error, old = work.error(batch), work.error(batch, "old")
    as_asked = (old - error) * batch["advantage"] > 0
    one = batch.rows(as_asked)
    assert 0 < len(one) < 8
    assert told["clipped"] == len(one) / 8
    gradient = _gradient(policy, tight.loss(work, one)[0])
    assert gradient.abs().max() == 0
    rise = (error - old).detach()
    torch.testing.assert_close(told["rise_good"], rise[batch["advantage"] > 0].mean())
    torch.testing.assert_close(told["rise_bad"], rise[batch["advantage"] < 0].mean())


def test_only_groups_need_the_frozen_start_and_stay_together() -> None:
    assert (SMALL.unit, GROUPS.unit) == (1, 4)
    assert GROUPS.required() - SMALL.required() == {"reference"}
    assert SMALL.period(8) == 2


@pytest.mark.parametrize(
    "options",
    [{"clip_range": 0.0}, {"beta": math.inf}, {"old_weight": -1.0}, {"old_decay": 1.0},
     {"prompt_dropout": 1.0}, {"times_per_image": 0}],
)  # fmt: skip
def test_bad_options_name_themselves(options: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        AdvantageWeighted(**options)
