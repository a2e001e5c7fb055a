"""The line plots of the report."""

from typing import Any

from markupsafe import Markup

from sayso.base.files import JsonObject
from sayso.reporting.charts import Axis, Series, plot, smooth
from sayso.study.run import Run

_LEAST_IN_BIN = 5


def calibration_plot(quality: JsonObject) -> Markup | None:
    """Share of true images against the reward that promised them, seen and unseen objects apart."""
    series = [_reliability(quality[s], s) for s in ("seen", "unseen") if _bins(quality, s)]
    if not series:
        return None
    axes = Axis("reward", 0.0, 1.0), Axis("share that is true", 0.0, 1.0, percent=True)
    return plot(series, *axes, "Calibration of the reward", diagonal=True)


def _bins(quality: JsonObject, split: str) -> list[dict[str, Any]]:
    """The bins with enough images, of more than one prompt, to say something."""
    table = quality.get(split, {}).get("calibration", [])
    rows = [_in_todays_words(row) for row in table if isinstance(row, dict)]
    return [row for row in rows if row["n"] >= _LEAST_IN_BIN and row["label_low"] is not None]


def _in_todays_words(row: JsonObject) -> JsonObject:
    """A bin of result.json; earlier versions called its label the target."""
    return {key.replace("target", "label"): value for key, value in row.items()}


def _reliability(part: JsonObject, split: str) -> Series:
    rows = _bins({split: part}, split)
    return Series(
        split,
        [(row["score"], row["label"]) for row in rows],
        [(row["label_low"], row["label_high"]) for row in rows],
        dots=True,
    )


def fit_plot(run: Run | None) -> Markup | None:
    """Squared error of the reward on learned and on held-out prompts, by epoch."""
    names = {"squared_error": "base", "heldout_squared_error": "aligned"}
    rows = run.history() if run else []
    lines = [
        Series(kind, _points(rows, name)) for name, kind in names.items() if _points(rows, name)
    ]
    if not lines:
        return None
    return plot(
        lines, Axis("epoch", low=0.0), Axis("squared error", low=0.0), "Training the reward"
    )


def training_plot(run: Run | None, name: str, label: str) -> Markup | None:
    """One logged number of the alignment by step; many steps are averaged into few points."""
    points = _points(run.history(), name) if run else []
    if len(points) < 2:
        return None
    kind = "aligned" if name == "loss" else "best"
    low = 0.0 if name == "learning_rate" else None
    return plot([Series(kind, smooth(points))], Axis("step", low=0.0), Axis(label, low=low), label)


def _points(rows: list[JsonObject], name: str) -> list[tuple[float, float]]:
    return [
        (float(row["step"]), float(row[name]))
        for row in rows
        if isinstance(row.get(name), int | float)
    ]
