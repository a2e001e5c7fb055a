"""Rewards of images that the toy draws while it trains: the heaps of better ones must grow."""

import dataclasses
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from heaps import OPTIONS, Corners, heaps, shares, tune
from torch import Tensor

from sayso.aligners._online import Online
from sayso.aligners.awm import AdvantageWeighted
from sayso.aligners.direct_align import DirectAlign
from sayso.aligners.grpo import GroupPolicy
from sayso.aligners.nft import NegativeAware
from sayso.base.types import Sampler
from sayso.families import Kind
from sayso.rewards import Reward
from sayso.testing import ToyPolicy

GRPO = GroupPolicy(images=128, steps_per_image=8, clip_range=1e-2)
DPPO = GroupPolicy(images=128, steps_per_image=8, trust="dppo", divergence_limit=1e-3)
AWM = AdvantageWeighted(images=128, old_weight=0.3, prompt_dropout=0.0)
GROUPS = AdvantageWeighted(images=128, groups=True, beta=2.0, old_weight=0.1, prompt_dropout=0.0)
NFT = NegativeAware(score="rollouts", images=128, beta=0.3, prompt_dropout=0.0)


@pytest.fixture(scope="module")
def started(base: ToyPolicy, tmp_path_factory: pytest.TempPathFactory) -> dict[Kind, ToyPolicy]:
    """A model of each kind; those of v and of velocities are roughly trained."""
    more: list[Kind] = ["v", "velocity"]
    made = {kind: heaps(tmp_path_factory.mktemp(kind) / "run", kind, 300) for kind in more}
    return {"eps": base, **made}


def by_rollouts(
    base: ToyPolicy, path: Path, aligner: Online, sign: float = 1.0, **loop: float
) -> Tensor:
    options = dataclasses.replace(OPTIONS, **{"max_steps": 70, "learning_rate": 1e-3, **loop})
    alike, more = torch.ones(1), {"prompts": ("0",), "reward": Corners(sign)}
    sampler, nothing = Sampler(20, guidance_scale=1.0), torch.zeros(1, 2, 1, 1)
    return shares(
        tune(base, aligner, nothing, alike, alike, path, options, sampler=sampler, **more)
    )


@pytest.mark.parametrize(
    ("aligner", "kind"),
    [(GRPO, "v"), (NFT, "eps"), (NFT, "v"), (AWM, "velocity"), (GRPO, "velocity"), (GROUPS, "v"),
     (NFT, "velocity"), (AWM, "eps"), (GRPO, "eps"), (DPPO, "eps")],
    ids=lambda x: x if isinstance(x, str) else type(x).__name__,
)  # fmt: skip
def test_the_best_corner_takes_nearly_all(
    started: dict[Kind, ToyPolicy], tmp_path: Path, aligner: Online, kind: Kind
) -> None:
    """Without a pull to the start the tilt has no end."""
    assert by_rollouts(started[kind], tmp_path / "r", aligner)[0] > 0.8


@pytest.mark.parametrize("aligner", [GRPO, DPPO, NFT, AWM, GROUPS], ids=lambda a: type(a).__name__)
def test_with_a_wrong_sign_it_is_left(base: ToyPolicy, tmp_path: Path, aligner: Online) -> None:
    assert by_rollouts(base, tmp_path / "r", aligner, -1.0)[0] < 0.05


class Near(Reward):
    """High in one corner, and low in the opposite one: it has a gradient everywhere."""

    differentiable: ClassVar[bool] = True

    def __init__(self, best: float) -> None:
        self.best = best

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        points = images[:, :2].mean((2, 3)) * 4 - 2
        return (-(points - self.best).square().sum(1) / 4).exp()


DRAWN = DirectAlign(source="rollouts", stride=0.5)
LAST = DirectAlign(source="rollouts", last_steps=12)


@pytest.mark.parametrize(
    ("aligner", "kind"),
    [(DirectAlign(stride=0.5), "eps"), (DRAWN, "v"), (DRAWN, "velocity"), (LAST, "eps")],
    ids=["samples", "v", "velocity", "last_steps"],
)  # fmt: skip
def test_the_gradient_of_a_reward_leads_to_its_corner(
    started: dict[Kind, ToyPolicy], own: Tensor, tmp_path: Path, aligner: DirectAlign, kind: Kind
) -> None:
    options = dataclasses.replace(OPTIONS, max_steps=40, learning_rate=2e-3, batch_size=48)
    alike, sampler = torch.ones(len(own)), Sampler(20, guidance_scale=1.0)
    before = shares(started[kind])
    both = ((-1.0, 0), (1.0, 3)) if aligner.source == "samples" else ((1.0, 3),)
    for place, corner in both:
        more = {"sampler": sampler, "prompts": ("0",), "reward": Near(place)}
        path = tmp_path / f"r{corner}"
        after = shares(tune(started[kind], aligner, own, alike, alike, path, options, **more))
        assert after[corner] > before[corner] + 0.2
        assert after[3 - corner] < before[3 - corner] - 0.1


def test_kl_weight_keeps_near_the_start(base: ToyPolicy, tmp_path: Path) -> None:
    kept = by_rollouts(base, tmp_path / "r", GRPO, kl_weight=3.0)
    assert shares(base)[0] < kept[0] < 0.6
