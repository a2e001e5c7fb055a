"""dpo: loss and guard by hand, and the pairs that ratings and comparisons come to."""

import math
from pathlib import Path

import pytest
import torch
from studies import rated_study
from torch import Tensor

from sayso.aligners import Work
from sayso.aligners.dpo import DirectPreference, dpo_loss, guard_scale
from sayso.base.errors import UserError
from sayso.base.types import Choice, Comparison
from sayso.data.pairs import Pair, Pairs, pair_rows, pairs_of
from sayso.study.study import Study
from sayso.testing import ToyPolicy, toy_work


def test_loss_by_hand() -> None:
    error = torch.tensor([[0.10, 0.30], [0.30, 0.10], [0.2, 0.2]])
    reference = torch.tensor([[0.20, 0.20], [0.20, 0.20], [0.2, 0.2]])
    margins = [0.1 - (-0.1), -0.1 - 0.1, 0.0]
    expected = [math.log(1 + math.exp(-10 / 2 * m)) for m in margins]
    torch.testing.assert_close(dpo_loss(error, reference, 10.0), torch.tensor(expected))
    soft = [math.log(1 + math.exp(-0.5 / 2 * m)) for m in margins]
    torch.testing.assert_close(dpo_loss(error, reference, 0.5), torch.tensor(soft))
    with pytest.raises(ValueError, match=r"beta 0\.0 must be above 0"):
        dpo_loss(error, reference, 0.0)


def test_its_gradient_lowers_the_chosen_and_raises_the_rejected_error() -> None:
    error = torch.full((1, 2), 0.2, requires_grad=True)
    dpo_loss(error, torch.full((1, 2), 0.2), 8.0).sum().backward()
    # at the start the slope of −log sigmoid is −1/2: beta/2 · 1/2 for each side
    assert error.grad is not None
    assert error.grad[0].tolist() == [2.0, -2.0]


def after_a_step(g: Tensor, h: Tensor, scale: float) -> float:
    """First-order change of the chosen image's error when the output moves by scale · h − g."""
    return float((g * (scale * h - g)).sum())


def test_guard_lets_through_what_does_the_chosen_image_no_harm() -> None:
    rng = torch.Generator().manual_seed(0)
    chosen, rejected = torch.randn(2, 500, 2, 3, 3, generator=rng).unbind(0)
    rejected = rejected * torch.logspace(-2, 2, 500)[:, None, None, None]
    safe = guard_scale(chosen, rejected, 0.0)
    assert ((safe >= 0) & (safe <= 1)).all()
    changes = [after_a_step(g, h, float(s)) for g, h, s in zip(chosen, rejected, safe, strict=True)]
    assert max(changes) <= 1e-4
    # unguarded, some would be harmed
    free = [after_a_step(g, h, 1.0) for g, h in zip(chosen, rejected, strict=True)]
    assert max(free) > 1
    opposed = (chosen * rejected).flatten(1).sum(1) < 0
    assert (safe[opposed] == 1).all()
    cut = safe < 1
    torch.testing.assert_close(guard_scale(chosen, rejected, 0.8)[cut], 0.2 * safe[cut])


def test_guard_changes_the_gradient_and_not_the_loss() -> None:
    losses, gradients = [], []
    for guard in (0.0, 0.8):
        aligner, policy = DirectPreference(guard=guard, prompt_dropout=0.0), ToyPolicy()
        policy.keep_reference()
        work = toy_work(policy)
        loss, scalars = aligner.loss(work, next(iter(aligner.batches(work))))
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([p.grad.flatten() for p in policy.network.parameters()]))
        assert scalars["margin"] == 0
    assert losses == pytest.approx([math.log(2)] * 2)
    assert (gradients[0] - gradients[1]).norm() > 0.1 * gradients[0].norm()


