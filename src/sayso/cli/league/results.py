"""The league's numbers, computed anew from the stored scores and votes of its cells."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sayso.base import files
from sayso.base.files import JsonObject
from sayso.base.progress import console
from sayso.base.types import CATEGORIES, QUESTIONS
from sayso.cli.league import cells
from sayso.cli.league.cells import Cell
from sayso.cli.league.config import LeagueConfig
from sayso.cli.league.records import Record, Records, best_cells
from sayso.metrics.seeds import best_of_n, mean_over_seeds, win_or_lose

GROUPS = ("all", "seen", "unseen", *CATEGORIES)
SIZES_OF_N = (1, 2, 4, 8, 16, 32, 64)
Rows = Sequence[Mapping[str, Any]]


def publish(folder: Path, config: LeagueConfig) -> None:
    """Write results.json, table.md, the curves and league.html, and show the table."""
    from rich.console import Console

    from sayso.reporting import league_figures, league_page, league_tables

    results = results_of(folder, config)
    files.write_json(folder / "results.json", results)
    figures = league_figures.draw(results, folder)
    markdown = league_tables.markdown(results)
    files.write_bytes(folder / "table.md", markdown.encode())
    files.write_bytes(folder / "league.html", league_page.render(results, figures).encode())
    Console().print(league_tables.terminal(results))
    if config.write:
        league_tables.put_between_markers(Path(config.write), markdown)
    console.print(f"Page: {folder / 'league.html'}", soft_wrap=True)


def results_of(folder: Path, config: LeagueConfig) -> JsonObject:
    """All numbers of the tables, curves and page, from the line-up and the records alone."""
    records, seeds = Records(folder, config.size), range(config.n_seeds)
    base = [records.current(cells.BASE, seed, rows=True) for seed in seeds]
    there = {r.seed: r for r in base if r and r.finished}
    known = [
        (cell, own)
        for cell in records.line_up()
        if (own := [r for seed in seeds if (r := records.current(cell, seed, rows=True))])
    ]
    others = [_of_cell(cell, own, there) for cell, own in known]
    untrained = [_of_base(there, config.size.set_size), *_best_of(there)] if there else []
    return {
        "size": config.size.plain, "seeds": sorted(there), "cells": [*untrained, *others],
        "best": [cell.name for cell in best_cells(records, cells.TRAINED, seeds, cells.FOLLOWED)],
        "commits": _commits([*there.values(), *(record for _, own in known for record in own)]),
        "over": "seeds and prompts" if len(there) > 1 else "prompts (one seed)",
    }  # fmt: skip


def _commits(shown: Iterable[Record]) -> list[str]:
    """Of the versions that ran what is shown; an outcome that is left out counts for nothing."""
    ran = [record.facts for record in shown if record.state != "left out"]
    return sorted({commit for facts in ran if (commit := facts.get("commit"))})


def _of_base(there: Mapping[int, Record], set_size: int) -> JsonObject:
    """The base on the seeds that the trained cells have too: its change to them is theirs."""
    facts = [record.facts for record in there.values()]
    scores = [_first(record.scores, set_size) for record in there.values()]
    return {
        "name": "base", "kind": "base", "state": "finished", "about": "the model as it comes",
        "truth": _groups(scores, _truths), "reward": _plain([_rewards(rows) for rows in scores]),
        "evaluations": 0, "per_image": facts[0]["per_image"] if facts else None, "distance": 0.0,
        **_fidelity(facts, "base"),
    }  # fmt: skip


def _best_of(there: Mapping[int, Record]) -> list[JsonObject]:
    """The base with the best of n by the reward, for every n that its images allow."""
    most = min((_images_of(r.scores) for r in there.values()), default=0)
    return [_best_of_n(there, n) for n in SIZES_OF_N if n <= most]


def _images_of(rows: Rows) -> int:
    return min(len(own) for own in _by_prompt(rows).values())


def _best_of_n(there: Mapping[int, Record], n: int) -> JsonObject:
    def values(rows: Rows, name: str = "true") -> np.ndarray:
        return _of_prompts(
            rows, lambda own: best_of_n(_column(own, "reward"), _column(own, name), n)
        )

    def gain(rows: Rows) -> np.ndarray:
        return values(rows) - _truths(rows)

    per_image = next(iter(there.values())).facts["per_image"]
    scores = [record.scores for record in there.values()]
    return {
        "name": f"best of {n}", "kind": "best-of-n", "state": "finished", "n": n,
        "about": f"the base, the best of {n} images by the reward"
        if n > 1
        else "the base, all of its images",
        "truth": _groups(scores, values), "gain": _groups(scores, gain),
        "reward": _plain([values(rows, "reward") for rows in scores]),
        "evaluations": 0, "per_image": per_image * n,
    }  # fmt: skip


def _of_cell(cell: Cell, known: Sequence[Record], base: Mapping[int, Record]) -> JsonObject:
    finished = [record for record in known if record.finished and record.seed in base]
    row: JsonObject = {
        "cell": cell.name, "name": _named(cell, finished, base), "kind": cell.kind,
        "about": cell.about,
        "reasons": {f"seed {r.seed}": r.reason for r in known if not r.finished},
    }  # fmt: skip
    if not finished:
        return row | {"state": known[0].state}
    # a selection has images of the base itself, so it is compared with all of these
    same = cell.kind != "best-of-n"
    pairs = [(record.scores, base[record.seed].scores) for record in finished]
    gains = {
        group: _plain([_change(_in(a, group), _in(b, group), same_seeds=same) for a, b in pairs])
        for group in GROUPS
    }
    return row | {
        "state": "finished", "seeds": [r.seed for r in finished],
        "truth": _groups([r.scores for r in finished], _truths), "gain": gains,
        "reward": _plain([_rewards(r.scores) for r in finished]),
        "reward_gain": _plain([_change(a, b, "reward", same_seeds=same) for a, b in pairs]),
        "net": {q: _net(finished, q) for q in QUESTIONS},
        **_facts([record.facts for record in finished]),
    }  # fmt: skip


def _named(cell: Cell, finished: Sequence[Record], base: Mapping[int, Record]) -> str:
    """The cell's name, with its seeds if the league has more: its numbers are of these alone."""
    if len(finished) in (0, len(base)):
        return cell.name
    return f"{cell.name} (seed {', '.join(str(record.seed) for record in finished)})"


