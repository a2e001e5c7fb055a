"""The report's part on all compared models in one order, and on left against right."""

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from sayso.reporting import gallery, words
from sayso.reporting.report_data import ReportData

_LEAST_MODELS = 3
"""With two models the win and lose shares say it all."""


def standings_part(page: Environment, data: ReportData) -> Markup:
    """Strengths and balance as HTML, of people's votes if there are any, else of programs'."""
    strengths = [t for t in _of_one_kind(data.result.get("bradley_terry", []))
                 if len(t["models"]) >= _LEAST_MODELS]  # fmt: skip
    template = page.from_string(gallery.template_text("standings.html.j2"))
    names = words.model_names(data)
    return Markup(
        template.render(
            tables=[_table(table, names) for table in strengths],
            balance=_of_one_kind(data.result.get("balance", [])),
        )
    )


def _of_one_kind(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """People's rows if there are any, else those of simulated raters; never both."""
    simulated = all(row["simulated"] for row in rows)
    return [row for row in rows if row["simulated"] == simulated]


def _table(table: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    ends = [m["strength"][end] for m in table["models"] for end in ("value", "low", "high")]
    known = [end for end in ends if end is not None]
    return {
        **table,
        "models": [{**m, "name": names.get(m["model"], m["model"])} for m in table["models"]],
        "reference": names.get(table["reference"], table["reference"]),
        "start": min(known),
        "end": max(known),
    }
