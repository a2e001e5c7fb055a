"""Refusals of options out of range, or without effect, that several aligners have."""

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


def refuse_idle(aligner: Aligner, where: str, *names: str) -> None:
    """Refuse options that were given and would change nothing.

    Args:
        where: the other option that makes them so: "with --trust clip".
        names: the options.
    Raises: UserError: naming the first that is not at its default.
    """
    for name in names:
        # of the class, for what a config file says becomes the default of a subclass's field
        value, default = getattr(aligner, name), getattr(type(aligner), name)
        if value == default:
            continue
        option = name.replace("_", "-")
        if isinstance(value, bool):
            said = f"--{option}" if value else f"--no-{option}"
        else:
            said = f"--{option} {value}"
        raise UserError(f"{said} would have no effect {where}; omit it")