def _facts(facts: Sequence[Mapping[str, Any]]) -> JsonObject:
    """Means over seeds of what was noted of each training, and the trials."""
    names = ("evaluations", "forecast", "seconds", "steps", "distance", "ratings", "per_image")
    means = {n: float(np.mean([f[n] for f in facts])) for n in names if all(n in f for f in facts)}
    points = [point for f in facts for point in f.get("earlier", ())]
    earlier = [point for point in points if "failed" not in point]
    shares = sorted({point["share"] for point in earlier})
    return {
        **means, **_fidelity(facts, "aligned"),
        "chosen": sorted({f["trial"] for f in facts if "trial" in f}),
        "options": sorted({f["options"] for f in facts if "options" in f}),
        "trials": [t for f in facts for t in f.get("trials", ())],
        "not_on_curve": [p for p in points if "failed" in p],
        "curve": [_point([p for p in earlier if p["share"] == share]) for share in shares],
    }  # fmt: skip


def _point(points: Sequence[Mapping[str, Any]]) -> JsonObject:
    names = ("share", "evaluations", "distance")
    means = {name: float(np.mean([p[name] for p in points])) for name in names}
    return means | {"truth": _plain([_truths(p["scores"]) for p in points])}


def _fidelity(facts: Sequence[Mapping[str, Any]], role: str) -> JsonObject:
    """The ratio of Fréchet distances and of diversity to the base's, or why there is none."""
    parts = [f["fidelity"] for f in facts if "fidelity" in f]
    if skipped := [p["skipped"] for p in parts if "skipped" in p]:
        return {"ratio": None, "vendi": None, "not_measured": skipped[0]}
    if not parts:
        return {"ratio": None, "vendi": None}
    ratios = [p["ratio"] for p in parts if isinstance(p["ratio"], int | float)]
    vendi = [p[role]["vendi"] / p["base"]["vendi"] for p in parts]
    return {
        "ratio": float(np.mean(ratios)) if ratios else None, "vendi": float(np.mean(vendi)),
        "n_fidelity": parts[0].get("n"),
    }  # fmt: skip


# from rows to numbers


def _by_prompt(rows: Rows) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["prompt_id"], []).append(row)
    return found


def _first(rows: Rows, n: int) -> Rows:
    """The first n images of every prompt."""
    return [row for own in _by_prompt(rows).values() for row in own[:n]]


def _of_prompts(rows: Rows, number: Callable[[Rows], float]) -> np.ndarray:
    return np.array([number(own) for own in _by_prompt(rows).values()])


def _column(rows: Rows, name: str) -> np.ndarray:
    return np.array([float(row[name]) for row in rows])


def _truths(rows: Rows) -> np.ndarray:
    """The share of true images of every prompt."""
    return _of_prompts(rows, lambda own: float(_column(own, "true").mean()))


def _rewards(rows: Rows) -> np.ndarray:
    return _of_prompts(rows, lambda own: float(_column(own, "reward").mean()))


def _change(rows: Rows, base: Rows, name: str = "true", *, same_seeds: bool) -> np.ndarray:
    """By how much every prompt's mean differs from the base's.

    Args:
        same_seeds: whether to compare with those of the base's images that have the same seeds.
    """
    seeds = {(row["prompt_id"], row["seed"]) for row in rows}
    theirs = _by_prompt([
        row for row in base if not same_seeds or (row["prompt_id"], row["seed"]) in seeds
    ])  # fmt: skip
    return np.array([
        float(_column(own, name).mean() - _column(theirs[prompt], name).mean())
        for prompt, own in _by_prompt(rows).items()
        if prompt in theirs
    ])  # fmt: skip


def _in(rows: Rows, group: str) -> Rows:
    if group == "all":
        return rows
    return [row for row in rows if group in (row["split"], row["category"])]


def _groups(scores: Sequence[Rows], values: Callable[[Rows], np.ndarray]) -> JsonObject:
    return {group: _plain([values(_in(own, group)) for own in scores]) for group in GROUPS}


def _net(records: Sequence[Record], question: str) -> JsonObject | None:
    votes = [[v for v in r.votes if v["question"] == question] for r in records]
    if not all(votes):
        return None
    verdicts = [
        np.array([win_or_lose(v["win"], v["tie"], v["lose"]) for v in own]) for own in votes
    ]
    found = _plain(verdicts) or {}
    won, lost = (float(np.mean([(own == side).mean() for own in verdicts])) for side in (1, -1))
    return {**found, "win": won, "lose": lost}


def _plain(values: Sequence[np.ndarray]) -> JsonObject | None:
    """A mean with its interval, and how many prompts there were in all; None without any."""
    known = [own for own in values if len(own)]
    if not known:
        return None
    return {**mean_over_seeds(known).plain(), "n": sum(map(len, known))}
