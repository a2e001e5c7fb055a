"""Points in the plane whose reward-tilted distribution is known: the aligner must move to it."""

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sayso.aligners import Aligner, Work
from sayso.aligners.rwr import RewardWeighted
from sayso.aligners.sft import GoodImages
from sayso.base.devices import make_accelerator
from sayso.base.types import Sampler
from sayso.data.rows import make_rows
from sayso.study.run import open_run
from sayso.study.run_options import asked
from sayso.testing import ToyPolicy
from sayso.training.loop import train
from sayso.training.options import TrainOptions

N = 2000
SAMPLER = Sampler(num_inference_steps=20)
OPTIONS = TrainOptions(
    max_steps=1500,
    batch_size=256,
    learning_rate=2e-3,
    checkpoint_every=1000,
    pretraining_weight=0.0,
)


def corner(points: Tensor) -> Tensor:
    """Number of the quadrant, 0 … 3."""
    return (points[:, 0, 0, 0] > 0).long() + 2 * (points[:, 1, 0, 0] > 0).long()


def shares(policy: ToyPolicy) -> Tensor:
    cond = policy.encode_prompts(["0"] * N)
    return corner(policy.sample(cond, cond, range(N), SAMPLER)).bincount(minlength=4) / N


def tune(
    policy: ToyPolicy, aligner: Aligner, points: Tensor, rewards: Tensor, marks: Tensor, path: Path,
    options: TrainOptions = OPTIONS, **more: object,
) -> ToyPolicy:  # fmt: skip
    tuned = copy.deepcopy(policy)
    rows = make_rows(tuned, (points, ["0"] * len(points)), marks.tolist(), rewards.tolist())
    work = Work(tuned, rows, options.batch_size, options.max_steps, seed=0, **more)
    train(work, aligner, options, open_run(path, asked({}), 0), make_accelerator("no"))
    return tuned


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ToyPolicy:
    """A model of four equal heaps of points, one in each corner; trained by the same loop."""
    rng = torch.Generator().manual_seed(0)
    signs = torch.randint(2, (4000, 2, 1, 1), generator=rng) * 2.0 - 1
    points = signs + 0.2 * torch.randn(signs.shape, generator=rng)
    ones, path = torch.ones(4000), tmp_path_factory.mktemp("base") / "run"
    return tune(ToyPolicy(), GoodImages(prompt_dropout=0.0), points, ones, ones, path)


@pytest.fixture(scope="module")
def own(base: ToyPolicy) -> Tensor:
    cond = base.encode_prompts(["0"] * N)
    return base.sample(cond, cond, range(10_000, 10_000 + N), SAMPLER)


REWARD = torch.tensor([0.9, 0.3, 0.3, 0.1])


def rwr(**options: object) -> RewardWeighted:
    return RewardWeighted(prompt_dropout=0.0, **options)


def test_base_has_four_heaps(base: ToyPolicy) -> None:
    """Roughly equal ones: the tilt below is computed from the shares the base really has."""
    torch.testing.assert_close(shares(base), torch.full((4,), 0.25), rtol=0, atol=0.1)


@pytest.mark.parametrize("draw", ["uniform", "reward"])
def test_rwr_moves_to_the_tilted_distribution(
    base: ToyPolicy, own: Tensor, tmp_path: Path, draw: str
) -> None:
    rewards = REWARD[corner(own)]
    tuned = tune(base, rwr(draw=draw), own, rewards, rewards, tmp_path / "r")
    tilted = (REWARD * corner(own).bincount(minlength=4)).div((rewards).sum())
    assert (shares(base) - tilted).abs().max() > 0.2
    torch.testing.assert_close(shares(tuned), tilted, rtol=0, atol=0.06)


def test_wrong_sign_fails(base: ToyPolicy, own: Tensor, tmp_path: Path) -> None:
    """The test above is able to fail: with the reward upside down the best heap nearly empties."""
    rewards = (1 - REWARD)[corner(own)]
    tuned = tune(base, rwr(draw="reward"), own, rewards, rewards, tmp_path / "r")
    assert shares(tuned)[0] < 0.12


def test_sft_moves_to_the_good_ones(base: ToyPolicy, own: Tensor, tmp_path: Path) -> None:
    marks = (corner(own) >= 2).float()
    tuned = tune(base, GoodImages(prompt_dropout=0.0), own, marks, marks, tmp_path / "r")
    assert shares(tuned)[2:].sum() > 0.95


def test_marks_and_rewards_are_not_mixed_up(base: ToyPolicy, own: Tensor, tmp_path: Path) -> None:
    marks, rewards = (corner(own) == 3).float(), (corner(own) == 0).float()
    by_mark = tune(base, rwr(weight="mark"), own, rewards, marks, tmp_path / "m")
    by_reward = tune(base, rwr(), own, rewards, marks, tmp_path / "r")
    assert shares(by_mark)[3] > 0.9
    assert shares(by_reward)[0] > 0.9


def test_aligner_options_are_plain_data() -> None:
    assert dataclasses.asdict(rwr())["weight"] == "reward"
