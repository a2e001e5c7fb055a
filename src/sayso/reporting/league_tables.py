"""The league's tables: in a terminal, in Markdown, and in words."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from sayso.base import files
from sayso.base.errors import UserError
from sayso.base.files import JsonObject

START, END = "<!-- league -->", "<!-- /league -->"
GROUPS = ("seen", "unseen", "count", "colour", "background", "combination")
NOTHING = "–"
NAMED = 5
"""So many cells are named in a sentence; of more their number is told."""
Row = Mapping[str, Any]


def percent(part: Row | None) -> str:
    """A share with its interval: "47 % (41–53)"."""
    if part is None:
        return NOTHING
    value, low, high = (100 * part[name] for name in ("value", "low", "high"))
    return f"{value:.0f} % ({low:.0f}–{high:.0f})"


def points(part: Row | None) -> str:
    """A difference of shares with its interval, in points: "+6 (+1 to +11)"."""
    if part is None:
        return NOTHING
    value, low, high = (_signed(100 * part[name]) for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def _signed(value: int | float) -> str:
    whole = round(value)
    return f"+{whole}" if whole > 0 else f"−{-whole}" if whole < 0 else "0"


def number(value: int | float | None, digits: int = 2) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}"


def thousands(value: int | float | None) -> str:
    return NOTHING if value is None else f"{value / 1000:.1f}k"


def small(value: int | float | None) -> str:
    return NOTHING if value is None else f"{value:.1e}" if 0 < value < 1e-3 else f"{value:.4f}"


COLUMNS = (
    "cell", "true to the prompt", "change", "net alignment", "net fidelity", "distance ratio",
    "diversity", "reward", "moved", "evaluations", "time",
)  # fmt: skip


def main_row(cell: Row) -> list[str]:
    """One cell in the columns of the main table."""
    net = cell.get("net") or {}
    reward = cell.get("reward")
    spent = cell.get("evaluations")
    return [
        cell["name"],
        percent(cell["truth"]["all"]),
        points(cell.get("gain", {}).get("all")),
        points(net.get("alignment")),
        points(net.get("fidelity")),
        number(cell.get("ratio")),
        number(cell.get("vendi")),
        number(reward and reward["value"]),
        small(cell.get("distance")),
        thousands(spent) if spent else "0" if spent == 0 else NOTHING,
        f"{cell['seconds']:.0f} s" if "seconds" in cell else NOTHING,
    ]


def group_row(cell: Row) -> list[str]:
    """The change of every group of prompts; of the base, its shares."""
    gain = cell.get("gain")
    shown = (
        [points(gain[g]) for g in GROUPS] if gain else [percent(cell["truth"][g]) for g in GROUPS]
    )
    return [cell["name"], *shown]


def finished(results: JsonObject) -> list[Row]:
    return [cell for cell in results["cells"] if cell["state"] == "finished"]


def unfinished(results: JsonObject) -> list[tuple[str, str]]:
    """Cells, seeds and trials that failed or were left out, each with the reason, said once."""
    found = list[tuple[str, str]]()
    for cell in results["cells"]:
        seeds: dict[str, list[str]] = {}
        for seed, reason in cell.get("reasons", {}).items():
            seeds.setdefault(reason, []).append(seed)
        for reason, failed in seeds.items():
            whole = cell["state"] != "finished" and len(seeds) == 1
            found.append((", ".join([cell["cell"], *([] if whole else failed)]), reason))
        found += [
            (f"{cell['cell']}, {trial['trial']}", trial["failed"])
            for trial in cell.get("trials", ())
            if "failed" in trial
        ]
        found += [
            (f"{cell['cell']}, with {point['share']:.0%} of the budget", point["failed"])
            for point in cell.get("not_on_curve", ())
        ]
    return list(dict.fromkeys(found))


def ranked(results: JsonObject, group: str = "all") -> list[Row]:
    """The trained cells, the one that is most often true on a group of prompts first.

    Those that lack a seed are left out: a seed can be easier than another.
    """
    trained = [c for c in finished(results) if c["kind"] not in ("base", "best-of-n")]
    known = [c for c in trained if c["gain"][group] and c["seeds"] == results["seeds"]]
    return sorted(known, key=lambda c: -c["gain"][group]["value"])


def conclusions(results: JsonObject) -> list[str]:
    """Who wins, where, and against what, in sentences."""
    best = ranked(results)
    if not best:
        return ["No trained cell has finished for every seed yet."]
    first = best[0]
    truth, gain = percent(first["truth"]["all"]), points(first["gain"]["all"])
    found = [
        f"{first['name']} is most often true to its prompts: {truth}, {gain} points against the "
        "base."
    ]
    if ties := _tied(best):
        found.append(f"The data does not tell it apart from {_listed(ties)}.")
    by_group = [
        f"{group}: {own[0]['name']} ({points(own[0]['gain'][group])})"
        for group in GROUPS
        if (own := ranked(results, group))
    ]
    found.append(f"The most by group, in points: {'; '.join(by_group)}.")
    found += _beside_best_of_n(results, first)
    found += _fidelity(best)
    exploited = [c["name"] for c in best if _exploits(c)]
    if exploited:
        found.append(
            f"The reward rose and the truth fell, which says that training exploited the reward's "
            f"errors: {_listed(exploited)}."
        )
    return found


def headline(results: JsonObject) -> str:
    """Who wins, in a few words."""
    best = ranked(results)
    if not best:
        return "Not finished yet"
    first = best[0]
    if first["gain"]["all"]["low"] <= 0:
        return "No cell is better than the base beyond chance"
    return f"{first['name']} leads" + (", but not alone" if _tied(best) else "")


def _tied(best: Sequence[Row]) -> list[str]:
    """The cells whose interval reaches as high as the first."""
    first = best[0]["gain"]["all"]["value"]
    return [c["name"] for c in best[1:] if c["gain"]["all"]["high"] >= first]


def _beside_best_of_n(results: JsonObject, first: Row) -> list[str]:
    rows = [c for c in finished(results) if "n" in c]
    # against the base's images with the same seeds each, so that luck with seeds does not count
    beaten = [c["n"] for c in rows if c["gain"]["all"]["value"] < first["gain"]["all"]["value"]]
    if not rows:
        return []
    if not beaten:
        return [f"Best of {rows[0]['n']} by the same reward, which trains nothing, is better."]
    more = [c["n"] for c in rows if c["n"] not in beaten]
    above = f", but not than best of {more[0]}" if more else ""
    return [f"It is better than best of {max(beaten)} by the same reward{above}."]


def _fidelity(best: Sequence[Row]) -> list[str]:
    """Which of the trained cells raters find as natural as the base."""
    known = [c for c in best if c["net"]["fidelity"]]
    worse = [c["name"] for c in known if c["net"]["fidelity"]["high"] < 0]
    if not known:
        return []
    if not worse:
        return ["Raters found none less natural than the base beyond chance."]
    if len(worse) <= NAMED:
        return [f"Raters found less natural than the base: {_listed(worse)}."]
    others = [c["name"] for c in known if c["name"] not in worse]
    told = f"Raters found {len(worse)} of {len(known)} cells less natural than the base"
    return [f"{told}; not {_listed(others)}." if others else f"{told}."]


def _exploits(cell: Row) -> bool:
    reward, truth = cell.get("reward_gain"), cell["gain"]["all"]
    return bool(reward and reward["low"] > 0 and truth["high"] < 0)


def _listed(names: Sequence[str]) -> str:
    return "; ".join(names)


def spending(results: JsonObject) -> str:
    """How far what trainings asked of the network is from what was forecast; "" without any."""
    known = [c for c in finished(results) if c.get("forecast")]
    if not known:
        return ""
    off = max(abs(c["evaluations"] / c["forecast"] - 1) for c in known)
    least = min(c["evaluations"] for c in known) / results["size"]["budget"]
    return (
        f"Every training spent at least {100 * least:.1f} % of the budget, and what was forecast "
        f"to within {100 * off:.1f} %."
    )


# in a terminal, and in Markdown


def terminal(results: JsonObject) -> Table:
    """What a terminal has room for, and below it what failed."""
    caption = "\n".join(f"{name}: {reason}" for name, reason in unfinished(results))
    table = Table(caption=caption or None, caption_justify="left")
    table.add_column("cell", overflow="fold")
    for name in ("true to the prompt", "change", "align", "fidel", "ratio"):
        table.add_column(name, justify="right", no_wrap=name != "true to the prompt")
    for cell in finished(results):
        net = cell.get("net") or {}
        sides = [NOTHING if not n else _signed(100 * n["value"]) for n in
                 (net.get("alignment"), net.get("fidelity"))]  # fmt: skip
        name, truth, gain, *_ = main_row(cell)
        table.add_row(name, truth, gain, *sides, number(cell.get("ratio")))
    return table


def markdown(results: JsonObject) -> str:
    """Both tables, what follows from them, and what failed."""
    size, prompts = results["size"], _prompts(results)
    lines = [
        f"Size {size['name']}, seeds {', '.join(map(str, results['seeds'])) or 'none'}, {prompts} "
        f"test prompts in all, budget {size['budget']:,} network evaluations, "
        f"{size['trials']} option sets for each aligner. Intervals are 95 %, over "
        f"{results['over']}. Commit {', '.join(c[:8] for c in results['commits']) or 'unknown'}.",
        "", *(f"- {said}" for said in [*conclusions(results), spending(results)] if said), "",
        *_table(COLUMNS, [main_row(cell) for cell in finished(results)]), "",
        "Change in points against the base, by group of prompts:", "",
        *_table(("cell", *GROUPS), [group_row(cell) for cell in finished(results)]),
    ]  # fmt: skip
    chosen = [(c["name"], "; ".join(c["options"])) for c in finished(results) if c.get("options")]
    if chosen:
        lines += ["", "Options chosen on validation prompts:", "",
                  *_table(("cell", "options"), [[n, f"`{o}`"] for n, o in chosen])]  # fmt: skip
    if failed := unfinished(results):
        lines += ["", "Failed or left out:", "", *(f"- {name}: {why}" for name, why in failed)]
    return "\n".join(lines) + "\n"


def _prompts(results: JsonObject) -> int:
    base = next((c for c in finished(results) if c["kind"] == "base"), None)
    return base["truth"]["all"]["n"] if base else 0


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def put_between_markers(path: Path, text: str) -> None:
    """Replace what stands between the two markers in a file.

    Raises: UserError: if the file is missing, or lacks the markers.
    """
    try:
        before, _, rest = path.read_text(encoding="utf-8").partition(START)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    _, end, after = rest.partition(END)
    if not end:
        raise UserError(f"{path} has no lines {START} and {END}; add them where the tables belong")
    files.write_bytes(path, f"{before}{START}\n\n{text}\n{END}{after}".encode())
