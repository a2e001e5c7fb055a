"""The report's part on raters: agreement by group, a row a rater, labels against the truth."""

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from sayso.base.files import JsonObject
from sayso.reporting import gallery, words
from sayso.reporting.report_data import ReportData
from sayso.votes.rater_table import RULES, in_order

KINDS = {"good": "win", "bad": "lose", "skip": "undecided", "first": "win", "second": "lose"}
"""Value → CSS class that gives its colour; a tie has its own."""
SHOWN = 15
"""Raters shown at once; the rest is folded."""
METHODS = {"majority": "majority", "share": "share of good", "dawid-skene": "Dawid–Skene"}


def raters_part(page: Environment, data: ReportData) -> Markup:
    """The section as HTML; empty if nobody has voted on what another voted on."""
    result = data.agreement
    template = page.from_string(gallery.template_text("raters.html.j2"))
    sections = [_section(section, data) for section in result.get("sections", [])]
    return Markup(
        template.render(
            absent=data.missing.get("agreement", ""),
            ratings=[s for s in sections if s["task"] == "rate"],
            battles=[s for s in sections if s["task"] == "compare"],
            lead=_lead(result),
            stale=data.agreement_is_stale,
            spoken=_spoken(result),
            careless=result.get("careless", []),
            labels=_labels(result.get("labels", {})),
            start=_start(result),
            shown=SHOWN,
            timed=_is_timed(result),
            study=data.study.path,
        )
    )


def _section(section: Mapping[str, Any], data: ReportData) -> dict[str, Any]:
    raters = sorted(section["raters"], key=lambda r: (not r["careless"], in_order(r["rater"])))
    return {
        **section,
        "title": _title(section, data),
        "kinds": [(a, KINDS.get(a, a)) for a in section["groups"]["all"]["rates"]],
        "groups": [_group(name, group) for name, group in section["groups"].items()],
        "raters": [{**row, "parts": _parts(row["shares"])} for row in raters],
        "checks": [c for c in ("gold", "attention") if any(r[c]["n"] for r in raters)],
    }


def _title(section: Mapping[str, Any], data: ReportData) -> str:
    if section["task"] == "rate":
        return f"ratings, {section['question']}"
    names = words.model_names(data)
    first, second = (names.get(model, model) for model in section["models"])
    return f"{first} against {second}, {section['question']}"


def _group(name: str, group: Mapping[str, Any]) -> dict[str, Any]:
    rates = {value: rate["value"] for value, rate in group["rates"].items()}
    label = "all prompts" if name == "all" else name
    return {**group, "label": label, "total": name == "all", "parts": _parts(rates)}


def _parts(shares: Mapping[str, float | None]) -> list[tuple[str, float]]:
    """Shares of the values as parts of a stacked bar."""
    return [(KINDS.get(value, value), share or 0.0) for value, share in shares.items()]


def _is_timed(result: JsonObject) -> bool:
    """Whether times of simulated raters are shown."""
    rows = (row for section in result.get("sections", []) for row in section["raters"])
    return result.get("raters") == "simulated" and any(row["seconds"] for row in rows)


def _start(result: JsonObject) -> float:
    """Left end of the axis of alpha and skill: 0, or lower if something is."""
    rows = [
        row
        for section in result.get("sections", [])
        for row in (
            *(group["alpha"] for group in section["groups"].values()),
            *(rater["skill"] for rater in section["raters"]),
        )
    ]
    return max(-1.0, min([0.0, *(row["low"] for row in rows if row["low"] is not None)]))


def _spoken(result: JsonObject) -> list[tuple[str, str]]:
    """The rules that speak against some rater, with what they say."""
    found = {r for s in result.get("sections", []) for row in s["raters"] for r in row["careless"]}
    return [(rule, text) for rule, text in RULES.items() if rule in found]


def _lead(result: JsonObject) -> str:
    """One or two sentences on how many judged what, and how much alike."""
    ratings = [s for s in result.get("sections", []) if s["task"] == "rate"]
    if not ratings:
        return ""
    section, every = ratings[0], ratings[0]["groups"]["all"]
    one = len(section["raters"]) == 1
    people, simulated = ("person", "simulated rater") if one else ("people", "simulated raters")
    who = simulated if result["raters"] == "simulated" else people
    text = (
        f"{words.number(len(section['raters']))} {who} rated {words.number(section['items'])} "
        f"images, {words.number(every['shared_items'])} of them by at least two."
    )
    alpha = every["alpha"]
    if alpha["value"] is None:
        return text
    between = ""
    if alpha["low"] is not None:
        between = (
            f" (95\u00a0% interval {words.fixed(alpha['low'])} to {words.fixed(alpha['high'])})"
        )
    alike = words.percent(every["agreement"]["value"])
    return (
        f"{text} Two of them agree on an image {alike} of the time; beyond chance, this is a "
        f"Krippendorff alpha of {words.fixed(alpha['value'])}{between}."
    )


def _labels(labels: Mapping[str, Any]) -> dict[str, Any] | None:
    """The labels of several raters against each truth that is known."""
    if not labels or "skipped" in labels:
        return None
    truths = labels.get("truths", {})
    tables: Sequence[dict[str, Any]] = [
        {
            "source": truths.get(source, source),
            "verdict": _verdict(
                truths.get(source, source), methods["dawid-skene"], methods["majority"]
            ),
            "rows": [(name, methods[method]) for method, name in METHODS.items()],
        }
        for source, methods in labels["truth"].items()
    ]
    return {**labels, "tables": tables}


def _verdict(truth: str, estimate: Mapping[str, Any], majority: Mapping[str, Any]) -> str:
    """Whether Dawid–Skene labels come nearer to a truth than the majority's; "" if not measured."""
    gain = estimate.get("against_majority")
    if not gain or gain["low"] is None:
        return ""
    low, high = (words.fixed(gain[end], 4) for end in ("low", "high"))
    errors = " against ".join(words.fixed(m["squared_error"], 4) for m in (estimate, majority))
    sure = not gain["low"] <= 0 <= gain["high"]
    how = "farther from" if gain["value"] > 0 else "closer to"
    said = f"are {how} {truth} than" if sure else f"are not clearly closer to {truth} than"
    return (
        f"Dawid–Skene labels {said} the majority's: squared error {errors}, a difference of "
        f"{words.fixed(gain['value'], 4)} (95\u00a0% interval {low} to {high}, resampling prompts)."
    )
