"""Few bits through bitsandbytes; `make test-quantised` installs it."""

import dataclasses
from pathlib import Path

import pytest
import torch
from test_train import SMALL, Interrupted, Stop, fingerprint, run_toy

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
