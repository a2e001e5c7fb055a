"""lair: advantages and loss by hand, where gains end, and which lists take part."""

import dataclasses
import math

import pytest
import torch

from sayso.aligners.lair import Listwise, list_advantages, listwise_loss
from sayso.base.errors import UserError
from sayso.testing import ToyPolicy, toy_work


def test_advantages_by_hand() -> None:
    scores = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.5]])
    e = math.exp(2)
    expected = [[e / (e + 2) - 1 / 3, 1 / (e + 2) - 1 / 3, 1 / (e + 2) - 1 / 3], [0.0] * 3]
    found = list_advantages(scores, 0.5)
    torch.testing.assert_close(found, torch.tensor(expected))
    torch.testing.assert_close(found.sum(1), torch.zeros(2))
    torch.testing.assert_close(list_advantages(scores, 1e-3)[0], torch.tensor([2, -1, -1]) / 3)


def test_loss_by_hand_and_its_least() -> None:
    gain, advantage = torch.tensor([[0.2, -0.1]]), torch.tensor([[0.4, -0.4]])
    by_hand = 5 * (0.04 + 0.01) - (0.4 * 0.2 + 0.4 * 0.1)
    assert listwise_loss(gain, advantage, 10.0).item() == pytest.approx(by_hand)
    at = (advantage / 10).requires_grad_()
    listwise_loss(at, advantage, 10.0).sum().backward()
    assert at.grad is not None
    assert at.grad.abs().max() < 1e-7
    with pytest.raises(ValueError, match=r"beta 0\.0 must be above 0"):
        listwise_loss(gain, advantage, 0.0)


def test_a_list_is_of_one_prompt_at_one_t_and_noise() -> None:
    work, aligner = toy_work(batch_size=12), Listwise(list_size=4, prompt_dropout=0.0)
    data = work.data
    place = {tuple(x.flatten().tolist()): i for i, x in enumerate(data.latents[data.own])}
    for batch in aligner.batches(work):
        rows = torch.tensor([place[tuple(x.flatten().tolist())] for x in batch["latents"]])
        for name in ("t", "noise"):
            values = batch[name].reshape(3, 4, -1)
            assert (values == values[:, :1]).all(), name
        lists = rows.reshape(3, 4)
        assert (data.text[lists] == data.text[lists[:, :1]]).all()
        assert all(len(set(own.tolist())) == 4 for own in lists)
        expected = list_advantages(data.label[lists], 0.5)
        torch.testing.assert_close(batch["advantage"].reshape(3, 4), expected)


def with_labels(label: torch.Tensor) -> object:
    work = toy_work()
    return dataclasses.replace(work, data=dataclasses.replace(work.data, label=label))


def test_prompts_whose_images_are_alike_or_few_are_left_out() -> None:
    data = toy_work().data
    label = data.label.clone()
    own = data.text[: data.n_own]
    first, second, third = own.unique().tolist()
    label[: data.n_own][own == first] = 1.0
    label[: data.n_own][(own == second).nonzero().flatten()[3:]] = math.nan
    lists = Listwise()._lists(own, label[: data.n_own])
    assert len(lists) == 1
    assert {own[i].item() for i in lists[0]} == {third}
    assert label[lists[0]].isfinite().all()
    with pytest.raises(UserError, match="no prompt has 7 images of different quality"):
        Listwise(list_size=7)._lists(own, label[: data.n_own])


def test_a_reward_scores_images_that_nobody_rated() -> None:
    work, aligner = toy_work(batch_size=8), Listwise(list_size=8, score="reward")
    with pytest.raises(UserError, match="no prompt has 8 images"):
        next(iter(Listwise(list_size=8).batches(work)))
    batch = next(iter(aligner.batches(work)))
    assert len(set(batch["advantage"].tolist())) == 8
    assert aligner.required() == {"reward", "reference"}
    assert Listwise().required() == {"data", "bad", "reference"}


def test_the_log_has_the_gain_of_the_best_and_of_the_worst() -> None:
    policy = ToyPolicy()
    policy.keep_reference()
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.mul_(1.1)
    work, aligner = toy_work(policy), Listwise()
    batch = next(iter(aligner.batches(work)))
    loss, scalars = aligner.loss(work, batch)
    gain = (work.error(batch, "reference") - work.error(batch)).detach().reshape(2, 4)
    advantage = batch["advantage"].reshape(2, 4)
    rows = torch.arange(2)
    torch.testing.assert_close(scalars["gain_best"], gain[rows, advantage.argmax(1)].mean())
    torch.testing.assert_close(scalars["gain_worst"], gain[rows, advantage.argmin(1)].mean())
    torch.testing.assert_close(loss, listwise_loss(gain, advantage, 500.0).mean())


@pytest.mark.parametrize(
    "options",
    [{"beta": 0.0}, {"temperature": math.inf}, {"list_size": 1},
     {"prompt_dropout": 1.0}],
)  # fmt: skip
def test_bad_options_name_themselves(options: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        Listwise(**options)
