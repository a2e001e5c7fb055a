"""The one exception that means "the user can mend this"."""

from collections.abc import Iterable
from dataclasses import fields
from difflib import get_close_matches
from shlex import quote
from typing import Any


class UserError(Exception):
    """A user's mistake or a machine's limit: one line that says what was given and what to do.

    The command line prints the message and exits with code 2; everything else is a bug and keeps
    its traceback.
    """


def quoted(value: object) -> str:
    """A path or name in a command that a message gives, as a shell wants it typed."""
    return quote(str(value))


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
        raise UserError(f"seed {seed} is not allowed; give 0 to {SEED_END - 1}")


MOST = 1_000_000
"""The most of anything that an option may ask for; the paper's largest number is 625,000."""
TIGHTER = {
    "fidelity": 100_000, "lora_rank": 10_000,
    "num_inference_steps": 10_000, "overlap": 10_000, "raters": 10_000, "workers": 1_000,
}  # fmt: skip
NO_COUNTS = ("seed", "port")


def check_counts(config: Any) -> None:
    """Raises: UserError: for a whole number in the dataclass that only a slip of the hand gives."""
    for field in fields(config):
        value, most = getattr(config, field.name), TIGHTER.get(field.name, MOST)
        if isinstance(value, int) and value > most and field.name not in NO_COUNTS:
            raise UserError(f"{field.name} {value} is too large; give {most:,} or less")
