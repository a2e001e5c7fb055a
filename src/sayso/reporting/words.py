"""The sentences of the report, and how it writes numbers."""

import math
from typing import Any

from sayso.reporting.report_data import ReportData
from sayso.study.identity import chosen_from

PAPER_COMPARISONS: dict[tuple[str, str], dict[str, str]] = {
    ("aligned", "base"): {"alignment": "50 % – 3 %", "fidelity": "10 % – 15 %"},
    ("best_of_n", "base"): {"alignment": "46 % – ?", "fidelity": "12 % – 9 %"},
    ("aligned", "best_of_n"): {"alignment": "20 % – 10 %", "fidelity": "3 % – 20 %"},
}
"""Win and lose in Lee et al. 2023, arXiv 2302.12192: people, Stable Diffusion 1.5, 120 prompts."""

_FEW_IMAGES = 100


# numbers


def percent(share: Any, digits: int = 0) -> str:
    """0.414 → "41 %"; what is no number → "–". No-break spaces keep number and unit together."""
    return f"{100 * share:.{digits}f}\u00a0%" if _is_number(share) else "–"


def points(difference: Any) -> str:
    """0.23 → "+23", the difference of two shares in percentage points."""
    if not _is_number(difference):
        return "–"
    rounded = round(100 * difference)
    return "±0" if rounded == 0 else f"{rounded:+d}".replace("-", "−")


def number(value: Any, digits: int = 2) -> str:
    """Whole numbers with thin spaces, others with `digits` decimals, tiny ones as powers of ten."""
    if not _is_number(value):
        return "–"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u202f")
    if value and abs(value) < 10**-digits:
        return f"{value:.1e}".replace("-", "−")
    return f"{value:,.{digits}f}".replace(",", "\u202f").replace("-", "−")


def fixed(value: Any, digits: int = 2) -> str:
    """−0.0002 → "0.00": a number whose small values mean nothing, as a coefficient near 0."""
    if not _is_number(value):
        return "–"
    return f"{value:.{digits}f}".replace("-", "−") if round(value, digits) else f"{0:.{digits}f}"


def seconds(value: Any) -> str:
    """195 → "3 min 15 s"."""
    if not _is_number(value):
        return "–"
    if value < 10:
        return f"{value:.1f}\u00a0s"
    whole = round(value)
    if whole < 60:
        return f"{whole}\u00a0s"
    if whole < 3600:
        return f"{whole // 60}\u00a0min {whole % 60}\u00a0s"
    return f"{whole // 3600}\u00a0h {whole % 3600 // 60}\u00a0min"


def p_value(value: Any) -> str:
    """A p-value in words that do not boast of digits."""
    if not _is_number(value):
        return "–"
    if value >= 0.001:
        return f"{value:.3f}"
    return "<\u00a00.001" if value > 1e-6 else "<\u00a010⁻⁶"


def interval(row: Any) -> str:
    """The limits of a share in percent: "36–47"."""
    if not row or not (_is_number(row.get("low")) and _is_number(row.get("high"))):
        return "–"
    between = " to " if row["low"] < 0 else "–"
    return f"{100 * row['low']:.0f}{between}{100 * row['high']:.0f}".replace("-", "−")


def reason(value: Any) -> str:
    """Why a number is not there; "" if it is."""
    return str(value["skipped"]) if isinstance(value, dict) and "skipped" in value else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# sentences

_FORMER_METHODS = {
    "share": "Wilson's interval, images taken as independent",
    "difference": "BCa bootstrap over prompts",
    "p_value": "McNemar's test, images taken as independent",
}


def method(result: dict[str, Any], number: str) -> str:
    """How an evaluation computed its "share", "difference" or "p_value"."""
    return result.get("methods", _FORMER_METHODS)[number]


def best_of(data: ReportData) -> str:
    """How the selection is called on the page: "best of 16"."""
    model = data.models.get("best_of_n", "")
    made = chosen_from(model)
    return f"best of {made[1]}" if made else "best of n"


def model_names(data: ReportData) -> dict[str, str]:
    """How the models of the evaluation are called on the page; others keep their names."""
    names = {"base": "before", "aligned": "after", "best_of_n": best_of(data)}
    return {model: names[role] for role, model in data.models.items()}


