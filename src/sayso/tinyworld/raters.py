"""Simulated raters: programs that mark pictures as people do, with mistakes of their own.

Their names say that they are simulated; no report mixes them with people.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sayso.tinyworld.reading import Verdict
from sayso.types import Choice, Question, Value


@dataclass(frozen=True, slots=True)
class SimulatedRater:
    """A rater with its own error rates.

    Args:
        name: contains "simulated".
        false_good: probability in [0, 1] of marking a bad picture good.
        false_bad: probability in [0, 1] of marking a good picture bad.
        skip_below: certainty in [0, 1] under which it is unsure.
        skip_rate_when_unsure: probability in [0, 1] of skipping then.
        taste_noise: standard deviation of its view of how clean a set of pictures is.
        just_noticeable: smaller differences in cleanness are ties.
    Raises: ValueError: if the name hides that the rater is simulated or a rate is no probability.
    """

    name: str
    false_good: float
    false_bad: float
    skip_below: float = 0.3
    skip_rate_when_unsure: float = 0.8
    taste_noise: float = 0.05
    just_noticeable: float = 0.06

    def __post_init__(self) -> None:
        if "simulated" not in self.name:
            raise ValueError(f"rater name {self.name!r} must contain 'simulated'")
        for field in ("false_good", "false_bad", "skip_below", "skip_rate_when_unsure"):
            if not 0 <= getattr(self, field) <= 1:
                raise ValueError(f"{field} is {getattr(self, field)}; it must be in [0, 1]")

    def rate(self, verdict: Verdict, rng: np.random.Generator) -> Value:
        """Mark one picture: skip when unsure, else tell the truth but for mistakes."""
        unsure, slip = rng.random(2).tolist()
        if verdict.certainty < self.skip_below and unsure < self.skip_rate_when_unsure:
            return "skip"
        return "good" if self._sees_good(verdict, slip) else "bad"

    def compare(
        self,
        left: Sequence[Verdict],
        right: Sequence[Verdict],
        question: Question,
        rng: np.random.Generator,
    ) -> Choice:
        """Say which of two sets of pictures is better, or that neither is.

        Alignment: the set with more pictures it sees as good. Fidelity: the set that looks
        cleaner to it, if the difference is noticeable.

        Raises: ValueError: if a set is empty.
        """
        if not left or not right:
            raise ValueError("a comparison needs at least one picture on each side")
        if question == "alignment":
            return _larger(self._share_good(left, rng), self._share_good(right, rng), 0.0)
        views = [self._cleanness(side, rng) for side in (left, right)]
        return _larger(views[0], views[1], self.just_noticeable)

    def _sees_good(self, verdict: Verdict, slip: float) -> bool:
        return slip >= self.false_bad if verdict.true else slip < self.false_good

    def _share_good(self, verdicts: Sequence[Verdict], rng: np.random.Generator) -> float:
        slips = rng.random(len(verdicts)).tolist()
        marks = [self._sees_good(v, slip) for v, slip in zip(verdicts, slips, strict=True)]
        return float(np.mean(marks))

    def _cleanness(self, verdicts: Sequence[Verdict], rng: np.random.Generator) -> float:
        return float(np.mean([v.cleanness for v in verdicts])) + rng.normal(0, self.taste_noise)


def _larger(left: float, right: float, tie_within: float) -> Choice:
    if abs(left - right) <= tie_within:
        return "tie"
    return "left" if left > right else "right"


def make_raters(n: int, seed: int) -> list[SimulatedRater]:
    """Make raters "simulated-1" to "simulated-n" with error rates of their own around 3–8 %.

    The k-th rater is the same however many are made.

    Raises: ValueError: if n < 1.
    """
    if n < 1:
        raise ValueError(f"{n} raters asked for; at least 1 is needed")
    return [_make_rater(f"simulated-{k}", seed) for k in range(1, n + 1)]


def _make_rater(name: str, seed: int) -> SimulatedRater:
    rng = decision_rng(seed, name, "character")
    return SimulatedRater(
        name=name,
        false_good=float(rng.uniform(0.03, 0.08)),
        false_bad=float(rng.uniform(0.03, 0.08)),
        skip_below=float(rng.uniform(0.2, 0.4)),
        skip_rate_when_unsure=float(rng.uniform(0.6, 0.95)),
        taste_noise=float(rng.uniform(0.03, 0.07)),
        just_noticeable=float(rng.uniform(0.04, 0.08)),
    )


def decision_rng(seed: int, rater: str, item: str) -> np.random.Generator:
    """Return the randomness of one decision: the same whatever was decided before it.

    Args:
        seed: the study's seed.
        rater: name of the rater.
        item: id of what is judged, such as a sample id.
    """
    text = f"{seed}\n{rater}\n{item}".encode()
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text).digest()[:16], "big"))
