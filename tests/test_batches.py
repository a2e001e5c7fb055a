"""Batches: cut and moved whole, drawn from the step's generator alone, right at the edges of it."""

import dataclasses

import pytest
import torch

from sayso.aligners import Aligner, Batch, stratified
from sayso.aligners.rwr import RewardWeighted
from sayso.aligners.sft import GoodImages
from sayso.data.rows import EMPTY
from sayso.testing import ToyPolicy, toy_work

ALIGNERS = [RewardWeighted(), GoodImages()]


def own_batch() -> Batch:
    """Six rows in which every number of every tensor is another one."""
    latents, cond, uncond, t, noise, extra = torch.arange(48).float().split([12, 6, 6, 6, 12, 6])
    return Batch.of(
        {"states": cond}, {"states": uncond}, latents=latents.view(6, 2, 1, 1), t=t,
        noise=noise.view(6, 2, 1, 1), advantage=extra,
    )  # fmt: skip


NAMES = {"latents", "cond.states", "uncond.states", "t", "noise", "advantage"}


def test_a_cut_batch_keeps_every_tensor_of_its_rows() -> None:
    whole, part = own_batch().tensors, own_batch().rows(slice(2, 5)).tensors
    assert part.keys() == whole.keys() == NAMES
    assert len(own_batch()) == 6
    assert torch.equal(own_batch().cond["states"], whole["cond.states"])
    assert torch.equal(own_batch().uncond["states"], whole["uncond.states"])
    for name, value in whole.items():
        assert torch.equal(part[name], value[2:5])


def test_a_moved_batch_moves_whole_and_stays_the_same() -> None:
    whole, same = own_batch().tensors, own_batch().to(torch.device("cpu")).tensors
    assert same.keys() == whole.keys()
    assert all(torch.equal(same[name], whole[name]) for name in whole)
    moved = own_batch().to(torch.device("meta")).tensors
    assert {tensor.device.type for tensor in moved.values()} == {"meta"}


def test_pretraining_rows_go_where_the_others_go_until_they_are_cut() -> None:
    batch = Batch({"t": torch.arange(3.0)}, own_batch())
    more = batch.plus(weight=torch.ones(3))
    assert more.pretraining is batch.pretraining
    assert more.tensors.keys() == {"t", "weight"}
    moved = batch.to(torch.device("meta")).pretraining
    assert moved is not None
    assert {tensor.device.type for tensor in moved.tensors.values()} == {"meta"}
    assert moved.tensors.keys() == NAMES
    assert own_batch().to(torch.device("meta")).pretraining is None
    assert batch.rows(slice(0, 2)).pretraining is None
    assert "t" in batch
    assert "noise" not in batch
    assert len(Batch.of({"states": torch.ones(4, 2)}).uncond) == 0


@pytest.mark.parametrize("aligner", ALIGNERS, ids=lambda a: type(a).__name__)
def test_every_draw_of_a_batch_comes_from_its_step(aligner: Aligner) -> None:
    """Whatever else was drawn before, so a resumed run goes on with the same rows and prompts."""
    aligner = dataclasses.replace(aligner, prompt_dropout=0.5)
    work = toy_work(batch_size=32, max_steps=2)
    torch.manual_seed(0)
    once = [batch.tensors for batch in aligner.batches(work)]
    torch.manual_seed(1)
    again = [batch.tensors for batch in aligner.batches(work)]
    for one, other in zip(once, again, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(once[0]["noise"], once[1]["noise"])
    assert not torch.equal(once[0]["t"], once[1]["t"])


def test_another_seed_is_another_draw() -> None:
    one, other = (toy_work(seed=seed).generator(0) for seed in (1, 2))
    assert one.initial_seed() != other.initial_seed()


@pytest.mark.parametrize("aligner", ALIGNERS, ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_aligners_drop_prompts_as_often_as_asked(aligner: Aligner, dropout: float) -> None:
    aligner = dataclasses.replace(aligner, prompt_dropout=dropout)
    batch = next(iter(aligner.batches(toy_work(batch_size=4000))))
    empty = ToyPolicy().encode_prompts([""])["number"][0, 0]
    assert (batch.cond["number"] == empty).float().mean() == pytest.approx(dropout, abs=0.03)


@pytest.mark.parametrize("aligner", ALIGNERS, ids=lambda a: type(a).__name__)
def test_loss_is_the_weighted_mean_of_the_errors(aligner: Aligner) -> None:
    """Value and gradient: Σ weight · |predicted − noise|² / c, over the rows."""
    policy, by_hand = ToyPolicy(), ToyPolicy()
    batch = next(iter(aligner.batches(toy_work())))
    weight = torch.ones(8)
    if "weight" in batch:
        weight = torch.linspace(0, 2, 8)
        batch = batch.plus(weight=weight)
    loss, scalars = aligner.loss(toy_work(policy), batch)
    loss.backward()

    noisy = by_hand.add_noise(batch["latents"], batch["noise"], batch["t"])
    errors = (by_hand.predict(noisy, batch["t"], batch.cond) - batch["noise"]).flatten(1)
    errors = (errors[:, 0] ** 2 + errors[:, 1] ** 2) / 2
    expected = sum(w * e for w, e in zip(weight, errors, strict=True)) / 8
    expected.backward()
    torch.testing.assert_close(loss, expected)
    assert scalars.keys() == {"error"}
    torch.testing.assert_close(scalars["error"], errors.mean())
    for ours, theirs in zip(policy.network.parameters(), by_hand.network.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


# the ends of the range that a random number comes from, [0, 1)

LAST_BEFORE_ONE = 1 - 2**-24
"""The greatest that `torch.rand` gives in fp32."""


@pytest.fixture(params=[0.0, LAST_BEFORE_ONE])
def edge(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> float:
    """Every random number of [0, 1) is this one."""
    monkeypatch.setattr(torch, "rand", lambda *size, generator: torch.full(size, request.param))
    return request.param


def test_at_the_edges_no_row_of_weight_0_is_drawn(edge: float) -> None:
    weights = torch.tensor([0.0, 0.0, 1.0, 0.0, 2.0, 0.0])
    drawn = stratified(weights, 3, torch.Generator())
    # thirds of 3: [0, 1) is row 2's, [1, 3) row 4's
    assert drawn.tolist() == [2, 4, 4]


def test_at_the_edges_t_stays_below_1_and_no_prompt_is_dropped_unasked(edge: float) -> None:
    work = toy_work(batch_size=10)
    own = work.data.own[:10]
    batch = work.denoising_batch(own, work.generator(0), prompt_dropout=0.0)
    assert ((batch["t"] >= 0) & (batch["t"] < 1)).all()
    assert batch["t"].max() == pytest.approx(0.9 + edge / 10, abs=2e-6)
    texts = work.data.cond(work.data.text[own])["number"]
    assert torch.equal(batch.cond["number"], texts)
    # at p = 1 each is dropped, whatever is drawn
    none = work.denoising_batch(own, work.generator(0), prompt_dropout=1.0)
    empty = work.data.cond(torch.tensor([EMPTY]))["number"]
    assert (none.cond["number"] == empty).all()
