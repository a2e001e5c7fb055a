"""The toy's world: four heaps of points, their corners and rewards, and a training of the toy."""

import copy
import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from sayso.aligners import Aligner, Work
from sayso.aligners.sft import GoodImages
from sayso.base.devices import make_accelerator
from sayso.base.types import Sampler
from sayso.data.rows import make_rows
from sayso.families import Kind
from sayso.rewards import Reward
from sayso.study.run import open_run
from sayso.study.run_options import asked
from sayso.testing import ToyPolicy
from sayso.training.loop import train
from sayso.training.options import TrainOptions

N = 2000
SAMPLER = Sampler(num_inference_steps=20)
OPTIONS = TrainOptions(
    max_steps=750,
    batch_size=256,
    learning_rate=2e-3,
    checkpoint_every=1000,
    pretraining_weight=0.0,
)


REWARD = torch.tensor([0.9, 0.3, 0.3, 0.1])


def corner(points: Tensor) -> Tensor:
    """Number of the quadrant, 0 … 3."""
    return (points[:, 0, 0, 0] > 0).long() + 2 * (points[:, 1, 0, 0] > 0).long()


def shares(policy: ToyPolicy) -> Tensor:
    cond = policy.encode_prompts(["0"] * N)
    return corner(policy.sample(cond, cond, range(N), SAMPLER)).bincount(minlength=4) / N


def tune(
    policy: ToyPolicy, aligner: Aligner, points: Tensor, rewards: Tensor, labels: Tensor,
    path: Path, options: TrainOptions = OPTIONS, **more: object,
) -> ToyPolicy:  # fmt: skip
    tuned = copy.deepcopy(policy)
    rows = make_rows(tuned, (points, ["0"] * len(points)), labels.tolist(), rewards.tolist())
    work = Work(tuned, rows, options.batch_size, options.max_steps, seed=0, **more)
    train(work, aligner, options, open_run(path, asked({}), 0), make_accelerator("no"))
    return tuned


def heaps(path: Path, kind: Kind = "eps", steps: int = 1500) -> ToyPolicy:
    """A model of four equal heaps of points, one in each corner; trained by the same loop."""
    rng = torch.Generator().manual_seed(0)
    signs = torch.randint(2, (4000, 2, 1, 1), generator=rng) * 2.0 - 1
    points = signs + 0.2 * torch.randn(signs.shape, generator=rng)
    ones, longer = torch.ones(4000), dataclasses.replace(OPTIONS, max_steps=steps)
    aligner = GoodImages(prompt_dropout=0.0)
    return tune(ToyPolicy(kind=kind), aligner, points, ones, ones, path, longer)


class Corners(Reward):
    def __init__(self, sign: float) -> None:
        self.values = 0.5 + sign * (REWARD - 0.5)

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self.values[corner(images[:, :2] * 4 - 2)]
