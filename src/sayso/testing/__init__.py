"""Contract checks for plug-ins, yours too, and a toy to run them on."""

from sayso.testing.checks import check_aligner, check_family, check_judge, check_reward
from sayso.testing.toy import ToyPolicy, ToyReward, toy_rows, toy_work

__all__ = [
    "ToyPolicy",
    "ToyReward",
    "check_aligner",
    "check_family",
    "check_judge",
    "check_reward",
    "toy_rows",
    "toy_work",
]
