"""Work: which rows, times and noise a step draws, and which of them are a process's, by hand."""

import dataclasses

import pytest
import torch
from torch import Tensor

from sayso.aligners import Batch, Work, predict_together, stratified
from sayso.base.types import Sampler, Size, digest
from sayso.data.rows import EMPTY
from sayso.testing import ToyPolicy, toy_work


def test_a_steps_chance_follows_from_seed_step_and_purpose() -> None:
    """Written down: a run that was begun by an earlier version goes on with the same draws."""
    work = toy_work(seed=5)
    assert work.generator(3).initial_seed() == int(digest([5, 3]), 16)
    assert work.generator(3, "rollout").initial_seed() == int(digest([5, 3, "rollout"]), 16)


@pytest.mark.parametrize(
    ("n", "unit", "world", "expected"),
    [
        (7, 1, 2, [(0, 4), (4, 7)]),
        (10, 2, 2, [(0, 6), (6, 10)]),
        (10, 2, 3, [(0, 4), (4, 8), (8, 10)]),
        (8, 4, 3, [(0, 4), (4, 8), (8, 8)]),
        (5, 1, 1, [(0, 5)]),
    ],
)
def test_shares_by_hand(n: int, unit: int, world: int, expected: list[tuple[int, int]]) -> None:
    slices = [toy_work(rank=rank, world=world).share(n, unit) for rank in range(world)]
    assert [(s.start, s.stop) for s in slices] == expected
    if unit == 1:
        assert [toy_work(rank=r, world=world).share(n) for r in range(world)] == slices


def draws(work: Work, generator: torch.Generator, b: int) -> tuple[Tensor, Tensor, Tensor]:
    """t, noise and the number that decides on the prompt, in the order in which they are drawn."""
    t = work.policy.draw_t(b, generator)
    noise = torch.randn(b, 2, 1, 1, generator=generator)
    return t, noise, torch.rand(b, generator=generator)


def assert_rows(
    work: Work, batch: Batch, indices: Tensor, drawn: tuple[Tensor, ...], dropout: float
) -> None:
    t, noise, chance = drawn
    assert torch.equal(batch["t"], t)
    assert torch.equal(batch["noise"], noise)
    assert torch.equal(batch["latents"], work.data.latents[indices].float())
    text = torch.where(chance < dropout, EMPTY, work.data.text[indices])
    assert torch.equal(batch.cond["number"], work.data.cond(text)["number"])


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_batch_of_denoising_written_out(rank: int, dropout: float) -> None:
    """Three pairs and two pre-training rows for two processes: 4 rows, and 2 + 2."""
    work = toy_work(n_pretraining=2, rank=rank, world=2)
    indices, weight = work.data.own[[3, 1, 4, 0, 5, 2]], torch.arange(6.0)
    batch = work.denoising_batch(
        indices, work.generator(1), prompt_dropout=dropout, unit=2, weight=weight
    )
    generator, natural = work.generator(1), work.data.pretraining
    chosen = natural[stratified(torch.ones(len(natural)), 2, generator)]
    drawn = draws(work, generator, 5)
    mine = slice(0, 4) if rank == 0 else slice(4, 6)
    units = tuple(x[:3].repeat_interleave(2, 0)[mine] for x in drawn)
    assert_rows(work, batch, indices[mine], units, dropout)
    assert torch.equal(batch["weight"], weight[mine])
    assert batch.pretraining is not None
    rest = slice(0, 0) if rank == 0 else slice(0, 2)
    their = tuple(x[3:][rest] for x in drawn)
    assert_rows(work, batch.pretraining, chosen[rest], their, dropout)
    assert "weight" not in batch.pretraining
    # of one process, without them
    alone = dataclasses.replace(work, n_pretraining=0, rank=0, world=1)
    batch = alone.denoising_batch(indices, alone.generator(1), weight=weight)
    assert_rows(alone, batch, indices, draws(alone, alone.generator(1), 6), 0.0)
    assert torch.equal(batch["weight"], weight)
    assert batch.pretraining is None


@pytest.mark.parametrize("rank", [0, 1])
def test_pretraining_rows_of_a_step_written_out(rank: int) -> None:
    work = toy_work(batch_size=6, n_pretraining=4, rank=rank, world=2)
    batch = work.pretraining_batch(2, 2)
    generator, natural = work.generator(2, "pretraining"), work.data.pretraining
    chosen = natural[stratified(torch.ones(len(natural)), 4, generator)]
    drawn = draws(work, generator, 4)
    # the first process has two pairs, the second one: of 10 rows each has 5
    rest = slice(0, 1) if rank == 0 else slice(1, 4)
    assert batch is not None
    assert_rows(work, batch, chosen[rest], tuple(x[rest] for x in drawn), 0.0)
    by_one = work.pretraining_batch(2)
    assert by_one is not None
    assert torch.equal(by_one["noise"], drawn[1][2 * rank :][:2])


SIZES = (Size(32, 32), Size(40, 24), Size(24, 40))


