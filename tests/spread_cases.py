"""Trainings that one process and several must end alike, run by either; see test_spread.py.

`python -m torch.distributed.run … tests/spread_cases.py FOLDER CASE …` runs cases in a launch.
"""

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from sayso.aligners import Aligner, Batch, Work
from sayso.aligners.dpo import DirectPreference
from sayso.aligners.rwr import RewardWeighted
from sayso.base.devices import make_accelerator
from sayso.data.pairs import Pairs
from sayso.data.rows import make_rows
from sayso.families.stable_diffusion import StableDiffusion
from sayso.study.run import Run, open_run
from sayso.study.run_options import asked
from sayso.training import loop
from sayso.training.options import TrainOptions

OPTIONS = TrainOptions(
    max_steps=5, batch_size=8, warmup_steps=2, checkpoint_every=1, learning_rate=1e-3,
    pretraining_weight=0.2, pretraining_fraction=0.25,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class NearOld(RewardWeighted):
    """Stays near an older self, which follows after each step."""

    needs: ClassVar = frozenset({"data", "reward", "old"})

    def batches(self, work: Work) -> Iterator[Batch]:
        for batch in super().batches(work):
            yield batch
            work.policy.remember("old", 0.5)

    def loss(self, work: Work, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        before = work.prediction(batch, "old")
        loss, scalars = super().loss(work, batch)
        return loss + 0.1 * (work.prediction(batch) - before).square().mean(), scalars


class Case(NamedTuple):
    """What is trained, how."""

    aligner: Aligner
    lora_rank: int = 0
    changes: dict[str, Any] = {}  # noqa: RUF012 (not changed)


CASES = {
    "rwr": Case(RewardWeighted()),
    "dpo": Case(DirectPreference(), 0, {"pretraining_fraction": 0.5, "learning_rate": 1e-4}),
    "old": Case(NearOld(), 0, {"gradient_checkpointing": True}),
    "lora": Case(RewardWeighted(), 4, {"kl_weight": 0.1}),
}


def trained(models: Path, path: Path, name: str, **changes: Any) -> Run:
    """Run a case, from its last checkpoint if there is one.

    Args:
        models: the folder of a tiny model.
        path: of the run.
        changes: options.
    """
    case = CASES[name.partition("-")[0]]
    policy = StableDiffusion.load(models, torch.device("cpu"))
    if case.lora_rank:
        policy.add_lora(case.lora_rank, seed=5)
    options = dataclasses.replace(OPTIONS, **{**case.changes, **changes})
    accelerator = make_accelerator("no")
    run = open_run(path, asked({}), 0, main=accelerator.is_main_process) if not dist.is_initialized() or accelerator.is_main_process else Run(path)
    run.finish(loop.train(work(policy), case.aligner, options, run, accelerator))
    return run


def work(policy: StableDiffusion) -> Work:
    latents = torch.randn(16, 4, 16, 16, generator=torch.Generator().manual_seed(0)).half()
    rows = make_rows(
        policy, (latents[:12], ["a dog", "two cats"] * 6), [1.0, 0.0] * 6, [0.9, 0.2] * 6,
        (latents[12:], ["sea"] * 4),
    )  # fmt: skip
    pairs = torch.tensor([(i, i + 1) for i in range(0, 12, 2)])
    preferred = Pairs(pairs, torch.linspace(0.5, 1, len(pairs)), pairs[:, 0] % 3)
    return Work(policy, rows, 8, 5, 1, pairs=preferred)


if __name__ == "__main__":
    made = loop._Loop.__init__
    folder = Path(sys.argv[1])
    for name in sys.argv[2:]:
        _, sharding, micro = name.split("-")
        trained(folder / "model", folder / name, name, sharding=sharding, micro_batch_size=int(micro))
