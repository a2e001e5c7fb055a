"""A toy's training: ready to step, stopped half-way, or run to its end; and any, killed."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from torch import Tensor

from sayso.aligners import Batch, Work
from sayso.aligners.rwr import RewardWeighted
from sayso.base.devices import make_accelerator
from sayso.study.run import Run, open_run
from sayso.study.run_options import asked
from sayso.testing import ToyPolicy, toy_work
from sayso.training.loop import _Loop, placed, train
from sayso.training.options import TrainOptions

OPTIONS = TrainOptions(
    max_steps=5, batch_size=8, warmup_steps=2, decay_fraction=0.4, learning_rate=1e-2,
    ema_decay=0.3, checkpoint_every=2,
)  # fmt: skip
ALIGNER = RewardWeighted()


def work(steps: int = 5, policy: ToyPolicy | None = None) -> Work:
    """As the loop makes it: 7 rows of the aligner's, and a pre-training row."""
    made = toy_work(policy or ToyPolicy(8), max_steps=steps)
    return dataclasses.replace(made, batch_size=7, n_pretraining=1)


def run_at(path: Path) -> Run:
    return open_run(path, asked({}), 0)


def loop_at(path: Path, precision: str = "no", **changes: Any) -> _Loop:
    options = dataclasses.replace(OPTIONS, **changes)
    accelerator = make_accelerator(precision)
    return looped(path, options, accelerator)


def looped(path: Path, options: TrainOptions, accelerator: Accelerator) -> _Loop:
    options = options.for_aligner(ALIGNER.defaults)
    ready = placed(work(), ALIGNER, options, accelerator)
    return _Loop(ready, ALIGNER, options, run_at(path), accelerator)


def train_at(
    path: Path, options: TrainOptions = OPTIONS, aligner: RewardWeighted = ALIGNER
) -> tuple[ToyPolicy, Run]:
    policy, run = ToyPolicy(8), run_at(path)
    facts = train(work(policy=policy), aligner, options, run, make_accelerator("no"))
    run.finish(facts)
    return policy, run


def differences(a: list[Tensor], b: list[Tensor]) -> float:
    return max((x - y).abs().max().item() for x, y in zip(a, b, strict=True))


def batch_of(loop: _Loop) -> Batch:
    return next(iter(ALIGNER.batches(work())))


def half(path: Path, steps: int = 3) -> _Loop:
    """A loop stopped after some steps, with a checkpoint of the last."""
    loop = loop_at(path)
    for batch in list(ALIGNER.batches(work()))[:steps]:
        loop.update(batch)
    loop.save_checkpoint()
    loop.saver.wait()
    return loop


@contextmanager
def killed_at(monkeypatch: pytest.MonkeyPatch, step: int) -> Iterator[None]:
    """A block whose training is interrupted before its update after so many steps."""
    update = _Loop.update

    def until(loop: Any, batch: Batch) -> None:
        if loop.step == step:
            raise KeyboardInterrupt
        update(loop, batch)

    with monkeypatch.context() as patched:
        patched.setattr(_Loop, "update", until)
        with pytest.raises(KeyboardInterrupt):
            yield
