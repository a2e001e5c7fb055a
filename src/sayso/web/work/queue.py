"""The rules of the queue as pure functions: who gets what, when, on which side. No SQL, no clock.

All randomness is a hash of the task's seed, so an order can be replayed from the seed.
"""

import hashlib
import random
from dataclasses import dataclass
from typing import Literal

Control = Literal["", "gold", "attention"]
CHECKS: tuple[Control, ...] = ("gold", "attention")
Standing = Literal["", "proposed", "struck"]
"""Whether a check is used, waits for an admin's word, or was struck by one."""

LEASE_S = 600.0
"""How long an item that was handed out stays reserved; asking for more work renews it."""

BLOCK = 20
"""Pages among which the checks are spread, so that every rater meets the same share."""


def generator(seed: int, *words: object) -> random.Random:
    """Randomness that depends on the seed and the words alone, on every machine."""
    text = "\n".join([str(seed), *map(str, words)])
    return random.Random(int.from_bytes(hashlib.sha256(text.encode()).digest(), "big"))


def shuffled(n: int, seed: int, *words: object) -> list[int]:
    """The numbers 0 … n - 1 in an order that seed and words decide."""
    order = list(range(n))
    generator(seed, "order", *words).shuffle(order)
    return order


def first_rank(n: int, seed: int, rater: str) -> int:
    """The rank in [0, n) where a rater enters the order of a task, which is a circle.

    Raters begin at different places, so that they seldom meet the same page in the same hour.
    """
    return generator(seed, "first", rater).randrange(n) if n else 0


def control_at(
    position: int, seed: int, rater: str, gold_share: float, attention_share: float
) -> Control:
    """What the page at one position of a rater's work is: ordinary, gold or an attention check.

    Every block of `BLOCK` pages holds the shares, rounded up or down by chance, at random places.

    Args:
        position: how many pages the rater was given before, ≥ 0.
        gold_share: in [0, 1]; with `attention_share` at most 1.
    """
    rng = generator(seed, "checks", rater, position // BLOCK)
    n_gold, n_attention = (int(s * BLOCK + rng.random()) for s in (gold_share, attention_share))
    block: list[Control] = []
    for i in range(BLOCK):
        block.append("gold" if i < n_gold else "attention" if i < n_gold + n_attention else "")
    rng.shuffle(block)
    return block[position % BLOCK]


def overlap_of(page: str, overlap: int, shared_overlap: int, seed: int) -> int:
    """How many raters a page wants: those of a random tenth `shared_overlap`, if that is more.

    Args:
        page: what it shows, so that pages which join later change nothing for the others.
    """
    if shared_overlap <= overlap:
        return overlap
    return shared_overlap if generator(seed, "shared", page).random() < 0.1 else overlap


def is_reserved(until: float, now: float) -> bool:
    """Whether a lease that ends at `until` holds at `now` (seconds since the epoch).

    A lease that would last longer than any lease does was made before the clock was set back; it
    does not hold, or it would keep its item from everyone.
    """
    return now < until <= now + LEASE_S


def has_room(overlap: int, voted: int, reserved: int) -> bool:
    """Whether an item may go to one more rater; overlap 0 is everyone."""
    return overlap == 0 or voted + reserved < overlap


def swap_sides(rater: int, item: int, drawn: float) -> bool:
    """Whether the first set of a comparison shall stand right.

    Each balance counts swapped minus unswapped assignments so far. The side that makes them more
    even is taken three times in four, so that nobody can work out a side from those before; the
    questions on one pair of sets are drawn each by itself.

    Args:
        rater: balance of this rater.
        item: balance of this pair of sets and question.
        drawn: from [0, 1), evenly, and known to nobody.
    Source: Pocock and Simon 1975, "Sequential treatment assignment with balancing for prognostic
        factors in the controlled clinical trial", with Efron's biased coin of 1971.
    """
    leaning = rater + item
    return drawn < (0.5 if leaning == 0 else 0.25 if leaning > 0 else 0.75)


def opposite(value: str) -> str:
    """The value left or right as seen when the sides are swapped; others are the same."""
    return {"left": "right", "right": "left"}.get(value, value)


@dataclass(frozen=True, slots=True)
class Newest:
    """The newest vote of a rater on an item: its id, and whether it took one back."""

    id: str
    retracted: bool


def superseded(newest: Newest | None, value_retracts: bool, supersedes: str | None) -> str | None:
    """The id of the vote that a new one replaces; None for a first vote.

    Raises: ValueError: if the new vote does not follow on the newest one.
    """
    if newest is None:
        if supersedes or value_retracts:
            raise ValueError("you have no vote here to replace")
        return None
    if newest.retracted:
        if value_retracts:
            raise ValueError("that vote has already been withdrawn")
        if supersedes in (None, newest.id):
            return newest.id
    if supersedes != newest.id:
        raise ValueError("you have already rated this, perhaps in another tab")
    return newest.id


@dataclass(frozen=True, slots=True)
class Told:
    """How far the work is, as raters are told: votes so far and in the end, one's own and all.

    Hidden checks count like other votes, so no number moves for one and not for the other.
    """

    mine: int
    mine_total: int
    project: int
    project_total: int


def told(mine: int, votes: int, n_items: int, wanted: int, check_share: float) -> Told:
    """What raters are told, of numbers alone that a check moves as any other vote does.

    Args:
        mine: votes of this rater so far, checks included.
        votes: of everyone, checks included.
        n_items: ordinary items of the task.
        wanted: votes on ordinary items that the overlap asks for.
        check_share: share of checks among all pages that is expected, in [0, 1).
    """
    in_all = max(votes, round(wanted / (1 - check_share)))
    unseen = round(n_items / (1 - check_share)) - mine
    return Told(mine, mine + max(0, min(in_all - votes, unseen)), votes, in_all)


def told_at_the_end(so_far: Told, complete: bool) -> Told:
    """The same when nothing is left for the rater: what was only expected is known now.

    Args:
        complete: whether the task has all votes that it wants.
    """
    in_all = so_far.project if complete else so_far.project_total
    return Told(so_far.mine, so_far.mine, so_far.project, in_all)
