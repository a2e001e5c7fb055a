"""The page: numbers turned into words, bars and plots, and put into the template."""

import os
import platform
from functools import partial
from importlib import metadata
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from sayso.base.files import JsonObject
from sayso.reporting import charts, curves, gallery, words
from sayso.reporting.raters import raters_part
from sayso.reporting.report_data import ReportData
from sayso.reporting.sample_strip import sample_strip
from sayso.reporting.standings import standings_part
from sayso.reporting.summary import GROUPS, comparison
from sayso.study.run import PACKAGES
from sayso.votes.counted import in_words

IMAGE_BUDGET_BYTES = 2_400_000
"""The images shown add at most this much to the page."""
_OPEN_CARDS = 8
_PAIRS = (("aligned", "base"), ("best_of_n", "base"), ("aligned", "best_of_n"))
KINDS = {"base": "base", "aligned": "aligned", "best_of_n": "best"}
"""Role → CSS class that gives its colour."""


def render(data: ReportData, summary: dict[str, Any], prompts_shown: int) -> str:
    """The whole page as HTML."""
    page = _environment()
    template = page.from_string(gallery.template_text("page.html.j2"))
    return template.render(
        style=Markup(gallery.template_text("style.css")),
        study=data.study.info,
        m=data,
        summary=summary,
        left_out=in_words(summary["feedback"]["left_out"]),
        result=data.result,
        method=partial(words.method, data.result),
        missing=data.missing,
        headline=words.headline(data),
        lead=words.lead(data),
        judged=words.judged(data.result),
        facts=words.facts(summary),
        limits=words.limits(data),
        roles=_roles(data),
        cards=_cards(data, prompts_shown),
        open_cards=_OPEN_CARDS,
        groups=_groups(data.result),
        cells=_cells(data.result),
        flow=_flow(data.result),
        battles=_battles(data),
        spread=_spread,
        standings=standings_part(page, data),
        raters=raters_part(page, data),
        reward_plot=curves.calibration_plot(data.result.get("reward_quality", {})),
        fit_plot=curves.fit_plot(data.fit_run),
        loss_plot=curves.training_plot(data.align_run, "loss", "loss"),
        rate_plot=curves.training_plot(data.align_run, "learning_rate", "learning rate"),
        strip=sample_strip(data.align_run),
        stages=_stages(data),
        provenance=_provenance(data),
    )


def _environment() -> Environment:
    found = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    found.filters |= {
        "percent": words.percent,
        "points": words.points,
        "number": words.number,
        "fixed": words.fixed,
        "seconds": words.seconds,
        "p_value": words.p_value,
        "range": words.interval,
        "reason": words.reason,
    }
    found.globals |= {"bar": charts.bar, "stacked": charts.stacked, "dot": charts.dot}
    return found


def _roles(data: ReportData) -> list[dict[str, str]]:
    """The models in the order of the columns, with their names and colours."""
    names = {"base": "before", "aligned": "after", "best_of_n": words.best_of(data)}
    return [
        {"role": role, "name": name, "kind": KINDS[role]}
        for role, name in names.items()
        if role in data.models
    ]


def _cards(data: ReportData, most: int) -> list[gallery.Card]:
    if not data.evaluate_run or not most:
        return []
    found = gallery.cards(data.study, data.models, data.scores, most, columns=4)
    return gallery.within(found, IMAGE_BUDGET_BYTES)


def _groups(result: JsonObject) -> list[dict[str, Any]]:
    """Each group with the share of each role and the change; only groups that have images."""
    shares = {r: v for r, v in result.get("alignment", {}).items() if "skipped" not in v}
    paired = result.get("paired", {})
    names = dict.fromkeys(n for v in shares.values() for n in v if "/" not in n)
    order = [*(n for n in names if n not in GROUPS), *(n for n in GROUPS if n in names)]
    order.sort(key=lambda n: n in ("seen", "unseen", "all"))
    return [_group(name, name, shares, paired) for name in order]


def _cells(result: JsonObject) -> list[dict[str, Any]]:
    """The same for each category with seen and with unseen objects."""
    shares = {r: v for r, v in result.get("alignment", {}).items() if "skipped" not in v}
    names = dict.fromkeys(n for v in shares.values() for n in v if "/" in n)
    paired = result.get("paired", {})
    return [_group(n, n.replace("/", ", ") + " objects", shares, paired) for n in names]


def _group(name: str, label: str, shares: dict[str, Any], paired: dict[str, Any]) -> dict[str, Any]:
    split = name in ("seen", "unseen")
    return {
        "label": f"{label} objects" if split else "all test prompts" if name == "all" else label,
        "total": split or name == "all",
        "shares": {role: parts.get(name) for role, parts in shares.items()},
        "change": paired.get(name),
    }


def _flow(result: JsonObject) -> dict[str, Any] | None:
    """How many images stayed true, became true, became false, stayed false."""
    change = result.get("paired", {}).get("all")
    if not change:
        return None
    names = ("stayed_true", "fixed", "broken", "stayed_false")
    return {"parts": [(n, change[n] / change["n"]) for n in names], **change}


def _battles(data: ReportData) -> list[dict[str, Any]]:
    """The three comparisons, each with both questions."""
    names = {"base": "before", "aligned": "after", "best_of_n": words.best_of(data)}
    found = []
    for first, second in _PAIRS:
        rows = [
            row
            for question in ("alignment", "fidelity")
            if (row := comparison(data.result, first, second, question))
        ]
        if rows:
            title = f"{names[first]} against {names[second]}"
            paper = words.PAPER_COMPARISONS[first, second]
            found.append(
                {"title": title, "rows": [r | {"paper": paper[r["question"]]} for r in rows]}
            )
    return found


def _spread(row: dict[str, Any]) -> dict[str, Any]:
    """The intervals of a comparison over raters and prompts; in an older result over prompts."""
    return row.get("intervals", row)


def _stages(data: ReportData) -> list[dict[str, Any]]:
    total = sum(data.seconds.values()) or 1.0
    return [
        {"stage": stage, "seconds": seconds, "share": seconds / total}
        for stage, seconds in data.seconds.items()
    ]


def _provenance(data: ReportData) -> dict[str, Any]:
    """Commit, versions and machine, as the runs recorded them, and of the report itself."""
    records = [run.environment for run in data.runs]
    commits = sorted({str(r["commit"]) for r in records if r.get("commit")})
    packages: dict[str, set[str]] = {}
    for record in records:
        for name, version in {**record.get("packages", {}), "python": record.get("python")}.items():
            if version:
                packages.setdefault(name, set()).add(str(version))
    versions = {name: ", ".join(sorted(found)) for name, found in packages.items()}
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors"
    return {
        "commits": commits,
        "versions": versions or {"sayso": _own_version(), "python": platform.python_version()},
        "machine": machine,
        "runs": [(run.name, run.config, run.finished) for run in data.runs],
    }


def _own_version() -> str:
    try:
        return metadata.version(PACKAGES[0])
    except metadata.PackageNotFoundError:
        return "unknown"
