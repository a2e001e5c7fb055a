"""The loop step by step against hand-written optimisation: clipping, sums, averages, scaling."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from loops import (
    ALIGNER,
    OPTIONS,
    batch_of,
    differences,
    loop_at,
    looped,
    run_at,
    train_at,
    work,
)
from torch import Tensor

from sayso.aligners import Batch, Work
from sayso.aligners.rwr import RewardWeighted
from sayso.base.devices import make_accelerator
from sayso.base.errors import UserError
from sayso.testing import ToyPolicy
from sayso.training.loop import _ends, _Loop, train
from sayso.training.options import TrainOptions


def by_hand(options: TrainOptions) -> tuple[list[Tensor], list[dict[str, float]]]:
    """Training written out: AdamW, clipping, warm-up, fall and average; the result and the log."""
    policy = ToyPolicy(8)
    parameters = list(policy.network.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1.0, weight_decay=options.weight_decay)
    average, log = [p.detach().clone() for p in parameters], []
    ready = work(options.max_steps, policy)
    for step, batch in enumerate(ALIGNER.batches(ready)):
        # 5 steps: two of warm-up, one at the peak, and the last two fall
        rate = options.learning_rate * [0.5, 1.0, 1.0, 1.0, 0.5][step]
        optimizer.param_groups[0]["lr"] = rate
        assert batch.pretraining is not None
        own, scalars = ALIGNER.loss(ready, batch)
        natural = ready.error(batch.pretraining).mean()
        loss = own + 0.15 * natural
        optimizer.zero_grad()
        loss.backward()
        norm = math.sqrt(sum(float((p.grad**2).sum()) for p in parameters if p.grad is not None))
        for p in parameters:
            if p.grad is not None and options.max_grad_norm and norm > options.max_grad_norm:
                p.grad *= options.max_grad_norm / norm
        optimizer.step()
        decay = min(options.ema_decay, (1 + step) / (10 + step))
        average = [
            decay * mean + (1 - decay) * p.detach()
            for mean, p in zip(average, parameters, strict=True)
        ]
        error = scalars["error"].item()
        log.append({"step": step + 1, "loss": loss.item(), "error": error, "grad_norm": norm})
        log[-1] |= {"learning_rate": rate, "pretraining_error": natural.item()}
    return average, log


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"max_grad_norm": 0.2}, {"max_grad_norm": 0.0}, {"weight_decay": 0.1},
        {"micro_batch_size": 2, "max_grad_norm": 0.2}, {"ema_decay": 0.0},
    ],
    ids=str,
)  # fmt: skip
def test_training_is_what_is_written_out_by_hand(tmp_path: Path, changes: dict[str, Any]) -> None:
    options = dataclasses.replace(OPTIONS, **changes)
    policy, run = train_at(tmp_path / "r", options)
    average, log = by_hand(options)
    assert differences(list(policy.network.parameters()), average) < 2e-6
    for row, expected in zip(run.history(), log, strict=True):
        assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-4)
        assert row.keys() == expected.keys() | {"images_per_s"}
    result = run.result
    assert result["steps"] == 5
    assert result["images_per_s"] * result["seconds"] == pytest.approx(5 * 8)
    assert result["loss_first"] == pytest.approx(log[0]["loss"], rel=1e-4)
    assert result["loss_last"] == pytest.approx(log[-1]["loss"], rel=1e-4)


@pytest.mark.parametrize(("n", "first", "last"), [(5, 0.0, 4.0), (25, 0.5, 23.5), (110, 5.0, 104)])
def test_first_and_last_loss_are_those_of_a_tenth_of_the_steps(
    tmp_path: Path, n: int, first: float, last: float
) -> None:
    run = run_at(tmp_path / "r")
    run.log_many([{"step": i + 1, "loss": float(i)} for i in range(n)])
    assert _ends(run) == {"loss_first": first, "loss_last": last}


def test_clipping_scales_to_the_limit_and_tells_the_length_before(tmp_path: Path) -> None:
    loop = loop_at(tmp_path / "r", max_grad_norm=2.0)
    n = sum(p.numel() for p in loop.parameters)
    for p in loop.parameters:
        p.grad = torch.full_like(p, 3.0)
    assert loop._clip().item() == pytest.approx(3 * math.sqrt(n))
    for p in loop.parameters:
        assert p.grad is not None
        torch.testing.assert_close(p.grad, torch.full_like(p, 2 / math.sqrt(n)))
        # now within the limit, and no longer touched
    before = [p.grad.clone() for p in loop.parameters if p.grad is not None]
    assert loop._clip().item() == pytest.approx(2.0)
    assert differences([p.grad for p in loop.parameters if p.grad is not None], before) < 1e-6


def test_an_old_average_forgets_at_its_own_decay(tmp_path: Path) -> None:
    loop = loop_at(tmp_path / "r", ema_decay=0.75)
    loop.step = 10_000
    loop.average = [torch.full_like(mean, 8.0) for mean in loop.average]
    loop._average()
    for mean, p in zip(loop.average, loop.parameters, strict=True):
        torch.testing.assert_close(mean, 6 + 0.25 * p.detach())


# micro-batches and processes


def test_each_process_takes_its_own_rows(tmp_path: Path) -> None:
    """Of 7 rows and a pre-training row, two processes take 4 and 3 + 1, in parts of two."""
    loop, seen, natural = loop_at(tmp_path / "r", micro_batch_size=2), [], []
    for rank, expected in ((0, [(2, 0), (2, 0)]), (1, [(2, 0), (1, 1)])):
        loop.work = dataclasses.replace(loop.work, rank=rank, world=2)
        parts = list(loop._parts(next(iter(ALIGNER.batches(loop.work)))))
        sizes = [(len(p.own), len(p.pretraining or ())) for p, _ in parts]
        assert sizes == expected
        assert [last for _, last in parts] == [False, True]
        assert [p.own_share for p, _ in parts] == pytest.approx([2 * n / 7 for n, _ in sizes])
        assert [p.pretraining_share for p, _ in parts] == [2.0 * n for _, n in sizes]
        seen += [p.own["noise"] for p, _ in parts]
        natural += [p.pretraining["noise"] for p, _ in parts if p.pretraining]
    whole = next(iter(ALIGNER.batches(work())))
    assert torch.equal(torch.cat(seen), whole["noise"])
    assert whole.pretraining is not None
    assert torch.equal(torch.cat(natural), whole.pretraining["noise"])


def test_gradients_are_exchanged_with_the_last_micro_batch_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = loop_at(tmp_path / "r", micro_batch_size=2)
    events, plain = [], loop.accelerator.no_sync
    monkeypatch.setattr(
        loop.accelerator, "no_sync", lambda model: events.append(model) or plain(model)
    )
    loop.update(batch_of(loop))
    assert events == [loop.spread.network] * 3


def test_a_batch_of_another_size_is_refused(tmp_path: Path) -> None:
    loop = loop_at(tmp_path / "r")
    with pytest.raises(
        UserError, match="RewardWeighted made a batch of 4 rows, but its share is 7"
    ):
        loop.update(batch_of(loop).rows(slice(0, 4)))


# training mode, formats


@dataclasses.dataclass(frozen=True)
class Watching(RewardWeighted):
    """Notes whether the network is in training mode, and what the gradients were before."""

    def loss(self, work: Work, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        assert work.policy.network.training
        assert all(p.grad is None for p in work.policy.network.parameters())
        return super().loss(work, batch)


def test_the_network_trains_in_training_mode_and_is_handed_back_in_the_other(
    tmp_path: Path,
) -> None:
    policy = ToyPolicy(8)
    policy.network.eval()
    run = run_at(tmp_path / "r")
    network = policy.network
    train(work(policy=policy), Watching(), OPTIONS, run, make_accelerator("no"))
    assert policy.network is network
    assert not network.training


def test_after_bf16_the_network_computes_in_fp32_again(tmp_path: Path) -> None:
    policy, run = ToyPolicy(8), run_at(tmp_path / "r")
    train(work(policy=policy), ALIGNER, OPTIONS, run, make_accelerator("bf16"))
    fresh = ToyPolicy(8)
    fresh.load_weights(run.weights)
    batch = next(iter(ALIGNER.batches(work())))
    ours, theirs = (p.predict(batch["latents"], batch["t"], batch.cond) for p in (policy, fresh))
    assert torch.equal(ours, theirs)


@pytest.fixture
def scaled_loop(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, float], _Loop]:
    """As on a device with fp16: the loss is scaled, gradients are scaled back; the sums in fp32."""

    def make(path: Path, scale: float) -> _Loop:
        accelerator = make_accelerator("no")
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=2)
        loop = looped(path, OPTIONS, accelerator)
        monkeypatch.setattr(type(accelerator), "mixed_precision", "fp16")
        accelerator.native_amp = True
        return loop

    return make


def test_scaling_of_the_loss_changes_nothing_and_is_resumed(
    tmp_path: Path, scaled_loop: Callable[[Path, float], _Loop]
) -> None:
    plain = loop_at(tmp_path / "plain")
    batches = list(ALIGNER.batches(work()))[:3]
    for batch in batches:
        plain.update(batch)
    scaled = scaled_loop(tmp_path / "scaled", 16.0)
    for batch in batches:
        scaled.update(batch)
    assert differences(plain.average, scaled.average) < 1e-6
    scaler = scaled.accelerator.scaler
    assert scaler is not None
    assert scaler.get_scale() == 32.0  # it grew after two steps
    scaled.save_checkpoint()
    scaled.saver.wait()
    later = scaled_loop(tmp_path / "scaled", 16.0)
    later.resume()
    assert later.accelerator.scaler is not None
    assert later.accelerator.scaler.state_dict() == scaler.state_dict()
    assert later.step == 3
    assert differences(later.average, scaled.average) == 0


def test_an_infinite_gradient_is_an_ordinary_event_where_the_loss_is_scaled(
    tmp_path: Path, scaled_loop: Callable[[Path, float], _Loop]
) -> None:
    loop = scaled_loop(tmp_path / "r", 3e38)
    before = [p.detach().clone() for p in loop.parameters]
    # a loss that is finite until it is scaled
    loop.update(batch_of(loop).plus(weight=torch.full((7,), 100.0)))
    loop.log.flush()
    assert not math.isfinite(loop.run.history()[0]["grad_norm"])
    assert differences(before, [p.detach() for p in loop.parameters]) == 0
    # an infinite loss is none
    loop.update(batch_of(loop).plus(weight=torch.full((7,), math.inf)))
    with pytest.raises(UserError, match="loss is inf at step 2"):
        loop.log.flush()
