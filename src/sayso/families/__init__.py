"""The families of models: one file each, beside the contract that they keep."""

from sayso.families._conditions import Cond, for_rows, join, move, take
from sayso.families._contract import PARTS, Policy, Rollout
from sayso.families._schedule import (
    LEAST_STD,
    VARIANCE_PRESERVING,
    Kind,
    Noise,
    log_prob,
    mean_squared_error,
    root_mean_square,
    step_divergence,
)

__all__ = [
    "LEAST_STD",
    "PARTS",
    "VARIANCE_PRESERVING",
    "Cond",
    "Kind",
    "Noise",
    "Policy",
    "Rollout",
    "for_rows",
    "join",
    "log_prob",
    "mean_squared_error",
    "move",
    "root_mean_square",
    "step_divergence",
    "take",
]
