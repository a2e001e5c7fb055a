"""The result of `sayso agreement` as tables in a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from sayso.base.files import JsonObject
from sayso.base.progress import console
from sayso.votes.counted import in_words
from sayso.votes.rater_table import RULES, in_order

METHOD_NAMES = {"majority": "majority", "share": "share of good", "dawid-skene": "Dawid–Skene"}
_HEADS = {"gold": "gold", "attention": "atten-\ntion"}


def show(result: JsonObject) -> None:
    """Print a run's result: for each question the agreement and the raters, then the labels."""
    who = "simulated raters" if result["raters"] == "simulated" else "people"
    for section in result["sections"]:
        console.print(f"\n[bold]{escape(title(section))}[/bold], {who}", highlight=False)
        console.print(_agreement(section))
        console.print(_raters(section))
    left_out = in_words(result.get("left_out", {}))
    if left_out:
        console.print(f"Left out of these tables: {left_out}.", highlight=False)
    _show_careless(result)
    _show_labels(result["labels"])


def title(section: Mapping[str, Any]) -> str:
    """What was asked, such as "ratings, alignment" or "runs/align-rwr against base, fidelity"."""
    if section["task"] == "rate":
        return f"ratings, {section['question']}"
    return f"{' against '.join(section['models'])}, {section['question']}"


def _agreement(section: Mapping[str, Any]) -> Table:
    values = list(section["groups"]["all"]["rates"])
    table = _table("prompts", "alpha", "kappa", "alike", *values, "by 2+")
    for name, group in section["groups"].items():
        rates = [_percent(group["rates"][a]["value"]) for a in values]
        table.add_row(
            escape(name),
            _interval(group["alpha"]),
            _number(group["kappa"]["value"]),
            _percent(group["agreement"]["value"]),
            *rates,
            str(group["shared_items"]),
        )
    return table


def _raters(section: Mapping[str, Any]) -> Table:
    values = list(section["groups"]["all"]["rates"])
    checks = [c for c in ("gold", "attention") if any(r[c]["n"] for r in section["raters"])]
    table = _table(
        "rater",
        "votes",
        "s/vote",
        *values,
        "agrees",
        "kappa",
        "skill",
        *(_HEADS[c] for c in checks),
    )
    for row in sorted(section["raters"], key=lambda r: in_order(r["rater"])):
        style = "bold red" if row["careless"] else None
        table.add_row(
            escape(row["rater"]) + (" *" if row["careless"] else ""),
            str(row["votes"]),
            _number(row["seconds"], 1),
            *(_percent(row["shares"][a]) for a in values),
            _percent(row["agreement"]),
            _number(row["kappa"]),
            _number(row["skill"]["value"]),
            *(_check(row[c]) for c in checks),
            style=style,
        )
    return table


def _show_careless(result: JsonObject) -> None:
    broken = {name: rules_broken(result, name) for name in result["careless"]}
    if not broken:
        console.print("\nNo rater is flagged as careless.")
        return
    named = ", ".join(f"{name} ({', '.join(rules)})" for name, rules in broken.items())
    console.print(f"\n* flagged as careless: {escape(named)}", highlight=False)
    for rule in RULES:
        if any(rule in rules for rules in broken.values()):
            console.print(f"  {rule}: {RULES[rule]}", highlight=False)


def rules_broken(result: JsonObject, rater: str) -> list[str]:
    """The rules that speak against a rater in some section, in the order of `RULES`."""
    rows = (r for s in result["sections"] for r in s["raters"] if r["rater"] == rater)
    found = {rule for row in rows for rule in row["careless"]}
    return [rule for rule in RULES if rule in found]


def _show_labels(labels: Mapping[str, Any]) -> None:
    if "skipped" in labels:
        console.print(f"Labels of several raters: {labels['skipped']}")
        return
    console.print(
        f"Labels of {labels['images']} images with at least two raters: the majority is undecided "
        f"on {labels['undecided_by_majority']}, Dawid–Skene differs on {labels['changed']}",
        highlight=False,
    )
    for source, methods in labels["truth"].items():
        heads = ("right", "squared\nerror", "minus the\nmajority's", "images")
        known = labels.get("truths", {}).get(source, source)
        console.print(f"Against {known}:", highlight=False)
        table = _table("labels", *heads)
        for method, name in METHOD_NAMES.items():
            row = methods[method]
            error, gain = _number(row["squared_error"], 4), row.get("against_majority")
            table.add_row(
                name, _percent(row["accuracy"], 1), error, _interval(gain, 4) if gain else "",
                str(row["n"]),
            )  # fmt: skip
        console.print(table)


def _table(first: str, *columns: str) -> Table:
    # narrow enough for 80 columns, whatever the width of the terminal
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column(first, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _percent(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{value:.{digits}%}"


def _interval(row: Mapping[str, float | None], digits: int = 2) -> str:
    ends: Sequence[float | None] = (row["low"], row["high"])
    known = [f"{end:.{digits}f}" for end in ends if end is not None]
    return _number(row["value"], digits) + (f" ({' to '.join(known)})" if len(known) == 2 else "")


def _check(row: Mapping[str, Any]) -> str:
    return f"{row['right']}/{row['n']}" if row["n"] else "–"
