"""Contract checks for plug-ins, yours too, and a toy to run them on."""

from sayso.testing.checks import check_aligner, check_family, check_reward
from sayso.testing.toy import ToyPolicy, toy_rows

__all__ = ["ToyPolicy", "check_aligner", "check_family", "check_reward", "toy_rows"]
