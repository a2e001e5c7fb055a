"""The families of models: one file each, beside the contract that they keep."""

from sayso.families._contract import Cond, Policy, mean_squared_error, move, take

__all__ = ["Cond", "Policy", "mean_squared_error", "move", "take"]
