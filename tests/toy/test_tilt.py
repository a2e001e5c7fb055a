"""Points in the plane whose reward-tilted distribution is known: the aligner must move to it."""

import dataclasses
from pathlib import Path

import pytest
import torch
from heaps import OPTIONS, REWARD, corner, shares, tune
from torch import Tensor

from sayso.aligners import Aligner
from sayso.aligners.dpo import DirectPreference
from sayso.aligners.kto import KahnemanTversky
from sayso.aligners.lair import Listwise
from sayso.aligners.nft import NegativeAware
from sayso.aligners.rwr import RewardWeighted
from sayso.aligners.sft import GoodImages
from sayso.data.pairs import Pairs
from sayso.testing import ToyPolicy


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
    labels = (corner(own) >= 2).float()
    tuned = tune(base, GoodImages(prompt_dropout=0.0), own, labels, labels, tmp_path / "r")
    assert shares(tuned)[2:].sum() > 0.95


def test_labels_and_rewards_are_not_mixed_up(base: ToyPolicy, own: Tensor, tmp_path: Path) -> None:
    labels, rewards = (corner(own) == 3).float(), (corner(own) == 0).float()
    by_label = tune(base, rwr(weight="label"), own, rewards, labels, tmp_path / "m")
    by_reward = tune(base, rwr(), own, rewards, labels, tmp_path / "r")
    assert shares(by_label)[3] > 0.9
    assert shares(by_reward)[0] > 0.9


def test_aligner_options_are_plain_data() -> None:
    assert dataclasses.asdict(rwr())["weight"] == "reward"


SCORE = torch.tensor([2.0, 1.0, 1.0, 0.0])
"""How good people find each corner: of two, they choose the better with odds exp(difference)."""


def chosen_pairs(own: Tensor, sign: float = 1.0) -> Pairs:
    rng, c = torch.Generator().manual_seed(1), corner(own)
    rows = torch.randint(len(own), (4000, 2), generator=rng)
    odds = sign * (SCORE[c[rows[:, 0]]] - SCORE[c[rows[:, 1]]])
    first = torch.rand(4000, generator=rng) < odds.sigmoid()
    rows = torch.where(first[:, None], rows, rows.flip(1))
    return Pairs(rows, torch.ones(4000), torch.zeros(4000, dtype=torch.long))


def by_pairs(base: ToyPolicy, own: Tensor, path: Path, sign: float, **options: float) -> Tensor:
    alike, short = torch.ones(len(own)), dataclasses.replace(OPTIONS, max_steps=500)
    aligner = DirectPreference(prompt_dropout=0.0, **options)
    pairs = chosen_pairs(own, sign)
    return shares(tune(base, aligner, own, alike, alike, path, short, pairs=pairs))


def test_dpo_moves_to_the_tilted_distribution(base: ToyPolicy, own: Tensor, tmp_path: Path) -> None:
    """Which is base · exp(score / temperature), the temperature read off the best and the worst."""
    before, after = shares(base), by_pairs(base, own, tmp_path / "r", 1.0, beta=20.0)
    moved = (after / before).log()
    rate = (moved[0] - moved[3]) / 2
    assert rate > 0.5
    tilted = before * (rate * SCORE).exp()
    torch.testing.assert_close(after, tilted / tilted.sum(), rtol=0, atol=0.09)


def test_dpo_with_a_wrong_sign_moves_the_other_way(
    base: ToyPolicy, own: Tensor, tmp_path: Path
) -> None:
    after = by_pairs(base, own, tmp_path / "r", -1.0, beta=20.0)
    assert after[0] < 0.12
    assert after[3] > 0.4


def test_beta_and_guard_hold_dpo_back(base: ToyPolicy, own: Tensor, tmp_path: Path) -> None:
    free = by_pairs(base, own, tmp_path / "f", 1.0, beta=5.0, guard=0.0)
    held = by_pairs(base, own, tmp_path / "b", 1.0, beta=200.0, guard=0.0)
    guarded = by_pairs(base, own, tmp_path / "g", 1.0, beta=5.0, guard=0.8)
    assert shares(base)[0] < held[0] < free[0]
    assert guarded[0] < free[0] - 0.1


def by_labels(base: ToyPolicy, own: Tensor, path: Path, aligner: Aligner, sign: int) -> Tensor:
    """Ratings of many raters: a share of good for each corner."""
    labels = (SCORE[corner(own)] / 2 - 0.5) * sign + 0.5
    short = dataclasses.replace(OPTIONS, max_steps=250, learning_rate=1e-3)
    return shares(tune(base, aligner, own, labels, labels, path, short))


FROM_LABELS = [
    NegativeAware(prompt_dropout=0.0),
    KahnemanTversky(prompt_dropout=0.0, beta=20.0, good_share=0.5),
    Listwise(prompt_dropout=0.0, beta=2.0),
]


@pytest.mark.parametrize("aligner", FROM_LABELS, ids=lambda a: type(a).__name__)
def test_labels_move_it_and_turned_round_move_it_the_other_way(
    base: ToyPolicy, own: Tensor, tmp_path: Path, aligner: Aligner
) -> None:
    """Corner 0 is good, 3 is bad, 1 and 2 are neither."""
    before = shares(base)
    better = by_labels(base, own, tmp_path / "r", aligner, 1) - before
    worse = by_labels(base, own, tmp_path / "w", aligner, -1) - before
    assert better[0] > 0.15
    assert better[3] < -0.1
    assert worse[3] > 0.15
    assert worse[0] < -0.1
