"""The curve of benchmarks/ratings.py as JSON, as a table in Markdown and as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sayso.base import files
from sayso.base.files import JsonObject
from sayso.reporting.figures import percent as in_percent
from sayso.reporting.figures import picture
from sayso.reporting.league_tables import NOTHING, number, percent, points

THE_PAPERS = 0.47
"""Net alignment in the paper, 50 % won less 3 % lost: Lee et al. 2023, arXiv 2302.12192."""
APART = 0.012
"""By what share of a number of ratings the methods' points are moved from each other."""
MARKERS = "osD"
COLUMNS = ("ratings", "method", "net alignment", "net fidelity", "true to the prompt",
           "combination", "distance ratio")  # fmt: skip


def publish(results: JsonObject, folder: Path) -> None:
    """Write ratings.json, ratings.md and ratings.png; nothing if no point is there."""
    if results["rows"]:
        files.write_json(folder / "ratings.json", results)
        files.write_bytes(folder / "ratings.md", table(results).encode())
        picture("Alignment by number of ratings", folder / "ratings.png", _curves, results,
                legend_below=True)  # fmt: skip


def table(results: JsonObject) -> str:
    """A Markdown table, the base first, then by number of ratings."""
    base, labels = results["base"], {m["name"]: m["label"] for m in results["methods"].values()}
    lines = [COLUMNS, ["---"] * len(COLUMNS)]
    lines.append(["0", "base", NOTHING, NOTHING, *_shares(base), NOTHING])
    for row in sorted(results["rows"], key=lambda row: row["ratings"]):
        net, ratio = row["net"], number(row["distance"]["ratio"])
        nets = points(net["alignment"]), points(net["fidelity"])
        label = labels[row["method"]]
        lines.append([f"{row['ratings']:,}", label, *nets, *_shares(row["truth"]), ratio])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _shares(truth: Mapping[str, Any]) -> tuple[str, str]:
    return percent(truth["all"]), percent(truth.get("combination"))


def _curves(axes: Any, results: JsonObject) -> None:
    numbers = sorted({row["ratings"] for row in results["rows"]})
    axes.set_xscale("log")
    axes.axhline(0, color="0.6", linewidth=0.8)
    for i, (name, method) in enumerate(results["methods"].items()):
        if rows := [row for row in results["rows"] if row["method"] == name]:
            _line(axes, rows, method["label"], i)
    axes.axhline(THE_PAPERS, color="0.35", linewidth=1.2, linestyle="--",
                 label="the paper: 47 % from 27,528 images, rated by people")  # fmt: skip
    axes.set_xticks(numbers, [f"{n:,}" for n in numbers])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("ratings")
    in_percent(axes, "net alignment: prompts won less prompts lost")


def _line(axes: Any, rows: Sequence[Mapping[str, Any]], label: str, i: int) -> None:
    """One method, whose intervals stand beside those of the others."""
    along = [row["ratings"] * (1 + APART * (2 * i - 1)) for row in rows]
    nets = [row["net"]["alignment"] for row in rows]
    up = [net["value"] for net in nets]
    reach = [
        [net["value"] - net["low"] for net in nets], [net["high"] - net["value"] for net in nets],
    ]  # fmt: skip
    axes.errorbar(along, up, yerr=reach, label=label, color=f"C{i}", marker=MARKERS[i],
                  markersize=7, linewidth=2, elinewidth=1.2, capsize=3)  # fmt: skip
