"""summary.json: the study's headline numbers; null where there is none (yet)."""

from typing import Any

from sayso.base.types import CATEGORIES
from sayso.reporting.report_data import ReportData, number

ROLES = ("base", "aligned", "best_of_n")
GROUPS = (*CATEGORIES, "seen", "unseen", "all")


def summarise(data: ReportData) -> dict[str, Any]:
    """The summary of a study, with at least the fields that docs/study-folder.md lists."""
    seconds = {stage: round(value, 3) for stage, value in data.seconds.items()}
    return {
        "seconds": {"total": round(sum(seconds.values()), 3), **seconds},
        "feedback": data.feedback,
        "reward": _reward(data.result.get("reward_quality", {})),
        "alignment": _alignment(data.result),
        "comparison": _comparison(comparison(data.result, "aligned", "base", "alignment")),
        "agreement": _agreement(data.agreement),
        "bradley_terry": data.result.get("bradley_terry", []),
        "balance": data.result.get("balance", []),
        "fidelity": _fidelity(data.result.get("fidelity", {})),
        "models": dict(data.models),
        "missing": data.missing,
    }


def _reward(quality: dict[str, Any]) -> dict[str, Any]:
    return {
        field: {s: number(quality.get(s, {}).get(field)) for s in ("seen", "unseen")}
        for field in ("accuracy", "auc", "clip_auc", "n")
    }


def _alignment(result: dict[str, Any]) -> dict[str, Any]:
    shares = result.get("alignment", {})
    overall = result.get("paired", {}).get("all", {})
    found = {role: _shares(shares.get(role, {}), "value") for role in ROLES}
    counts = {role: _shares(shares.get(role, {}), "n") for role in ROLES}
    return found | {
        "n": overall.get("n"),
        "p_value": overall.get("p_value"),
        "n_by_group": counts,
        "judge": result.get("judge"),
    }


def _shares(shares: dict[str, Any], field: str) -> dict[str, Any]:
    names = [*GROUPS, *(n for n in shares if n not in GROUPS and "/" not in n and n != "skipped")]
    return {name: shares.get(name, {}).get(field) for name in names}


def comparison(
    result: dict[str, Any], first: str, second: str, question: str
) -> dict[str, Any] | None:
    """The counted votes on two roles and a question: people's if any, else simulated raters'."""
    models = result.get("models", {})
    rows = [
        row
        for row in result.get("comparisons", [])
        if (row["first"], row["second"]) == (models.get(first), models.get(second))
        and row["question"] == question
    ]
    return min(rows, key=lambda row: row["simulated"], default=None)


def _comparison(row: dict[str, Any] | None) -> dict[str, Any]:
    if row is None:
        fields = ("win", "tie", "lose", "undecided", "net", "n_prompts", "kind", "intervals")
        return dict.fromkeys(fields)
    shares = {name: row[name]["value"] for name in ("win", "tie", "lose", "undecided")}
    kind = "simulated" if row["simulated"] else "people"
    intervals = row.get("intervals")
    facts = {"net": row["net"], "n_prompts": row["n_prompts"], "kind": kind}
    return shares | facts | {"intervals": intervals}


def _agreement(result: dict[str, Any]) -> dict[str, Any]:
    """Of the ratings on alignment; who is careless in any section."""
    sections = [s for s in result.get("sections", []) if s["task"] == "rate"]
    if not sections:
        fields = ("kind", "raters", "images", "alpha", "kappa", "agreement", "labels")
        return dict.fromkeys(fields) | {"careless": result.get("careless", [])}
    every = sections[0]["groups"]["all"]
    return {
        "kind": result["raters"],
        "raters": len(sections[0]["raters"]),
        "images": every["shared_items"],
        **{name: every[name] for name in ("alpha", "kappa", "agreement")},
        "labels": result["labels"].get("truth"),
        "careless": result["careless"],
    }


def _fidelity(fidelity: dict[str, Any]) -> dict[str, Any]:
    distances = {r: number(fidelity.get(r, {}).get("frechet")) for r in ("base", "aligned")}
    return distances | {
        "ratio": number(fidelity.get("ratio")),
        "n": fidelity.get("n"),
        "features": fidelity.get("features"),
        "skipped": fidelity.get("skipped"),
    }