def test_pairs_are_rows_2i_and_2i_plus_1() -> None:
    work = toy_work(batch_size=12)
    batch = next(iter(DirectPreference().batches(work)))
    assert work.pairs is not None
    known = {tuple(row) for row in work.pairs.rows.tolist()}
    everything = work.data.latents[torch.arange(len(work.data.text))]
    place = {tuple(x.flatten().tolist()): i for i, x in enumerate(everything)}
    drawn = [place[tuple(x.flatten().tolist())] for x in batch["latents"]]
    assert set(zip(drawn[::2], drawn[1::2], strict=True)) <= known
    assert torch.equal(batch["t"][::2], batch["t"][1::2])
    assert torch.equal(batch["noise"][::2], batch["noise"][1::2])


@pytest.mark.parametrize(
    "options", [{"beta": 0.0}, {"beta": math.nan}, {"beta": math.inf}, {"guard": 1.0}]
)
def test_bad_options_name_themselves(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        DirectPreference(**options)


@pytest.mark.parametrize(
    "options", [{"beta": 0.5}, {"guard": 0.0}, {"guard": 0.99, "prompt_dropout": 0.0}]
)
def test_options_to_the_ends_of_their_ranges(options: dict[str, float]) -> None:
    assert DirectPreference(**options)


def test_a_guard_has_nothing_to_keep_where_the_chosen_image_is_learned() -> None:
    """No gradient of the chosen image's error: no push can hurt it."""
    nothing, some = torch.zeros(1, 2, 1, 1), torch.ones(1, 2, 1, 1)
    assert guard_scale(nothing, some, 0.8).tolist() == [1.0]
    # g = (1, 0), h = (4, 3): |g|² / g·h = 1/4, and a fifth of that at guard 0.8
    g, h = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1), torch.tensor([4.0, 3.0]).view(1, 2, 1, 1)
    assert guard_scale(g, h, 0.8).tolist() == pytest.approx([0.05])
    assert guard_scale(g, h / 8, 0.0).tolist() == [1.0]


def moved_work(**changes: object) -> Work:
    """The policy has left its reference, each pair with a margin of its own."""
    policy, rng = ToyPolicy(), torch.Generator().manual_seed(3)
    policy.keep_reference()
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=rng))
    return toy_work(policy, **changes)


@pytest.mark.parametrize("guard", [0.0, 0.8])
def test_loss_and_gradient_of_a_batch_written_out(guard: float) -> None:
    aligner, work = (
        DirectPreference(beta=30.0, guard=guard, prompt_dropout=0.0),
        moved_work(batch_size=16),
    )
    batch = next(iter(aligner.batches(work)))
    loss, scalars = aligner.loss(work, batch)
    loss.backward()
    found = torch.cat([p.grad.flatten() for p in work.policy.network.parameters()])
    work.policy.network.zero_grad()

    again = batch.plus()
    target = work.policy.target(batch["latents"], batch["noise"], batch["t"])
    off = work.prediction(again) - target
    g, h = off[::2].flatten(1).detach(), off[1::2].flatten(1).detach()
    chosen, rejected = off[::2].square().flatten(1).mean(1), off[1::2].square().flatten(1).mean(1)
    theirs = (work.prediction(again, "reference") - target).square().flatten(1).mean(1)
    margin = (theirs[::2] - chosen) - (theirs[1::2] - rejected)
    torch.testing.assert_close(loss, (1 + (-15 * margin).exp()).log().mean())
    by_hand = {
        "error_chosen": chosen, "error_rejected": rejected, "margin": margin,
        "agrees": (margin > 0).float(),
    }  # fmt: skip
    means = {name: value.mean().item() for name, value in by_hand.items()}
    assert {name: value.item() for name, value in scalars.items()} == pytest.approx(means, rel=1e-4)
    assert 0 < scalars["agrees"] < 1
    scale = torch.ones(8)
    for i, along in enumerate((g * h).sum(1)):
        if guard and along > 0:
            scale[i] = min(1.0, 0.2 * float(g[i].square().sum() / along))
    assert not guard or 0 < scale.min() < 1
    # the slope of −log sigmoid(15 m) is −15 sigmoid(−15 m)
    slope = 15 * (-15 * margin).sigmoid().detach() / 8
    (slope * (chosen - scale * rejected)).sum().backward()
    expected = torch.cat([p.grad.flatten() for p in work.policy.network.parameters()])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


