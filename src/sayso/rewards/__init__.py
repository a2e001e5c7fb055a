"""The rewards: one file each, beside the contract that they keep."""

from sayso.rewards._contract import (
    ClipReward,
    PretrainedReward,
    RatedSamples,
    Reward,
    TrainableReward,
)
from sayso.rewards._loading import (
    is_differentiable,
    load_reward,
    load_reward_class,
    load_trainable_reward,
    reads_clip,
    reward_at_hand,
    reward_folders,
)

__all__ = [
    "ClipReward",
    "PretrainedReward",
    "RatedSamples",
    "Reward",
    "TrainableReward",
    "is_differentiable",
    "load_reward",
    "load_reward_class",
    "load_trainable_reward",
    "reads_clip",
    "reward_at_hand",
    "reward_folders",
]
