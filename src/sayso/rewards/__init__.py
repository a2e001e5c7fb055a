"""The rewards: one file each, beside the contract that they keep."""

from sayso.rewards._contract import (
    ClipReward,
    RatedSamples,
    Reward,
    TrainableReward,
    is_differentiable,
    load_reward,
    load_trainable_reward,
    reward_folders,
)

__all__ = [
    "ClipReward",
    "RatedSamples",
    "Reward",
    "TrainableReward",
    "is_differentiable",
    "load_reward",
    "load_trainable_reward",
    "reward_folders",
]
