"""Few bits through bitsandbytes; `make test-quantised` installs it."""

import dataclasses
from pathlib import Path

import pytest
import torch
from studies import rated_study
from test_train import SMALL, Interrupted, Stop, fingerprint, run_toy

from sayso.base.devices import BasePrecision
from sayso.families._loading import load_policy
from sayso.families._precision import stored_bytes
from sayso.stages.align import AlignConfig, align
from sayso.stages.generate import GenerateConfig, generate
from sayso.study.study import Study
from sayso.testing import ToyPolicy
from sayso.training.optimizers import make_optimizer, moment_bytes
from sayso.training.options import TrainOptions

bitsandbytes = pytest.importorskip("bitsandbytes")

EIGHT = dataclasses.replace(SMALL, optimizer="adamw8bit", learning_rate=1e-2)


def test_adam_in_8_bits_learns_as_in_32(tmp_path: Path) -> None:
    steps = dataclasses.replace(EIGHT, max_steps=60)
    losses = [
        run_toy(tmp_path / name, dataclasses.replace(steps, optimizer=name))[1].result["loss_last"]
        for name in ("adamw", "adamw8bit")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert losses[1] != losses[0]


def test_a_resumed_run_in_8_bits_is_bit_identical(tmp_path: Path) -> None:
    whole = fingerprint(run_toy(tmp_path / "whole", EIGHT)[1])
    with pytest.raises(Stop):
        run_toy(tmp_path / "cut", EIGHT, Interrupted(at=3))
    assert fingerprint(run_toy(tmp_path / "cut", EIGHT)[1]) == whole


def test_moments_take_the_bytes_that_are_forecast() -> None:
    parameters = [*ToyPolicy(width=64).network.parameters()]
    options = TrainOptions(optimizer="adamw8bit")
    optimizer = make_optimizer(parameters, 1e-3, options)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for parameter in parameters:
        state = optimizer.state[parameter]
        # the two code books are the same for all weights
        own = [v for k, v in state.items() if torch.is_tensor(v) and not k.startswith("qmap")]
        assert sum(value.nbytes for value in own) == moment_bytes(parameter.numel(), options)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return rated_study(tmp_path_factory.mktemp("quantised"))


LORA = AlignConfig(
    max_steps=4, batch_size=4, aligner="sft", lora_rank=2, learning_rate=1e-2, pretraining_images=4,
    mixed_precision="no", warmup_steps=0,
)  # fmt: skip


@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_adapters_are_trained_on_few_bits(study: Study, precision: BasePrecision) -> None:
    """About as on the whole weights; the result is laid over the whole weights."""
    losses = {
        kind: align(study, dataclasses.replace(LORA, name=kind, base_precision=kind)).history()
        for kind in ("fp32", precision)
    }
    few, whole = ([row["loss"] for row in losses[kind]] for kind in (precision, "fp32"))
    assert few == pytest.approx(whole, rel=0.05)
    assert few != whole
    policy = load_policy(study, f"runs/align-{precision}", torch.device("cpu"))
    assert {p.dtype for p in policy.network.parameters()} == {torch.float32}


@pytest.mark.parametrize(("precision", "kind"), [("int8", torch.int8), ("nf4", torch.uint8)])
def test_linear_layers_take_the_bytes_that_are_forecast(
    study: Study, precision: BasePrecision, kind: torch.dtype
) -> None:
    cpu = torch.device("cpu")
    expected = stored_bytes(load_policy(study, "base", cpu).network, precision)
    policy = load_policy(study, "base", cpu, precision)
    weights = [*policy.network.parameters()]
    assert kind in {p.dtype for p in weights}
    # of layers this small the scales are no small part
    assert sum(p.nbytes for p in weights) == pytest.approx(expected, rel=0.05)
    policy.add_lora(2, 0)
    assert {p.dtype for p in policy.trainable().values()} == {torch.float32}


@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_images_are_drawn_on_few_bits(study: Study, precision: BasePrecision) -> None:
    """The base's, and those of adapters that were trained on them and stay beside."""
    run = align(study, dataclasses.replace(LORA, name=f"d-{precision}", base_precision=precision))
    policy = load_policy(study, run.name, torch.device("cpu"), precision, merge=False)
    assert policy.has_adapters
    for model in ("base", run.name):
        config = GenerateConfig(
            model=model, per_prompt=1, base_precision=precision, mixed_precision="no",
            name=f"{precision}-{model[-3:]}",
        )  # fmt: skip
        assert generate(study, config).result["drawn"] == 3
