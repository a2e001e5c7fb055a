"""When raters who vote alike decide."""

from typing import Any

TWO_THIRDS = 2 / 3
"""The share of a prompt's raters that the paper asks for: Lee et al. 2023, arXiv 2302.12192."""


def is_majority(alike: Any, votes: Any, threshold: float = TWO_THIRDS) -> Any:
    """Whether so many votes that are alike, among so many, decide; numbers or arrays of them."""
    # the small slack lets 6 of 9 count as two thirds in floating point
    return alike >= threshold * votes - 1e-9
