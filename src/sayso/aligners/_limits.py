"""Refusals of options out of range that several aligners have."""

from sayso.aligners import Aligner
from sayso.base.errors import UserError


def refuse_not_positive(aligner: Aligner, *names: str) -> None:
    """Raises: UserError: naming the first option that is not above 0, or not finite."""
    for name in names:
        if not 0 < getattr(aligner, name) < float("inf"):
            raise UserError(f"{name} {getattr(aligner, name)} must be above 0")


def refuse_not_below_one(aligner: Aligner, **advice: float) -> None:
    """Refuse shares and decays that are not in [0, 1).

    Args:
        advice: the options, each with a value to try.
    Raises: UserError: naming the first.
    """
    for name, value in advice.items():
        if not 0 <= getattr(aligner, name) < 1:
            raise UserError(f"{name} {getattr(aligner, name)} is not in [0, 1); try {value}")