@pytest.mark.parametrize("rank", [0, 1])
def test_rows_of_a_bucket_written_out(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bucket by its number of images, then the images; the network is told its size."""
    plain = toy_work(batch_size=6, n_pretraining=2, rank=rank, world=2, sampler=Sampler(3, 4.5))
    natural = plain.data.pretraining
    bucket = torch.tensor([0, 1, 2, 0] * 3)
    work = dataclasses.replace(
        plain, data=dataclasses.replace(plain.data, bucket=bucket, sizes=SIZES)
    )

    def told(cond: dict[str, Tensor], sampler: Sampler) -> dict[str, Tensor]:
        width = float(sampler.image_size.width + sampler.guidance_scale)
        return cond | {"width": torch.full((len(cond["number"]),), width)}

    def expect(batch: Batch | None, generator: torch.Generator, dropout: float) -> int:
        number = int(stratified(torch.tensor([6.0, 3.0, 3.0]), 1, generator))
        alike = natural[bucket == number]
        rows = alike[stratified(torch.ones(len(alike)), 2, generator)]
        drawn, rest = draws(work, generator, 2), slice(0, 0) if rank == 0 else slice(0, 2)
        assert batch is not None
        assert_rows(work, batch, rows[rest], tuple(x[rest] for x in drawn), dropout)
        assert (batch.cond["width"] == SIZES[number].width + 4.5).all()
        assert len(batch) == 2 * rank
        return number

    monkeypatch.setattr(work.policy, "with_sampler", told)
    indices, weight, seen = work.data.own[[3, 1, 4, 0, 5, 2]], torch.arange(6.0), set[int]()
    mine = slice(0, 4) if rank == 0 else slice(4, 6)
    for step in range(12):
        batch = work.denoising_batch(
            indices, work.generator(step), prompt_dropout=0.5, unit=2, weight=weight
        )
        generator = work.generator(step)
        own = tuple(x.repeat_interleave(2, 0)[mine] for x in draws(work, generator, 3))
        assert_rows(work, batch, indices[mine], own, 0.5)
        assert torch.equal(batch["weight"], weight[mine])
        seen.add(expect(batch.pretraining, generator, 0.5))
        generator = work.generator(step, "pretraining")
        expect(work.pretraining_batch(step, 2), generator, 0.0)
    assert seen == {0, 1, 2}


def test_batches_predicted_together_are_predicted_as_alone() -> None:
    work = toy_work(n_pretraining=3)
    work.policy.keep_reference()
    whole = work.denoising_batch(work.data.own[:4], work.generator(0))
    cond, uncond = whole.cond, {"number": torch.arange(4.0)[:, None]}
    scale, noisy = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.randn(4, 2, 1, 1)
    guided = Batch.of(cond, uncond, noisy=noisy, t=whole["t"], guidance=scale)
    assert whole.pretraining is not None
    together = [whole, guided, whole.pretraining]
    alone = [work.prediction(batch.rows(slice(None))) for batch in together]
    predict_together(work.policy, together)
    predict_together(work.policy, together[:1], "reference")
    for batch, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(batch.predicted["policy"], expected)
    assert whole.predicted.keys() == {"policy", "reference"}
    assert guided.predicted.keys() == {"policy"}
    by_hand = work.policy.guided(noisy, whole["t"], cond, uncond, scale.reshape(4, 1, 1, 1))
    torch.testing.assert_close(alone[1], by_hand)


def test_the_error_of_each_model() -> None:
    policy, rng = ToyPolicy(), torch.Generator().manual_seed(0)
    work = toy_work(policy)
    policy.keep_reference()
    policy.remember("old")
    batch = work.denoising_batch(work.data.own[:4], work.generator(0))
    start = work.error(batch.plus()).detach()
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=rng))
    policy.remember("older")
    now = policy.denoising_error(batch["latents"], batch.cond, batch["t"], batch["noise"])
    torch.testing.assert_close(work.error(batch), now)
    torch.testing.assert_close(work.error(batch, "reference"), start)
    torch.testing.assert_close(work.error(batch, "old"), start)
    torch.testing.assert_close(work.error(batch, "older"), now)
    assert not torch.allclose(now, start)
    assert batch.predicted.keys() == {"policy", "reference", "old", "older"}
    assert [work.error(batch, m).requires_grad for m in batch.predicted] == [True] + [False] * 3


def test_times_of_a_batch_are_those_of_the_studys_sampler() -> None:
    work = toy_work(sampler=Sampler(3, 1.0), n_pretraining=1, batch_size=3)
    work.policy.timestep_sampling = "grid"
    natural = work.denoising_batch(work.data.own[:3], work.generator(0)).pretraining
    alone = work.pretraining_batch(0)
    assert natural is not None
    assert alone is not None
    times = set(work.policy.grid(work.sampler)[:-1].tolist())
    for t in (natural["t"], alone["t"]):
        assert set(t.tolist()) < times


def test_training_tells_the_network_how_images_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    work = toy_work(sampler=Sampler(3, 4.5))

    def told(cond: dict[str, Tensor], sampler: Sampler) -> dict[str, Tensor]:
        return cond | {"scale": torch.full((len(cond["number"]),), sampler.guidance_scale)}

    monkeypatch.setattr(work.policy, "with_sampler", told)
    batch = work.denoising_batch(work.data.own[:3], work.generator(0))
    assert batch.cond["scale"].tolist() == [4.5] * 3
    assert batch.cond.keys() == {"number", "scale"}
