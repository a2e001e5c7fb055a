"""The loop: schedule, exact micro-batches, exact resume, nothing learned from reward 0."""

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from models import tiny_pipeline
from safetensors.torch import load_file
from torch import Tensor

from sayso.aligners import Aligner, Batch, Work
from sayso.aligners.rwr import RewardWeighted
from sayso.base.devices import make_accelerator
from sayso.base.errors import UserError
from sayso.data.rows import TrainingRows, make_rows
from sayso.families import Policy
from sayso.families.stable_diffusion import StableDiffusion
from sayso.study.run import Run, open_run
from sayso.study.run_options import asked
from sayso.testing import ToyPolicy, toy_rows, toy_work
from sayso.training.log import means
from sayso.training.loop import learning_rate_at, train
from sayso.training.options import TrainOptions

SMALL = TrainOptions(max_steps=6, batch_size=8, warmup_steps=2, checkpoint_every=2)
ALONE = dataclasses.replace(SMALL, pretraining_weight=0.0)


class Stop(Exception):
    """Stands for a kill between two steps."""


@dataclasses.dataclass(frozen=True)
class Interrupted(RewardWeighted):
    at: int = 3

    def batches(self, work: Work) -> Iterator[Batch]:
        for step, batch in zip(work.steps, super().batches(work), strict=True):
            if step == self.at:
                raise Stop
            yield batch


@dataclasses.dataclass(frozen=True)
class Poisoned(RewardWeighted):
    at: int = 3
    what: str = "loss"

    def batches(self, work: Work) -> Iterator[Batch]:
        for step, batch in zip(work.steps, super().batches(work), strict=True):
            yield batch.plus(bad=torch.full_like(batch["weight"], step == self.at))

    def loss(self, work: Work, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss, scalars = super().loss(work, batch)
        if batch["bad"][0] == 0:
            return loss, scalars
        # the square root of 0 is fine and its gradient is not
        poison = loss * float("nan") if self.what == "loss" else (loss - loss.detach()).sqrt()
        return loss + poison, scalars


def run_toy(
    path: Path, options: TrainOptions = SMALL, aligner: Aligner | None = None,
    rows: TrainingRows | None = None,
) -> tuple[ToyPolicy, Run]:  # fmt: skip
    policy, run = ToyPolicy(), open_run(path, asked({}), 0)
    work, acc = toy_work(policy, data=rows or toy_rows()), make_accelerator("no")
    run.finish(train(work, aligner or RewardWeighted(), options, run, acc))
    return policy, run


def weights_of(policy: Policy) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in policy.network.named_parameters()}


def test_learning_rate_by_hand() -> None:
    options = TrainOptions(max_steps=12, warmup_steps=4, decay_fraction=0.5, learning_rate=1.0)
    rates = [learning_rate_at(step, options) for step in range(12)]
    warm, flat, fall = [0.25, 0.5, 0.75], [1.0] * 4, [5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]
    assert rates == pytest.approx(warm + flat + fall)
    constant = dataclasses.replace(options, warmup_steps=0, decay_fraction=0.0)
    assert {learning_rate_at(step, constant) for step in range(12)} == {1.0}


def test_training_lowers_the_loss_and_logs_every_step(tmp_path: Path) -> None:
    options = dataclasses.replace(SMALL, max_steps=60, learning_rate=1e-2)
    _, run = run_toy(tmp_path / "r", options)
    assert [row["step"] for row in run.history()] == list(range(1, 61))
    assert {"loss", "error", "grad_norm", "learning_rate", "images_per_s"} < run.history()[0].keys()
    assert run.result["loss_last"] < 0.8 * run.result["loss_first"]
    assert not run.checkpoints.exists()


