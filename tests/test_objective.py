"""What the loop minimises beside the aligner's loss, and what it may be run with."""

import dataclasses
from pathlib import Path

import pytest
import torch
from models import tiny_pipeline
from torch import Tensor

from sayso.aligners import Batch
from sayso.aligners.dpo import DirectPreference
from sayso.aligners.rwr import RewardWeighted
from sayso.aligners.sft import GoodImages
from sayso.base.devices import make_accelerator
from sayso.base.errors import UserError
from sayso.families.stable_diffusion import StableDiffusion
from sayso.study.run import open_run
from sayso.study.run_options import asked
from sayso.testing import ToyPolicy, toy_rows, toy_work
from sayso.training.loop import _Loop, placed, train
from sayso.training.objective import (
    Part,
    _alike,
    _is_shown,
    norm_excess,
    objective,
    prediction_distance,
)
from sayso.training.options import TrainOptions

OPTIONS = TrainOptions(max_steps=2, batch_size=8, warmup_steps=0, pretraining_weight=0.0)


def moved_policy(scale: float = 1.5) -> ToyPolicy:
    """A policy whose predictions are `scale` times those of its reference."""
    policy = ToyPolicy()
    policy.keep_reference()
    with torch.no_grad():
        for parameter in list(policy.network.parameters())[-2:]:
            parameter.mul_(scale)
    return policy


def test_terms_by_hand() -> None:
    ours = torch.tensor([[3.0, 4.0], [0.0, 1.0]]).reshape(2, 2, 1, 1)
    theirs = torch.tensor([[0.0, 0.0], [3.0, 1.0]]).reshape(2, 2, 1, 1)
    assert prediction_distance(ours, theirs).tolist() == [12.5, 4.5]
    expected = [12.5**0.5, 0.0]
    assert norm_excess(ours, theirs).tolist() == pytest.approx(expected, abs=1e-5)


def test_the_objective_is_the_sum_of_its_terms() -> None:
    work = toy_work(moved_policy(), batch_size=8, n_pretraining=2)
    batch = next(iter(GoodImages().batches(work)))
    natural = batch.pretraining
    assert natural is not None
    options = dataclasses.replace(OPTIONS, pretraining_weight=0.3, kl_weight=0.5, norm_guard=2.0)
    part = Part(batch.rows(slice(0, 8)), 1.0, natural.rows(slice(0, 2)), 1.0)
    loss, terms = objective(work, GoodImages(), options, part)
    ours, theirs = work.prediction(batch), work.prediction(batch, "reference")
    torch.testing.assert_close(ours, 1.5 * theirs)
    kl, excess = prediction_distance(ours, theirs).mean(), norm_excess(ours, theirs).mean()
    expected = work.error(batch).mean() + 0.5 * kl + 2.0 * excess
    torch.testing.assert_close(loss, expected + 0.3 * work.error(natural).mean())
    assert {"error", "kl", "norm_excess", "pretraining_error"} == terms.keys()
    assert terms["kl"].value > 0
    assert terms["norm_excess"].value > 0


