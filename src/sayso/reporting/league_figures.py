"""The league's curves as pictures: truth against cost, against the distance moved, and reward."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sayso.base.files import JsonObject
from sayso.reporting.figures import percent, picture
from sayso.reporting.league_tables import finished

SHOWN_N = (4, 16, 64)
"""Best of n, as lines to compare with."""
MARKERS = {"offline": "o", "online": "s", "rounds": "^", "switch": "x"}
Point = tuple[int | float, Mapping[str, Any]]


def draw(results: JsonObject, folder: Path) -> dict[str, Path]:
    """Draw the curves into the folder.

    Returns: title → picture.
    """
    figures = {
        "Truth against cost": ("truth-cost.png", _against(
            "evaluations", "network evaluations of the training, in thousands", 1e-3,
            kinds=("offline", "online", "rounds"), apart=0.006)),
        "Truth against distance": ("truth-distance.png", _against(
            "distance", "mean squared difference of predictions to the base's", 1.0)),
        "Truth against reward": ("truth-reward.png", _against_reward),
    }  # fmt: skip
    made = {}
    for title, (name, plot) in figures.items():
        picture(title, folder / name, plot, results)
        made[title] = folder / name
    return made


def _against(
    name: str, label: str, unit: float, kinds: Sequence[str] = tuple(MARKERS), apart: float = 0.0
) -> Callable[[Any, JsonObject], None]:
    """A plot of truth against a number of every cell.

    Args:
        kinds: which cells are shown.
        apart: by what share of the number ends are moved from each other, where all are alike.
    """

    def plot(axes: Any, results: JsonObject) -> None:
        base = next((c for c in finished(results) if c["kind"] == "base"), None)
        origin = [(0.0, base["truth"]["all"])] if base else []
        shown = [(s, c) for s, c in _styled(results) if c["kind"] in kinds]
        for i, (style, cell) in enumerate(shown):
            # what came of another cell was trained once, so it has no curve
            start = origin if cell["kind"] in ("offline", "online") else []
            known = [(p[name] * unit, p["truth"]) for p in cell.get("curve", ())]
            if name in cell:
                moved = 1 + apart * (i - len(shown) / 2)
                known.append((cell[name] * unit * moved, cell["truth"]["all"]))
            _line(axes, [*start, *known], cell["name"], style)
        _best_of_n(axes, results)
        axes.set_xlabel(label)
        percent(axes, "true to the prompt")

    return plot


def _against_reward(axes: Any, results: JsonObject) -> None:
    for style, cell in _styled(results):
        reward, truth = cell["reward_gain"], cell["gain"]["all"]
        bars = {
            f"{axis}err": [[p["value"] - p["low"]], [p["high"] - p["value"]]]
            for axis, p in (("x", reward), ("y", truth))
        }
        axes.errorbar(reward["value"], truth["value"], **bars, **style, label=cell["name"],
                      elinewidth=0.8, linestyle="none")  # fmt: skip
    axes.axhline(0, color="0.6", linewidth=0.8)
    axes.axvline(0, color="0.6", linewidth=0.8)
    axes.set_xlabel("change of the learned reward")
    percent(axes, "change of the truth")


def _styled(results: JsonObject) -> list[tuple[dict[str, Any], Mapping[str, Any]]]:
    """The trained cells, each with a colour and a marker of its own."""
    trained = [c for c in finished(results) if c["kind"] not in ("base", "best-of-n")]
    return [
        ({"color": f"C{i % 10}", "marker": MARKERS[cell["kind"]], "markersize": 5 + 2 * (i // 10)},
         cell)
        for i, cell in enumerate(trained)
    ]  # fmt: skip


def _line(axes: Any, points: Sequence[Point], name: str, style: Mapping[str, Any]) -> None:
    along, up = [x for x, _ in points], [p["value"] for _, p in points]
    axes.plot(along, up, label=name, linewidth=1.2, **style)
    _, last = points[-1]
    axes.plot([along[-1]] * 2, [last["low"], last["high"]], color=style["color"], linewidth=0.8,
              alpha=0.6)  # fmt: skip


def _best_of_n(axes: Any, results: JsonObject) -> None:
    for cell in finished(results):
        if cell.get("n") in SHOWN_N:
            axes.axhline(cell["truth"]["all"]["value"], color="0.45", linewidth=0.9, linestyle="--")
            axes.annotate(
                cell["name"], (1.0, cell["truth"]["all"]["value"]),
                xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8,
                color="0.35",
            )  # fmt: skip
