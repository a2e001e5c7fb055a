"""nft: the loss by hand, its gradient at the start, its bounded step, which images take part."""

import dataclasses
import math

import pytest
import torch

from sayso.aligners.nft import NegativeAware, contrastive_loss, within_prompts
from sayso.base.errors import UserError
from sayso.testing import ToyPolicy, toy_work


def rows(*values: float) -> torch.Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1)


def test_loss_by_hand() -> None:
    """β 2: p = 1.5, old = 1: p⁺ = 2, p⁻ = 0; of target 3 they are off by 1 and 3."""
    loss = contrastive_loss(
        rows(1.5, 1.5), rows(1.0, 1.0), rows(3.0, 3.0), torch.tensor([1.0, 0.25]), 2.0
    )
    # squares over sizes: 1/1 and 9/3
    torch.testing.assert_close(loss, torch.tensor([1 / 2, (0.25 * 1 + 0.75 * 3) / 2]))
    with pytest.raises(ValueError, match=r"beta 0\.0 must be above 0"):
        contrastive_loss(rows(1.0), rows(1.0), rows(1.0), torch.ones(1), 0.0)


@pytest.mark.parametrize("beta", [0.5, 1.0, 4.0])
def test_its_gradient_at_the_start_is_that_of_a_signed_error(beta: float) -> None:
    rng = torch.Generator().manual_seed(0)
    old, target = torch.randn(2, 5, 2, 3, 3, generator=rng)
    r = torch.tensor([0.0, 0.3, 0.5, 0.8, 1.0])
    prediction = old.clone().requires_grad_()
    contrastive_loss(prediction, old, target, r, beta).sum().backward()
    off = old - target
    size = off.abs().flatten(1).mean(1).view(-1, 1, 1, 1)
    signed = (2 * r - 1).view(-1, 1, 1, 1) * 2 * off / off[0].numel() / size
    torch.testing.assert_close(prediction.grad, signed)


@pytest.mark.parametrize(("r", "ends"), [(0.0, -1), (0.25, -1), (0.75, 1), (1.0, 1)])
def test_bad_images_push_by_a_bounded_step(r: float, ends: int) -> None:
    """For one number the loss is r · |βx − 1| + (1 − r) · |βx + 1|: least where a kink is."""
    places = torch.linspace(-3, 3, 601)
    n, nothing = len(places), torch.zeros(len(places), 1, 1, 1)
    loss = contrastive_loss(
        places.view(-1, 1, 1, 1), nothing, nothing + 1, torch.full((n,), r), 2.0
    )
    assert float(places[loss.argmin()]) == pytest.approx(ends / 2, abs=0.01)


def test_an_exact_prediction_divides_by_no_zero() -> None:
    prediction = rows(1.0).requires_grad_()
    loss = contrastive_loss(prediction, rows(1.0), rows(1.0), torch.ones(1), 1.0)
    loss.sum().backward()
    assert loss.item() == 0
    assert prediction.grad is not None
    assert prediction.grad.item() == 0


def test_within_prompts_by_hand() -> None:
    scores, prompt = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.6]), torch.tensor([7, 7, 7, 7, 2])
    expected = [0.5 + 0.25 / 2, 0.5 - 0.75 / 2, 0.5 + 0.25 / 2, 0.5 + 0.25 / 2, 0.5]
    assert within_prompts(scores, prompt).tolist() == pytest.approx(expected)


def test_rated_images_take_part_and_with_a_reward_all() -> None:
    work = toy_work()
    label, n = work.data.label, work.data.n_own
    chosen, r = NegativeAware().scored_rows(work)
    assert chosen.tolist() == [i for i in range(n) if label[i].isfinite()]
    assert torch.equal(r, label[chosen])
    chosen, r = NegativeAware(score="reward").scored_rows(work)
    assert torch.equal(chosen, torch.arange(n))
    assert torch.equal(r, work.data.reward[:n])
    chosen, r = NegativeAware(centred=True).scored_rows(work)
    assert torch.equal(r, within_prompts(label[chosen], work.data.text[chosen]))


def test_what_is_needed_follows_the_score() -> None:
    assert NegativeAware().required() == {"data", "bad", "reference"}
    assert NegativeAware(score="reward").required() == {"reward", "reference"}


@pytest.mark.parametrize("reward", [-0.1, 1.1, math.nan])
def test_rewards_outside_are_refused(reward: float) -> None:
    work = toy_work()
    work.data.reward[3] = reward
    with pytest.raises(UserError, match=r"nft needs them in \[0, 1\]; choose a run of fit"):
        NegativeAware(score="reward").scored_rows(work)


def test_without_ratings_there_is_nothing_to_train_on() -> None:
    work = toy_work()
    nobody = dataclasses.replace(work.data, label=torch.full_like(work.data.label, math.nan))
    with pytest.raises(UserError, match="no images to train on: rate some"):
        next(iter(NegativeAware().batches(dataclasses.replace(work, data=nobody))))


def test_the_log_tells_good_and_bad_images_apart() -> None:
    policy = ToyPolicy()
    policy.keep_reference()
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.mul_(1.1)
    work = toy_work(policy)
    batch = next(iter(NegativeAware(prompt_dropout=0.0).batches(work)))
    _, scalars = NegativeAware().loss(work, batch)
    rise = (work.error(batch) - work.error(batch, "reference")).detach()
    good = batch["optimality"] > 0.5
    assert 0 < good.sum() < len(batch)
    torch.testing.assert_close(scalars["rise_good"], rise[good].mean())
    torch.testing.assert_close(scalars["rise_bad"], rise[~good].mean())
    torch.testing.assert_close(scalars["error"], work.error(batch).mean())


@pytest.mark.parametrize("options", [{"beta": 0.0}, {"beta": math.inf}, {"prompt_dropout": 1.0}])
def test_bad_options_name_themselves(options: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        NegativeAware(**options)
