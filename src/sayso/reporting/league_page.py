"""The league's page: who wins, where, and what failed; one file without outside requests."""

import base64
from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from sayso.base.files import JsonObject
from sayso.reporting import gallery
from sayso.reporting import league_tables as tables


def render(results: JsonObject, figures: Mapping[str, Path]) -> str:
    """The page as HTML.

    Args:
        figures: title → picture, put into the page.
    """
    page = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return page.from_string(gallery.template_text("league.html.j2")).render(
        style=Markup(gallery.template_text("style.css")),
        size=results["size"],
        seeds=results["seeds"],
        over=results["over"],
        commits=results["commits"],
        headline=tables.headline(results),
        conclusions=tables.conclusions(results),
        spending=tables.spending(results),
        columns=tables.COLUMNS,
        cells=[(cell, tables.main_row(cell)) for cell in tables.finished(results)],
        best=results["best"],
        groups=tables.GROUPS,
        group_rows=[tables.group_row(cell) for cell in tables.finished(results)],
        trials=[(c["name"], c["trials"]) for c in tables.finished(results) if c.get("trials")],
        unfinished=tables.unfinished(results),
        figures={title: _url(path) for title, path in figures.items()},
    )


def _url(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
