"""What the plots that matplotlib draws have in common: size, style, percent."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sayso.base.files import new_file


def picture(
    title: str, path: Path, plot: Callable[..., None], *given: Any, legend_below: bool = False
) -> None:
    """Draw one plot into a PNG file, which appears whole or not at all.

    Args:
        plot: draws into the axes it is given.
        given: what else it is given.
        legend_below: whether the legend stands below the axes and not beside them.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 5.2), dpi=150, layout="constrained")
    axes: Any = figure.subplots()
    plot(axes, *given)
    axes.set_title(title, loc="left", fontsize=12)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if labels := axes.get_legend_handles_labels()[1]:
        columns = 3 if len(labels) == 3 else 2
        below = {"loc": "outside lower center", "fontsize": 10, "ncols": columns}
        beside = {"loc": "outside right upper", "fontsize": 8}
        figure.legend(frameon=False, **(below if legend_below else beside))
    with new_file(path) as whole:
        figure.savefig(whole, format="png")


def percent(axes: Any, label: str) -> None:
    """Label the vertical axis in percent."""
    from matplotlib.ticker import PercentFormatter

    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_ylabel(label)
