"""The families of models: one file each, beside the contract that they keep."""

from sayso.families._contract import (
    PARTS,
    Cond,
    Policy,
    Rollout,
    for_rows,
    join,
    mean_squared_error,
    move,
    take,
)
from sayso.families._schedule import NOISES, VARIANCE_PRESERVING, Kind, Noise, log_prob

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
    "take",
]
