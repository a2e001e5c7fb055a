"""What can be read off a picture, and whether that makes a prompt true. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

THRESHOLD = 0.35
"""Score from which a detection counts as an object."""
_DOUBT = 0.3  # a score this far from the threshold leaves no doubt


class Detection(NamedTuple):
    """One object found in a picture; scores in [0, 1], position in pixels of 64."""

    object: str
    colour: str
    score: float
    object_score: float
    colour_score: float
    x_px: float
    y_px: float


@dataclass(frozen=True, slots=True)
class Reading:
    """A picture read by the judge.

    Args:
        objects: detections that count, best first.
        background: the likeliest background.
        background_score: its probability.
        faint: the best score among candidates that do not count, in [0, `THRESHOLD`).
    """

    objects: tuple[Detection, ...]
    background: str
    background_score: float
    faint: float = 0.0

    @property
    def certainty(self) -> float:
        """How clear the picture is, in [0, 1]: its least certain part decides; 0 if empty."""
        scores = [min(found.object_score, found.colour_score) for found in self.objects]
        return min([self.count_certainty, self.background_score, *scores]) if scores else 0.0

    @property
    def count_certainty(self) -> float:
        """How far every candidate is from the threshold between object and no object."""
        weakest = min((found.score for found in self.objects), default=1.0)
        return min(1.0, (weakest - THRESHOLD) / _DOUBT, (THRESHOLD - self.faint) / _DOUBT)


class Verdict(NamedTuple):
    """Whether the prompt is true of a picture, and how sure that is.

    `certainty` weighs only what the prompt asks for; `cleanness` is how clear the picture is,
    whatever was asked. Both in [0, 1]. `on_subject`: an object of the kind asked for is there.
    `why`: what the judge saw, in words.
    """

    true: bool
    certainty: float
    cleanness: float = 1.0
    on_subject: bool = True
    why: str = ""


def verdict(reading: Reading, slots: Mapping[str, str | int]) -> Verdict:
    """Judge one picture against one prompt.

    True if something is found, every object found is the one asked for (in the colour asked for),
    their number is the count and the background the background, where asked. A true prompt is as
    certain as its least certain part; a false one as its most certain fault.

    Args:
        reading: what the judge saw.
        slots: "object" always; "count", "colour", "background" where the prompt names them.
    Raises: ValueError: if the slots name no object.
    """
    findings = _findings(reading, slots)
    faults = [certainty for right, certainty in findings if not right]
    certainty = max(faults) if faults else min(certainty for _, certainty in findings)
    on_subject = any(found.object == slots["object"] for found in reading.objects)
    return Verdict(not faults, certainty, reading.certainty, on_subject, in_words(reading))


def in_words(reading: Reading) -> str:
    """What the judge saw, such as "2 × red cat, 1 × blue cat, on the moon"."""
    kinds = [f"{found.colour} {found.object}" for found in reading.objects]
    parts = [f"{kinds.count(kind)} × {kind}" for kind in dict.fromkeys(kinds)]
    return ", ".join([*(parts or ["nothing"]), reading.background])


def _findings(reading: Reading, slots: Mapping[str, str | int]) -> list[tuple[bool, float]]:
    """Whether each thing asked for is there, and how certain that is."""
    if "object" not in slots:
        raise ValueError(f"slots {dict(slots)} name no object; the judge needs one to look for")
    found = reading.objects
    if not found:
        return [(False, reading.count_certainty)]
    findings = [_alike([(o.object == slots["object"], o.object_score) for o in found])]
    if "count" in slots:
        findings.append((len(found) == slots["count"], reading.count_certainty))
    if "colour" in slots:
        findings.append(_alike([(o.colour == slots["colour"], o.colour_score) for o in found]))
    if "background" in slots:
        findings.append((reading.background == slots["background"], reading.background_score))
    return findings


def _alike(findings: list[tuple[bool, float]]) -> tuple[bool, float]:
    """Join the findings about each object: one clear stranger is enough for a clear no."""
    strangers = [certainty for right, certainty in findings if not right]
    return (False, max(strangers)) if strangers else (True, min(c for _, c in findings))
