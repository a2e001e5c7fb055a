"""Simulated raters: programs that rate pictures as people do, with mistakes of their own.

Their names say that they are simulated; no report mixes them with people.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sayso.base.types import Choice, Question, Value
from sayso.tinyworld.reading import Verdict

_OTHER_SUBJECT = 0.75  # difference of the shares of pictures that show the object asked for
_PACE_SPREAD = 0.35


@dataclass(frozen=True, slots=True)
class SimulatedRater:
    """A rater with its own error rates.

    Args:
        name: contains "simulated".
        false_good: probability in [0, 1] of rating a bad picture good.
        false_bad: probability in [0, 1] of rating a good picture bad.
        skip_below: certainty in [0, 1] under which it is unsure.
        skip_rate_when_unsure: probability in [0, 1] of skipping then.
        taste_noise: standard deviation of its view of how clean a set of pictures is.
        just_noticeable: smaller differences in cleanness are ties.
        pace_s: usual time to a vote, in seconds; it only matters in the rating app.
        same_key: of a careless rater, the share in [0, 1] of its votes that are "good" (of
            comparisons: "left"); it presses keys without looking, and never skips. None looks.
    Raises: ValueError: if the name hides that the rater is simulated or a rate is no probability.
    """

    name: str
    false_good: float
    false_bad: float
    skip_below: float = 0.3
    skip_rate_when_unsure: float = 0.8
    taste_noise: float = 0.05
    just_noticeable: float = 0.06
    pace_s: float = 2.0
    same_key: float | None = None

    def __post_init__(self) -> None:
        if "simulated" not in self.name:
            raise ValueError(f"rater name {self.name!r} must contain 'simulated'")
        for field in ("false_good", "false_bad", "skip_below", "skip_rate_when_unsure"):
            if not 0 <= getattr(self, field) <= 1:
                raise ValueError(f"{field} is {getattr(self, field)}; it must be in [0, 1]")

    def rate(self, verdict: Verdict, rng: np.random.Generator) -> Value:
        """Rate one picture: skip when unsure, else tell the truth but for mistakes."""
        if self.same_key is not None:
            return "good" if rng.random() < self.same_key else "bad"
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

        Alignment: the set with more pictures it sees as good; if one set is of something else
        altogether, the other, for that is seen without counting. Fidelity: the set that looks
        cleaner to it, if the difference is noticeable.

        Raises: ValueError: if a set is empty.
        """
        if not left or not right:
            raise ValueError("a comparison needs at least one image on each side")
        if self.same_key is not None:
            return "left" if rng.random() < self.same_key else "right"
        if question == "alignment":
            about = [float(np.mean([v.on_subject for v in side])) for side in (left, right)]
            if abs(about[0] - about[1]) >= _OTHER_SUBJECT:
                return _larger(about[0], about[1], 0.0)
            return _larger(self._share_good(left, rng), self._share_good(right, rng), 0.0)
        views = [self._cleanness(side, rng) for side in (left, right)]
        return _larger(views[0], views[1], self.just_noticeable)

    def seconds(self, rng: np.random.Generator) -> float:
        """A simulated time to a vote, log-normal around the rater's pace, in seconds."""
        return float(self.pace_s * np.exp(rng.normal(0, _PACE_SPREAD)))

    def _sees_good(self, verdict: Verdict, slip: float) -> bool:
        return slip >= self.false_bad if verdict.true else slip < self.false_good

    def _share_good(self, verdicts: Sequence[Verdict], rng: np.random.Generator) -> float:
        slips = rng.random(len(verdicts)).tolist()
        seen_good = [self._sees_good(v, slip) for v, slip in zip(verdicts, slips, strict=True)]
        return float(np.mean(seen_good))

    def _cleanness(self, verdicts: Sequence[Verdict], rng: np.random.Generator) -> float:
        return float(np.mean([v.cleanness for v in verdicts])) + rng.normal(0, self.taste_noise)


def _larger(left: float, right: float, tie_within: float) -> Choice:
    if abs(left - right) <= tie_within:
        return "tie"
    return "left" if left > right else "right"


def make_raters(n: int, seed: int, careless: int = 0) -> list[SimulatedRater]:
    """Make raters "simulated-1" to "simulated-n" with error rates of their own around 3–8 %.

    The k-th honest rater is the same however many are made. The last `careless` of them do not
    look. Careless votes come as repetition and as randomness; theirs are some of both, "good" on
    80–90 %: to repeat is the less effort, and one key alone would be seen without statistics.

    Raises: ValueError: if n < 1, or careless is not in [0, n].
    Source: Meade and Craig 2012, Identifying careless responses in survey data, Psychological
        Methods 17, for the two kinds.
    """
    if n < 1:
        raise ValueError(f"{n} raters requested; at least 1 is needed")
    if not 0 <= careless <= n:
        raise ValueError(f"{careless} of {n} raters cannot be careless")
    names = [f"simulated-{k}" for k in range(1, n + 1)]
    honest = [_make_rater(name, seed) for name in names[: n - careless]]
    return [*honest, *(_make_careless(name, seed) for name in names[n - careless :])]


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
        pace_s=float(rng.uniform(1.5, 3.0)),
    )


def _make_careless(name: str, seed: int) -> SimulatedRater:
    rng = decision_rng(seed, name, "carelessness")
    pace_s, same_key = float(rng.uniform(0.6, 0.9)), float(rng.uniform(0.8, 0.9))
    return SimulatedRater(name, 0.5, 0.5, pace_s=pace_s, same_key=same_key)


def decision_rng(seed: int, rater: str, item: str) -> np.random.Generator:
    """Return the randomness of one decision: the same whatever was decided before it.

    Args:
        seed: the study's seed.
        rater: name of the rater.
        item: id of what is judged, such as a sample id.
    """
    text = f"{seed}\n{rater}\n{item}".encode()
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text).digest()[:16], "big"))
