"""The families of models: one file each, beside the contract that they keep."""

from sayso.families._conditions import Cond, for_rows, join, move, take
from sayso.families._contract import PARTS, Policy, Rollout
from sayso.families._schedule import (
    NOISES,
    VARIANCE_PRESERVING,
    Kind,
    Noise,
    log_prob,
    mean_squared_error,
    root_mean_square,
)

__all__ = [
    "NOISES",
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
    "take",
]
