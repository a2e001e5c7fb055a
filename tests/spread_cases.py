"""Trainings that must end alike in one process and in several; test_spread.py runs them in both.

`python -m torch.distributed.run … tests/spread_cases.py FOLDER CASE …` runs cases in one launch,
with the model in FOLDER/model. A case such as rwr-full-2 is `CASES["rwr"]` with sharding full and
micro-batches of two; rwr-full-2-bf16 computes in bf16.
"""

import dataclasses
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from sayso.aligners import Aligner, Batch, Work
from sayso.aligners.dpo import DirectPreference
from sayso.aligners.rwr import RewardWeighted
from sayso.base.devices import MixedPrecision, is_main_process, main_process_first, make_accelerator
from sayso.data.pairs import Pairs
from sayso.data.rows import make_rows
from sayso.families import Policy
from sayso.families.stable_diffusion import StableDiffusion
from sayso.study.run import Run, open_run
from sayso.study.run_options import asked
from sayso.training import loop
from sayso.training.options import TrainOptions

OPTIONS = TrainOptions(
    max_steps=5, batch_size=8, warmup_steps=2, learning_rate=2e-4, ema_decay=0.5,
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
        return loss + (work.prediction(batch) - before).square().mean(), scalars


class Case(NamedTuple):
    """What is trained, and with which options beside `OPTIONS`."""

    aligner: Aligner
    lora_rank: int = 0
    options: dict[str, Any] = {}  # noqa: RUF012 (nobody changes it)


CASES = {
    "rwr": Case(RewardWeighted()),
    "dpo": Case(DirectPreference(), 0, {"pretraining_fraction": 0.5, "learning_rate": 2e-5}),
    "old": Case(NearOld(), 0, {"gradient_checkpointing": True}),
    "lora": Case(RewardWeighted(), 4, {"kl_weight": 0.1, "learning_rate": 1e-3}),
}


def train_case(
    models: Path, path: Path, name: str, precision: MixedPrecision = "no", **changes: Any
) -> Run:
    """Run a case to its end, from the last checkpoint if there is one.

    Args:
        models: folder of a Stable Diffusion.
        path: of the run.
        name: of the case.
        precision: of the network's arithmetic.
        changes: options that are changed.
    """
    case = CASES[name]
    policy = StableDiffusion.load(models, torch.device("cpu"))
    if case.lora_rank:
        policy.add_lora(case.lora_rank, seed=5)
    options = dataclasses.replace(OPTIONS, **case.options | changes)
    accelerator = make_accelerator(precision)
    with main_process_first():
        run = open_run(path, asked({}), 0, main=is_main_process())
    with run:
        result = loop.train(work_on(policy), case.aligner, options, run, accelerator)
        if is_main_process():
            run.finish(result)
    return run


def work_on(policy: Policy) -> Work:
    latents = torch.randn(16, 4, 8, 8, generator=torch.Generator().manual_seed(0)).half()
    rows = make_rows(
        policy, (latents[:12], ["a dog", "two cats"] * 6), [1.0, 0.0] * 6, [0.9, 0.2] * 6,
        (latents[12:], ["sea"] * 4),
    )  # fmt: skip
    pairs = torch.tensor([(i, i + 1) for i in range(0, 12, 2)])
    preferred = Pairs(pairs, torch.linspace(0.5, 1, len(pairs)), pairs[:, 0] % 3)
    return Work(policy, rows, 8, 5, 1, pairs=preferred)


def held(trained: loop._Loop) -> dict[str, tuple[int, int]]:
    """Of each kind of tensors: how many numbers this process holds, and how many there are."""
    policy, reference = trained.policy, trained.policy._reference
    kinds: dict[str, Iterable[Tensor]] = {
        "weights": policy.network.parameters(),
        "average": trained.average,
        "moments": [trained.optimizer.state[p]["exp_avg"] for p in trained.parameters],
        "older": [t for self in policy.remembered.values() for t in self.values()],
        "reference": reference[0].parameters() if reference else (),
    }
    return {kind: _numbers(list(tensors)) for kind, tensors in kinds.items()}


def _numbers(tensors: list[Tensor]) -> tuple[int, int]:
    here = [t.to_local() if isinstance(t, DTensor) else t for t in tensors]
    return sum(t.numel() for t in here), sum(t.numel() for t in tensors)


def launched(folder: Path, spec: str) -> None:
    """One case of a launch; what each process held at the end is in FOLDER/CASE/held-RANK.json."""
    name, sharding, micro, *precision = spec.split("-")
    path, finish = folder / spec, loop._Loop.finish

    def looked_at(self: loop._Loop) -> None:
        rank = self.accelerator.process_index
        (path / f"held-{rank}.json").write_text(json.dumps(held(self)))
        finish(self)

    loop._Loop.finish = looked_at
    options: dict[str, Any] = {"sharding": sharding, "micro_batch_size": int(micro)}
    if precision:
        options["precision"] = precision[0]
    train_case(folder / "model", path, name, **options)
    loop._Loop.finish = finish


if __name__ == "__main__":
    for spec in sys.argv[2:]:
        launched(Path(sys.argv[1]), spec)
