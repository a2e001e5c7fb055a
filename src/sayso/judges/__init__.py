"""The judges: one file each, beside the contract that they keep."""

from sayso.judges._contract import (
    Judge,
    Verdict,
    changed_judge,
    judge_identities,
    load_judge,
    named_judge,
    without_judge,
    world_judge,
)

__all__ = [
    "Judge",
    "Verdict",
    "changed_judge",
    "judge_identities",
    "load_judge",
    "named_judge",
    "without_judge",
    "world_judge",
]
