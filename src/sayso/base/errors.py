"""The one exception that means "the user can mend this"."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """A user's mistake or a machine's limit: one line that says what was given and what to do.

    The command line prints the message and exits with code 2; everything else is a bug and keeps
    its traceback.
    """


def unknown_name(kind: str, given: str, allowed: Iterable[str]) -> UserError:
    """The error for a name that is not on the list, with the nearest one that is."""
    names = sorted(allowed)
    near = get_close_matches(given, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UserError(f"unknown {kind} {given!r}: {hint}choose one of {', '.join(names)}")


SEED_END = 2**63
"""Seeds are below it: generators and databases keep them as signed 64-bit numbers."""


def check_seed(seed: int | None) -> None:
    """Raises: UserError: for a seed that some generator would refuse later, or change."""
    if seed is not None and not 0 <= seed < SEED_END:
        raise UserError(f"seed {seed} is not possible; give 0 to {SEED_END - 1}")