@dataclasses.dataclass(frozen=True)
class LogsSometimes(Interrupted):
    """Logs a scalar in every other step, and one for micro-batches of the first rows only."""

    def batches(self, work: Work) -> Iterator[Batch]:
        for step, batch in zip(work.steps, super().batches(work), strict=True):
            odd = torch.full_like(batch["weight"], step % 2)
            yield batch.plus(odd=odd, row=torch.arange(len(batch), dtype=torch.float))

    def loss(self, work: Work, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss, scalars = super().loss(work, batch)
        early = batch["row"] < 4
        if early.any():
            scalars["row"] = batch["row"].mean()
        if batch["odd"][0]:
            scalars["odd"] = torch.tensor(2.0)
        return loss, scalars


def test_scalars_may_differ_from_step_to_step_and_by_micro_batch(tmp_path: Path) -> None:
    options = dataclasses.replace(SMALL, max_steps=12, micro_batch_size=2)
    _, whole = run_toy(tmp_path / "whole", options, LogsSometimes(at=-1))
    with pytest.raises(Stop):
        run_toy(tmp_path / "cut", options, LogsSometimes(at=5))
    _, resumed = run_toy(tmp_path / "cut", options, LogsSometimes(at=-1))
    for run in (whole, resumed):
        # the mean of rows 0 to 3: the micro-batches that had none do not count
        assert [row["row"] for row in run.history()] == pytest.approx([1.5] * 12)
        assert [row.get("odd") for row in run.history()] == [None, pytest.approx(2.0)] * 6
        assert [row["step"] for row in run.history()] == list(range(1, 13))
    losses = [[row["loss"] for row in run.history()] for run in (whole, resumed)]
    assert losses[0] == losses[1]


def test_mean_of_a_scalar_by_hand() -> None:
    """Of two processes: "a" in both, "b" in half the rows of one."""
    sums = [{"a": (1.0, 1.0), "b": (0.25, 0.5)}, {"a": (3.0, 1.0)}]
    assert means(sums) == {"a": 2.0, "b": 0.5}


@pytest.mark.parametrize("micro", [1, 2, 8])
def test_micro_batches_change_nothing(tmp_path: Path, micro: int) -> None:
    whole, _ = run_toy(tmp_path / "whole")
    cut, _ = run_toy(tmp_path / "cut", dataclasses.replace(SMALL, micro_batch_size=micro))
    for name, value in weights_of(whole).items():
        torch.testing.assert_close(weights_of(cut)[name], value, rtol=1e-4, atol=1e-6)


def test_average_by_hand(tmp_path: Path) -> None:
    """The result is the moving average of the weights after each step."""
    options = dataclasses.replace(SMALL, max_steps=2, decay_fraction=0.0)
    start = weights_of(ToyPolicy())
    last = [
        weights_of(
            run_toy(tmp_path / str(n), dataclasses.replace(options, max_steps=n, ema_decay=0.0))[0]
        )
        for n in (1, 2)
    ]
    mean, _ = run_toy(tmp_path / "mean", options)
    for name, value in weights_of(mean).items():
        first = 0.1 * start[name] + 0.9 * last[0][name]
        by_hand = (2 / 11) * first + (9 / 11) * last[1][name]
        torch.testing.assert_close(value, by_hand, rtol=1e-5, atol=1e-7)


def test_reward_zero_changes_nothing(tmp_path: Path) -> None:
    rows = toy_rows()
    rows = dataclasses.replace(rows, reward=torch.zeros_like(rows.reward))
    before = weights_of(ToyPolicy())
    for draw in ("uniform", "reward"):
        policy, run = run_toy(tmp_path / draw, ALONE, RewardWeighted(draw=draw), rows)
        assert all(torch.equal(before[n], p) for n, p in weights_of(policy).items())
        saved = load_file(run.weights / "toy.safetensors")
        assert all(torch.equal(before[n], p) for n, p in saved.items())


def test_weight_decay_shrinks_even_then(tmp_path: Path) -> None:
    """Why weight_decay is 0 by default."""
    rows = toy_rows()
    rows = dataclasses.replace(rows, reward=torch.zeros_like(rows.reward))
    options = dataclasses.replace(ALONE, weight_decay=0.01)
    policy, _ = run_toy(tmp_path / "r", options, RewardWeighted(), rows)
    before = weights_of(ToyPolicy())["0.weight"]
    assert 0.99 < weights_of(policy)["0.weight"].norm() / before.norm() < 1


@pytest.mark.parametrize("what", ["loss", "grad_norm"])
def test_nan_stops_and_keeps_the_good_checkpoint(tmp_path: Path, what: str) -> None:
    path = tmp_path / "r"
    with pytest.raises(
        UserError, match=rf"{what} is (nan|inf) at step 4: .*checkpoint of step 2 is kept"
    ):
        run_toy(path, aligner=Poisoned(what=what))
    run = Run(path)
    assert run.latest_checkpoint == run.checkpoints / "2"
    assert not run.finished
    assert not run.weights.exists()
    assert all(
        v.isfinite().all()
        for v in load_file(next((run.checkpoints / "2/weights").iterdir())).values()
    )
    says = "at step 1: training stopped, nothing was saved; the cause is the model or"
    with pytest.raises(UserError, match=says) as refused:
        run_toy(tmp_path / "first", aligner=Poisoned(at=0))
    assert "learning-rate" not in str(refused.value)


def test_checkpoints_have_no_pickle_and_only_two_stay(tmp_path: Path) -> None:
    options = dataclasses.replace(SMALL, max_steps=9)
    with pytest.raises(Stop):
        run_toy(tmp_path / "r", options, Interrupted(at=7))
    run = Run(tmp_path / "r")
    assert sorted(p.name for p in run.checkpoints.iterdir()) == ["4", "6"]
    kinds = {p.suffix for p in run.checkpoints.rglob("*") if p.is_file()}
    assert kinds == {".safetensors", ".json"}


def sd_policy(folder: Path, lora_rank: int) -> StableDiffusion:
    policy = StableDiffusion.load(folder, torch.device("cpu"))
    if lora_rank:
        policy.add_lora(lora_rank, seed=5)
    return policy


def run_sd(
    folder: Path, path: Path, aligner: RewardWeighted, lora_rank: int = 0,
    options: TrainOptions = SMALL,
) -> Run:  # fmt: skip
    policy = sd_policy(folder, lora_rank)
    latents = torch.randn(16, 4, 16, 16, generator=torch.Generator().manual_seed(0)).half()
    rows = make_rows(
        policy, (latents[:12], ["a dog", "two cats"] * 6), [1.0, 0.0] * 6, [0.9, 0.2] * 6,
        (latents[12:], ["sea"] * 4),
    )  # fmt: skip
    run = open_run(path, asked({}), 0)
    acc = make_accelerator("bf16")
    run.finish(train(Work(policy, rows, 8, 6, 1), aligner, options, run, acc))
    return run


def fingerprint(run: Run) -> dict[str, str]:
    return {
        str(p.relative_to(run.weights)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(run.weights.rglob("*.safetensors"))
    }


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_resumed_run_is_bit_identical(tmp_path: Path, lora_rank: int) -> None:
    folder = tiny_pipeline(tmp_path / "sd")
    whole = run_sd(folder, tmp_path / "whole", RewardWeighted(), lora_rank)
    with pytest.raises(Stop):
        run_sd(folder, tmp_path / "cut", Interrupted(at=3), lora_rank)
    assert Run(tmp_path / "cut").latest_checkpoint is not None
    resumed = run_sd(folder, tmp_path / "cut", RewardWeighted(), lora_rank)
    assert fingerprint(resumed) == fingerprint(whole)
    assert len(fingerprint(whole)) == 1
    timeless = [
        [{k: v for k, v in row.items() if k != "images_per_s"} for row in run.history()]
        for run in (whole, resumed)
    ]
    assert timeless[0] == timeless[1]
    assert len(timeless[0]) == 6


def test_sd_reward_zero_changes_nothing(tmp_path: Path) -> None:
    folder = tiny_pipeline(tmp_path / "sd")
    run = run_sd(folder, tmp_path / "r", RewardWeighted(reward_threshold=1.0), options=ALONE)
    before = load_file(folder / "unet/diffusion_pytorch_model.safetensors")
    after = load_file(run.weights / "unet/diffusion_pytorch_model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


BAD_OPTIONS = {
    "max_steps 0 is too small": {"max_steps": 0},
    "batch_size 8 is not a multiple of 1 processes × micro_batch_size 3": {"micro_batch_size": 3},
    "ema_decay 1.0 is not in": {"ema_decay": 1.0},
    "decay_fraction 2.0 is not in": {"decay_fraction": 2.0},
    "learning_rate nan must be": {"learning_rate": float("nan")},
    "pretraining_fraction -0.1 is not in": {"pretraining_fraction": -0.1},
    "pretraining_weight -1.0 must be": {"pretraining_weight": -1.0},
    "kl_weight nan must be": {"kl_weight": float("nan")},
    "norm_guard -1.0 must be": {"norm_guard": -1.0},
}


@pytest.mark.parametrize("message", BAD_OPTIONS)
def test_bad_options(message: str) -> None:
    options = dataclasses.replace(SMALL, **BAD_OPTIONS[message])
    with pytest.raises(UserError, match=message):
        options.check()


def test_an_average_in_the_machine_s_memory_is_the_same(tmp_path: Path) -> None:
    _, there = run_toy(tmp_path / "device")
    _, here = run_toy(tmp_path / "machine", dataclasses.replace(SMALL, ema_on_cpu=True))
    assert fingerprint(here) == fingerprint(there)


def test_without_a_decay_no_average_is_kept(tmp_path: Path) -> None:
    options = dataclasses.replace(SMALL, ema_decay=0.0)
    with pytest.raises(Stop):
        run_toy(tmp_path / "r", options, Interrupted(at=5))
    run = Run(tmp_path / "r")
    assert {p.name for p in (run.checkpoints / "4").iterdir()} == {
        "weights", "optimizer", "state.json",
    }  # fmt: skip
    resumed, _ = run_toy(tmp_path / "r", options)
    whole, _ = run_toy(tmp_path / "whole", options)
    for name, value in weights_of(whole).items():
        assert torch.equal(weights_of(resumed)[name], value)