def test_where_nothing_has_moved_no_pair_agrees() -> None:
    aligner, policy = DirectPreference(), ToyPolicy()
    policy.keep_reference()
    work = toy_work(policy)
    _, scalars = aligner.loss(work, next(iter(aligner.batches(work))))
    assert scalars["agrees"] == 0


def test_pairs_are_drawn_by_their_weights_and_lose_their_prompts_together() -> None:
    work = toy_work(batch_size=8000)
    assert work.pairs is not None
    aligner = DirectPreference(prompt_dropout=0.25)
    batch = next(iter(aligner.batches(work)))
    empty = (batch.cond["number"] == -1).flatten()
    assert empty.float().mean() == pytest.approx(0.25, abs=0.03)
    assert torch.equal(empty[::2], empty[1::2])
    rows = work.pairs.rows
    latents = work.data.latents[rows.flatten()].reshape(len(rows), -1).float()
    drawn = batch["latents"].reshape(4000, -1)
    times = (drawn[:, None] == latents[None]).all(2).sum(0)
    expected = 4000 * work.pairs.even / work.pairs.even.sum()
    assert (times - expected).abs().max() < 2


@pytest.mark.parametrize("pairs", [None, pair_rows([], [], [])])
def test_without_pairs_there_is_nothing_to_learn(pairs: Pairs | None) -> None:
    with pytest.raises(UserError, match="no preferences to learn from"):
        next(iter(DirectPreference().batches(toy_work(pairs=pairs))))


# pairs


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return rated_study(tmp_path_factory.mktemp("pairs"))


def compare(study: Study, rater: str, left: str, right: str, value: Choice) -> None:
    study.feedback.add_comparisons([Comparison(
        f"{rater}-{left}-{right}", "p0", (left,), (right,), "base", "base", rater, "alignment",
        value, True, 0.0, 1.0,
    )])  # fmt: skip


def test_comparisons_come_before_ratings(tmp_path: Path) -> None:
    study = rated_study(tmp_path)
    samples = [s for s in study.samples() if s.prompt_id == "p0"]
    a, b, c, d = (s.id for s in samples)
    labels = {a: 1.0, b: 0.75, c: 0.25, d: 0.5}
    # by ratings alone: a and b over c
    found = pairs_of(study, samples, labels, simulated=True)
    assert sorted(found) == sorted([Pair(a, c, 0.75), Pair(b, c, 0.5625)])
    # two of three found c better than a, one a tie; b and c are a draw; d beats a
    for rater, value in (("r1", "right"), ("r2", "right"), ("r3", "tie")):
        compare(study, rater, a, c, value)
    compare(study, "r1", b, c, "left")
    compare(study, "r2", b, c, "right")
    compare(study, "r1", a, d, "right")
    compare(study, "r2", a, b, "skip")
    found = pairs_of(study, samples, labels, simulated=True)
    assert sorted(found) == sorted([Pair(c, a, 2.5 / 3), Pair(d, a, 1.0)])
    assert not pairs_of(study, samples, {}, simulated=False)


def test_every_prompt_counts_alike_and_certain_pairs_more() -> None:
    pairs = [Pair("a", "b", 1.0), Pair("a", "c", 0.5), Pair("d", "e", 0.6)]
    rows = pair_rows(pairs, ["a", "b", "c", "d", "e"], ["x", "x", "x", "y", "y"])
    assert rows.rows.tolist() == [[0, 1], [0, 2], [3, 4]]
    torch.testing.assert_close(rows.even, torch.tensor([2 / 3, 1 / 3, 1.0]))
    assert len(pair_rows([], [], [])) == 0
