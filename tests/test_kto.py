"""kto: the loss by hand, the reference point of a whole step, good and bad images in each step."""

import dataclasses
import math

import pytest
import torch

from sayso.aligners.kto import KahnemanTversky, kto_loss
from sayso.base.errors import UserError
from sayso.testing import ToyPolicy, toy_work
from sayso.testing.checks import _assert_same, _of_two_processes
from sayso.training.needs import check_options
from sayso.training.options import TrainOptions


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_loss_by_hand() -> None:
    gain, point = torch.tensor([0.03, 0.03, -0.01]), torch.full((3,), 0.01)
    sign = torch.tensor([1.0, -1.0, -1.0])
    felt = [100 * 0.02, -100 * 0.02, 100 * 0.02]
    expected = {
        "sigmoid": [1 - sigmoid(x) for x in felt],
        "loss_averse": [-math.log(sigmoid(x)) for x in felt],
        "risk_seeking": [1 + math.log(sigmoid(-x)) for x in felt],
    }
    for utility, values in expected.items():
        found = kto_loss(gain, point, sign, 100.0, utility)
        torch.testing.assert_close(found, torch.tensor(values))
    with pytest.raises(ValueError, match=r"beta -1\.0 must be above 0"):
        kto_loss(gain, point, sign, -1.0)


@pytest.mark.parametrize("utility", ["sigmoid", "loss_averse", "risk_seeking"])
def test_good_images_gain_and_bad_ones_lose(utility: str) -> None:
    gain = torch.zeros(2, requires_grad=True)
    kto_loss(gain, torch.zeros(2), torch.tensor([1.0, -1.0]), 8.0, utility).sum().backward()
    assert gain.grad is not None
    slope = {"sigmoid": 2.0, "loss_averse": 4.0, "risk_seeking": 4.0}[utility]
    assert gain.grad.tolist() == pytest.approx([-slope, slope])


def moved() -> ToyPolicy:
    """A policy that has left its reference for a better place on the toy's points."""
    policy, work = ToyPolicy(), toy_work()
    policy.keep_reference()
    parameters = list(policy.trainable().values())
    for step in range(30):
        generator = work.generator(step)
        batch = dataclasses.replace(work, policy=policy).denoising_batch(
            work.data.own[:16], generator
        )
        target = policy.target(batch["latents"], batch["noise"], batch["t"])
        noisy = policy.add_noise(batch["latents"], batch["noise"], batch["t"])
        error = (policy.predict(noisy, batch["t"], batch.cond) - target).square().mean()
        for p, g in zip(parameters, torch.autograd.grad(error, parameters), strict=True):
            p.data.sub_(0.1 * g)
    return policy


@pytest.mark.parametrize("micro_batch", [64, 3])
def test_the_point_is_the_mean_gain_of_the_whole_step(micro_batch: int) -> None:
    work = toy_work(moved(), micro_batch=micro_batch)
    batch = next(iter(KahnemanTversky().batches(work)))
    gain = (work.error(batch, "reference") - work.error(batch)).detach()
    assert gain.mean() > 0
    torch.testing.assert_close(batch["point"], gain.mean().expand(8))


def test_processes_with_unequal_shares_have_one_point() -> None:
    work = toy_work(moved(), batch_size=7, micro_batch=2)
    alone = list(KahnemanTversky().batches(work))
    assert alone[0]["point"].min() > 0
    _assert_same(alone, _of_two_processes(KahnemanTversky(), work), "two make what one does")


def test_a_loss_is_no_point_to_start_from() -> None:
    policy = ToyPolicy()
    policy.keep_reference()
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.mul_(3.0)
    work = toy_work(policy)
    batch = next(iter(KahnemanTversky().batches(work)))
    assert (work.error(batch, "reference") - work.error(batch)).mean() < 0
    assert batch["point"].tolist() == [0.0] * 8


@pytest.mark.parametrize(("share", "n"), [(0.8, 6), (0.5, 4), (0.01, 1), (0.99, 7)])
def test_each_step_has_good_and_bad_images(share: float, n: int) -> None:
    policy = ToyPolicy()
    policy.keep_reference()
    work = toy_work(policy)
    for batch in KahnemanTversky(good_share=share).batches(work):
        assert (batch["sign"] == 1).sum() == n
        points = {
            tuple(x.flatten().tolist()): i for i, x in enumerate(work.data.latents[work.data.own])
        }
        label = [work.data.label[points[tuple(x.flatten().tolist())]] for x in batch["latents"]]
        assert [2 * float(m) - 1 for m in label] == batch["sign"].tolist()


@pytest.mark.parametrize("fraction", [0.0, 0.5])
def test_a_step_without_room_for_both_is_refused(fraction: float) -> None:
    n = 1 if fraction == 0 else 2
    options = TrainOptions(batch_size=n, pretraining_weight=1.0, pretraining_fraction=fraction)
    says = f"batch_size {n} has 1 row for them; give a larger --batch-size, or a smaller"
    with pytest.raises(UserError, match=says):
        check_options(options, KahnemanTversky(), 1)
    check_options(dataclasses.replace(options, batch_size=4), KahnemanTversky(), 1)


def test_an_image_that_half_of_its_raters_call_good_is_neither() -> None:
    """And a step's rows are the same in every process and every run."""
    policy = ToyPolicy()
    policy.keep_reference()
    work = toy_work(policy, batch_size=64)
    work.data.label[:12] = 0.5
    undecided = {tuple(x.flatten().tolist()) for x in work.data.latents[work.data.own[:12]]}
    batch, again = (next(iter(KahnemanTversky().batches(work))) for _ in range(2))
    assert torch.equal(batch["latents"], again["latents"])
    assert not undecided & {tuple(x.flatten().tolist()) for x in batch["latents"]}


@pytest.mark.parametrize(("label", "lacking"), [(1.0, "bad"), (0.0, "good")])
def test_both_kinds_are_needed(label: float, lacking: str) -> None:
    work = toy_work()
    alike = dataclasses.replace(work.data, label=torch.full_like(work.data.label, label))
    with pytest.raises(UserError, match=f"no image is rated {lacking} by most"):
        next(iter(KahnemanTversky().batches(dataclasses.replace(work, data=alike))))


def test_the_log_tells_good_and_bad_images_apart() -> None:
    work = toy_work(moved())
    batch = next(iter(KahnemanTversky().batches(work)))
    loss, scalars = KahnemanTversky(beta=5.0).loss(work, batch)
    gain = (work.error(batch, "reference") - work.error(batch)).detach()
    good = batch["sign"] > 0
    torch.testing.assert_close(scalars["gain_good"], gain[good].mean())
    torch.testing.assert_close(scalars["gain_bad"], gain[~good].mean())
    torch.testing.assert_close(scalars["point"], batch["point"].mean())
    assert loss == kto_loss(gain, batch["point"], batch["sign"], 5.0).mean()


@pytest.mark.parametrize(
    "options",
    [{"beta": 0.0}, {"beta": math.nan}, {"good_share": 1.0},
     {"prompt_dropout": -0.1}],
)  # fmt: skip
def test_bad_options_name_themselves(options: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        KahnemanTversky(**options)
