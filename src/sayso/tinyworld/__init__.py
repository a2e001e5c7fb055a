"""The embedded default: drawn scenes, a tiny Stable Diffusion and CLIP, and raters that see."""

from pathlib import Path
from typing import NamedTuple


class Paths(NamedTuple):
    """Folders of the shipped weights."""

    pipeline: Path
    clip: Path
    judge: Path


def paths() -> Paths:
    """Return the folders of the shipped pipeline, CLIP model and judge."""
    weights = Path(__file__).parent / "weights"
    return Paths(weights / "pipeline", weights / "clip", weights / "judge")