def sizes_asked(policy: ToyPolicy, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each prediction is asked for, from now on."""
    sizes, predict = list[int](), policy.predict
    monkeypatch.setattr(
        policy, "predict", lambda x, *more: sizes.append(len(x)) or predict(x, *more)
    )
    return sizes


def test_without_a_weight_the_aligners_loss_is_all() -> None:
    work = toy_work(batch_size=8, n_pretraining=2)
    batch = next(iter(GoodImages().batches(work)))
    loss, terms = objective(work, GoodImages(), OPTIONS, Part(batch, 0.25, None, 0.0))
    torch.testing.assert_close(loss, 0.25 * work.error(batch).mean(), rtol=0, atol=0)
    assert {name: term.share for name, term in terms.items()} == {"error": 0.25}
    # one of the two alone
    for name in ("kl_weight", "norm_guard"):
        near = dataclasses.replace(OPTIONS, **{name: 2.0})
        work = toy_work(moved_policy())
        loss, terms = objective(work, GoodImages(), near, Part(batch.plus(), 0.25, None, 0.0))
        (own, more) = terms.values()
        torch.testing.assert_close(loss, 0.25 * (own.value + 2.0 * more.value))
        assert more.share == 0.25


@pytest.mark.parametrize("weight", [0.3, None])
def test_pretraining_rows_may_be_alone(
    monkeypatch: pytest.MonkeyPatch, weight: float | None
) -> None:
    work = toy_work(moved_policy(), n_pretraining=2)
    batch = next(iter(GoodImages().batches(work)))
    natural = batch.pretraining
    assert natural is not None
    expected = work.error(natural.rows(slice(None))).mean()
    sizes = sizes_asked(work.policy, monkeypatch)
    options = dataclasses.replace(OPTIONS, pretraining_weight=weight, kl_weight=0.5)
    part = Part(batch.rows(slice(0, 0)), 0.0, natural, 0.5)
    loss, terms = objective(work, GoodImages(), options, part)
    torch.testing.assert_close(loss, (weight or 0) * 0.5 * expected)
    assert sizes == [2]
    assert terms.keys() == {"pretraining_error"}
    torch.testing.assert_close(terms["pretraining_error"].value, expected)
    assert terms["pretraining_error"].share == 0.5


def test_of_no_rows_the_loss_is_0_on_the_models_device() -> None:
    work = toy_work()
    nothing = next(iter(GoodImages().batches(work))).rows(slice(0, 0))
    loss, terms = objective(work, GoodImages(), OPTIONS, Part(nothing, 0.0, None, 0.0))
    assert (loss.item(), loss.shape, terms) == (0.0, (), {})
    work.policy.device = torch.device("meta")
    loss, _ = objective(work, GoodImages(), OPTIONS, Part(nothing, 0.0, None, 0.0))
    assert loss.device.type == "meta"


@pytest.mark.parametrize(
    ("names", "rows", "is_shown"),
    [
        ({"latents", "t"}, 1, True), ({"noisy", "t"}, 1, True), ({"noisy", "t"}, 0, False),
        ({"t", "weight"}, 1, False), ({"latents", "noise"}, 1, False),
    ],
)  # fmt: skip
def test_rows_are_predicted_together_if_they_say_what_is_shown(
    names: set[str], rows: int, is_shown: bool
) -> None:
    assert _is_shown(Batch({name: torch.zeros(rows) for name in names})) is is_shown


@pytest.mark.parametrize(
    ("own", "natural", "alike"),
    [
        ((2, 4, 8, 6), (3, 4, 8, 6), True), ((2, 4, 8, 6), (2, 4, 6, 8), False),
        ((2, 4, 8, 6), (2, 4, 8, 4), False), ((2, 4, 8, 6), (2, 4, 4, 6), False),
        ((2, 4, 8, 6), (2, 16, 8, 6), False),
    ],
)  # fmt: skip
def test_only_rows_of_one_size_are_predicted_together(
    own: tuple[int, ...], natural: tuple[int, ...], alike: bool
) -> None:
    more = Batch({"latents": torch.zeros(natural)})
    assert _alike(Batch({"latents": torch.zeros(own)}), more) is alike
    # what is shown counts, where it is given
    shown = Batch({"noisy": torch.zeros(own), "latents": torch.zeros(1, 1, 1, 1)})
    assert _alike(shown, more) is alike


def test_a_prediction_of_0_has_a_slope() -> None:
    nothing = torch.zeros(1, 2, 1, 1, requires_grad=True)
    norm_excess(nothing, torch.zeros(1, 2, 1, 1)).sum().backward()
    assert nothing.grad is not None
    assert nothing.grad.isfinite().all()


def test_each_model_is_asked_once_for_a_micro_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    work = toy_work(moved_policy(), batch_size=6, n_pretraining=2)
    batch = next(iter(DirectPreference().batches(work)))
    sizes = sizes_asked(work.policy, monkeypatch)
    options = dataclasses.replace(OPTIONS, pretraining_weight=0.3, kl_weight=0.5, norm_guard=2.0)
    objective(work, DirectPreference(), options, Part(batch, 1.0, batch.pretraining, 1.0))
    # the reference for the aligner's rows, the policy for these and the pre-training rows
    assert sizes == [6, 8]


@pytest.mark.parametrize("aligner", [RewardWeighted(), DirectPreference()], ids=["rwr", "dpo"])
def test_cutting_and_sharing_out_change_nothing(tmp_path: Path, aligner) -> None:
    """1 process × 8 rows, 2 × 4 and 8 × 1 (for pairs 4 × 2): the gradients add up alike."""
    options = dataclasses.replace(OPTIONS, pretraining_weight=0.3, kl_weight=0.1)
    cuts = [(1, 8), (1, 2 * aligner.unit), (2, 4), (8 // aligner.unit, aligner.unit)]
    found = [gradient(tmp_path / str(i), aligner, options, *cut) for i, cut in enumerate(cuts)]
    for other in found[1:]:
        assert (other - found[0]).norm() < 1e-3 * found[0].norm()


def gradient(path: Path, aligner, options: TrainOptions, world: int, micro: int) -> Tensor:
    """The mean over `world` processes of the gradients of one step."""
    total = torch.zeros(())
    for rank in range(world):
        policy = moved_policy(1.01)
        options = dataclasses.replace(options, micro_batch_size=micro)
        accelerator = make_accelerator("no")
        ready = placed(toy_work(policy), aligner, options, accelerator)
        ready = dataclasses.replace(ready, rank=rank, world=world, micro_batch=micro)
        run = open_run(path / str(rank), asked({}), 0)
        loop = _Loop(ready, aligner, options, run, accelerator)
        # the reference is that of before the weights moved, not that of the loop's start
        policy._reference = moved_policy(1.01)._reference
        for part, _ in loop._parts(next(iter(aligner.batches(ready)))):
            objective(ready, aligner, options, part)[0].backward()
        total = total + torch.cat([p.grad.flatten() for p in policy.network.parameters()]) / world
    return total


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 7}, "batch_size 7 is not a multiple of 1 processes × 2; give .* 6 or 8"),
        ({"micro_batch_size": 1}, "micro_batch_size 1 is not a multiple of 2; give .* 2 or 4 or 8"),
    ],
)
def test_rows_that_stay_together_are_checked_first(changes: dict, message: str) -> None:
    options = dataclasses.replace(OPTIONS, **changes)
    with pytest.raises(UserError, match=message):
        placed(toy_work(), DirectPreference(), options, make_accelerator("no"))


def test_pretraining_rows_leave_whole_units() -> None:
    options = TrainOptions(batch_size=8, pretraining_weight=0.1)
    assert [options.n_pretraining(unit) for unit in (1, 2, 4)] == [1, 2, 4]
    assert dataclasses.replace(options, pretraining_weight=0.0).n_pretraining() == 0
    half = dataclasses.replace(options, batch_size=512, pretraining_fraction=0.5)
    assert half.n_pretraining() == 256
    with pytest.raises(UserError, match="leaves no room for other rows in a batch of 8"):
        dataclasses.replace(options, pretraining_fraction=0.97).n_pretraining()


def test_missing_pretraining_images_are_said(tmp_path: Path) -> None:
    work = toy_work(data=toy_rows(n_pretraining=0))
    options = dataclasses.replace(OPTIONS, pretraining_weight=0.1)
    with pytest.raises(UserError, match="no pre-training images; give --pretraining-weight 0"):
        placed(work, GoodImages(), options, make_accelerator("no"))


def test_an_aligner_without_them_can_have_them_too(tmp_path: Path) -> None:
    """Its batches carry none, so the loop draws them, and the same after a resume."""
    work = toy_work(n_pretraining=3, batch_size=5)
    first, again = (work.pretraining_batch(4) for _ in range(2))
    other = work.pretraining_batch(5)
    assert first is not None
    assert again is not None
    assert other is not None
    assert len(first) == 3
    assert torch.equal(first["noise"], again["noise"])
    assert not torch.equal(first["noise"], other["noise"])
    assert toy_work().pretraining_batch(4) is None


def sd_gradient(folder: Path, path: Path, **changes: object) -> Tensor:
    policy = StableDiffusion.load(folder, torch.device("cpu"))
    options = dataclasses.replace(OPTIONS, max_grad_norm=0.0, **changes)
    rows = toy_rows()
    latents = torch.randn(len(rows.text), 4, 16, 16, generator=torch.Generator().manual_seed(0))
    cond = policy.encode_prompts(["", *(f"a{i}" for i in range(3))])
    rows = dataclasses.replace(rows, latents=latents, conditions=Held(cond))
    work = toy_work(data=rows)
    work = dataclasses.replace(work, policy=policy)
    run = open_run(path, asked({}), 0)
    train(work, GoodImages(prompt_dropout=0.0), options, run, make_accelerator("no"))
    return torch.cat([p.detach().flatten() for p in policy.network.parameters()])


class Held:
    def __init__(self, cond: dict[str, Tensor]) -> None:
        self.cond = cond

    def __getitem__(self, rows: Tensor) -> dict[str, Tensor]:
        return {key: value[rows] for key, value in self.cond.items()}


def test_gradient_checkpointing_changes_memory_and_not_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_pipeline(tmp_path / "sd")
    plain = sd_gradient(folder, tmp_path / "plain")
    asked_for, enable = [], StableDiffusion.load(folder, torch.device("cpu")).network.__class__
    original = enable.enable_gradient_checkpointing
    monkeypatch.setattr(
        enable, "enable_gradient_checkpointing", lambda net: asked_for.append(net) or original(net)
    )
    again = sd_gradient(folder, tmp_path / "again", gradient_checkpointing=True)
    assert asked_for
    assert asked_for[0].is_gradient_checkpointing
    torch.testing.assert_close(again, plain, rtol=1e-4, atol=1e-6)


def test_a_network_without_it_is_refused(tmp_path: Path) -> None:
    options = dataclasses.replace(OPTIONS, gradient_checkpointing=True)
    run = open_run(tmp_path / "r", asked({}), 0)
    with pytest.raises(UserError, match="this network does not support gradient checkpointing"):
        train(toy_work(), GoodImages(), options, run, make_accelerator("no"))


def test_compile_compiles_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By torch's eager backend, which needs no C++ compiler."""
    policy, other = ToyPolicy(8), ToyPolicy(8)
    plain = policy.network.compile
    monkeypatch.setattr(policy.network, "compile", lambda: plain(backend="eager"))
    for which, options in ((policy, dataclasses.replace(OPTIONS, compile=True)), (other, OPTIONS)):
        run = open_run(tmp_path / str(options.compile), asked({}), 0)
        train(toy_work(which), GoodImages(), options, run, make_accelerator("no"))
    assert policy.network._compiled_call_impl is not None
    for ours, theirs in zip(policy.network.parameters(), other.network.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