def headline(data: ReportData) -> dict[str, str]:
    """The one result: what was drawn right before and after."""
    shares = data.result.get("alignment", {})
    for group, what in (("combination", "Combination prompts"), ("all", "Test prompts")):
        before, after = (shares.get(r, {}).get(group, {}).get("value") for r in ("base", "aligned"))
        if before is not None and after is not None:
            return {
                "text": f"{what} drawn right:",
                "before": percent(before),
                "after": percent(after),
            }
    if data.evaluate_run:
        return {"text": "Evaluated, but without a verdict on the images", "before": "", "after": ""}
    return {"text": "Not evaluated yet", "before": "", "after": ""}


def judged(result: dict[str, Any]) -> str:
    """Who said whether the images are true to their prompts: "rated by people"."""
    if "judged" in result:
        return str(result["judged"])
    name = result.get("judge", "")
    return "rated by people" if name == "ratings of people" else f"read by the judge {name}"


def lead(data: ReportData) -> str:
    """One or two sentences under the headline: on what, how sure, and who judged."""
    change, result = data.result.get("paired", {}).get("all"), data.result
    if not change:
        return "What the study has so far, and the commands that come next."
    spread = change["difference"]
    across = f"{points(spread.get('value'))} percentage points (95 % interval {interval(spread)})"
    return (
        f"Over all {change['n']} test images from {change['n_prompts']} prompts never used in "
        f"training – same prompts, same seeds, {judged(result)} – the share drawn right "
        f"changed by {across}; p {p_value(change['p_value'])} ({method(result, 'p_value')})."
        + (" That is too few images to show an effect." if change["n"] < _FEW_IMAGES else "")
    )


def facts(summary: dict[str, Any]) -> list[dict[str, str]]:
    """The key figures beside the headline: each a value, its name, and what it rests on."""
    found = []
    shares, fight, near = summary["alignment"], summary["comparison"], summary["fidelity"]
    for split in ("seen", "unseen"):
        pair = [shares[role][split] for role in ("base", "aligned")]
        if None not in pair:
            n = shares["n_by_group"]["aligned"][split]
            value = f"{percent(pair[0])} → {percent(pair[1])}"
            found.append(_fact(value, f"right on {split} objects", f"{n} images per model"))
    if fight["net"] is not None:
        who = "simulated raters" if fight["kind"] == "simulated" else "people"
        value = f"{percent(fight['win'])} – {percent(fight['lose'])}"
        found.append(
            _fact(value, "prompts won – lost side by side", f"{fight['n_prompts']} prompts, {who}")
        )
    if near["ratio"] is not None:
        basis = f"after over before, {near['n']} images; 1 is unchanged"
        found.append(_fact(f"{near['ratio']:.2f}", "distance to pre-training images", basis))
    if summary["seconds"]["total"]:
        found.append(_fact(seconds(summary["seconds"]["total"]), "the whole loop", "all stages"))
    return found


def _fact(value: str, name: str, basis: str) -> dict[str, str]:
    return {"value": value, "name": name, "basis": basis}


def limits(data: ReportData) -> list[str]:
    """What these numbers do not show."""
    result, found = data.result, []
    if data.simulated:
        found.append(
            "Simulated raters are programs, not people: they read the images and make mistakes on "
            "purpose, each at its own rate."
        )
    change = result.get("paired", {}).get("all", {})
    if change and change["n"] < _FEW_IMAGES:
        found.append(
            f"{change['n']} test images show that the whole path works, but are too few to show "
            "an effect."
        )
    if result.get("caveat"):
        found.append(result["caveat"])
    fidelity = result.get("fidelity", {})
    if fidelity.get("features", "").startswith("CLIP"):
        found.append("Fidelity is measured on CLIP features, which the reward uses too.")
    found += [
        "Intervals are 95 % and cover the choice of test images or prompts, but not another "
        "training run: only one seed was trained.",
        "The prompts ask for counts, colours, backgrounds and objects from short lists; they "
        "say nothing about free text.",
    ]
    if result.get("optimisation", {}).get("suspect"):
        found.insert(
            0, "The reward rose while the truth fell: training exploits the reward's errors."
        )
    return found
