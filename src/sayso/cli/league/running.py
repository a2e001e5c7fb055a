"""The league from first to last: prepare a seed, run its cells, find the best two, run the rest."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sayso.base import files
from sayso.base.errors import UserError, unknown_name
from sayso.base.extras import need
from sayso.base.progress import console
from sayso.base.types import digest
from sayso.cli.league import judging
from sayso.cli.league.cells import (
    BASE,
    BEST,
    FOLLOWED,
    ROUNDS,
    SWITCHES,
    TRAINED,
    Cell,
    rounds_of,
    switched,
)
from sayso.cli.league.config import LeagueConfig
from sayso.cli.league.ground import REWARD, Ground, prepare
from sayso.cli.league.records import OUTDATED, Record, Records, best_cells, why_failed
from sayso.cli.league.rounds import train_in_rounds
from sayso.cli.league.training import Trained, plan_of, train

FOLLOWING = {"rounds", "switches"}
"""What the cells that follow from the best are called together."""


def league(folder: Path, config: LeagueConfig) -> None:
    """Run the cells that are missing, and write the tables, the curves and the page.

    Run again, it goes on where it stopped. A cell that fails is recorded with its reason, and the
    others are run.

    Raises: UserError: if the folder holds another league, a cell is unknown, or the common study
        cannot be made.
    """
    from sayso.cli.league.results import publish

    config.check()
    # for the curves, which come last
    need("league", "league")
    _refuse_unknown(config)
    with _claimed(folder, config):
        _League(folder, config).run()
        publish(folder, config)


def plan(_folder: Path, config: LeagueConfig) -> dict[str, object]:
    """What a whole league of this size would do: trainings, images, network evaluations."""
    config.check()
    size, seeds, first = config.size, config.n_seeds, len(TRAINED)
    followers = FOLLOWED * (len(ROUNDS) + len(SWITCHES))
    trained = first * (size.trials + sum(size.earlier)) + followers
    images = {
        "base": size.train * size.train_images + size.test * size.pool,
        "validation": size.validation * size.validation_images * (first * size.trials + followers),
        "test": size.test * size.set_size * (first * (1 + len(size.earlier)) + followers),
        "fidelity": size.fidelity * (1 + first + followers),
    }
    return {
        "cells per seed": 2 + first + followers,
        "trainings with the whole budget": seeds * (first * size.trials + followers),
        "network evaluations of trainings, at most": int(seeds * size.budget * trained),
        **{f"images, {name}": seeds * n for name, n in images.items()},
    }


def _refuse_unknown(config: LeagueConfig) -> None:
    known = [*(cell.slug for cell in (BASE, BEST, *TRAINED)), *sorted(FOLLOWING)]
    for name in config.wanted:
        if name not in known:
            raise unknown_name("cell", name, known)


@contextmanager
def _claimed(folder: Path, config: LeagueConfig) -> Iterator[None]:
    """A block in which the folder is this league's, and no other process runs the same seeds.

    Raises: UserError: if it holds something else, or a league of another size.
    """
    from sayso.study.run_lock import lock

    path = folder / "league.json"
    locks = folder / "locks"
    if folder.exists() and not path.exists() and set(folder.iterdir()) - {locks}:
        raise UserError(f"{folder} is not a league and not empty; choose another path")
    with ExitStack() as held:
        for seed in config.run_now:
            own = locks / f"seed-{seed}"
            own.mkdir(parents=True, exist_ok=True)
            held.callback(lock(own, is_run=False).release, force=True)
        about = {"format": 1, "size": config.size.plain}
        if not path.exists():
            files.write_json(path, about)
        elif (known := files.read_json(path)) != about:
            raise UserError(
                f"{folder} holds a league of size {known['size']['name']}, made with other numbers "
                f"than {config.size.name} has now; use its size, or choose another path"
            )
        yield


class _League:
    """The cells of the seeds that this process runs, one after the other."""

    def __init__(self, folder: Path, config: LeagueConfig) -> None:
        self.folder, self.config, self.size = folder, config, config.size
        self.records = Records(folder, config.size)
        self.grounds: dict[int, Ground] = {}

    def run(self) -> None:
        common, mine = (BEST, *TRAINED), self.config.run_now
        # those that follow from the best stay, until it is known anew which these are; but not
        # those of a cell that has other options by now
        there = {cell.settings(self.size) for cell in TRAINED}
        later = [cell for cell in self.records.line_up() if cell.follows in there]
        self.records.announce([*common, *later])
        for seed in mine:
            ground = self.grounds[seed] = prepare(self.folder / f"seed-{seed}", self.size, seed)
            self._once(BASE, ground, partial(_base, ground))
            self._once(BEST, ground, partial(_best, ground))
            for cell in TRAINED:
                self._once(cell, ground, partial(_trained, ground, cell))
        seeds = range(self.config.n_seeds)
        if self.config.only_seed is not None and (waiting := self._waiting(seeds)):
            console.print(
                f"rounds and switches wait for the other cells of seed "
                f"{', '.join(map(str, waiting))}; run this again when they are there",
                soft_wrap=True,
            )
            return
        best = best_cells(self.records, TRAINED, seeds, FOLLOWED)
        if not best and (not self.config.wanted or self.config.wanted & FOLLOWING):
            console.print(
                "rounds and switches are of the best cells, and none is finished for every seed; "
                "run these first",
                soft_wrap=True,
            )
        followers = [c for cell in best for c in self._followers(self.grounds[mine[0]], cell)]
        self.records.announce([*common, *followers])
        for seed in mine:
            for cell in best:
                for follower in self._followers(self.grounds[seed], cell):
                    many = follower.rounds > 1
                    run = partial(_in_rounds if many else _trained, self.grounds[seed], follower)
                    self._once(follower, self.grounds[seed], run, "rounds" if many else "switches")

    def _waiting(self, seeds: Sequence[int]) -> list[int]:
        """The seeds that lack the outcome of a trained cell with the options it has now."""

        def lacks(cell: Cell, seed: int) -> bool:
            known = self.records.current(cell, seed)
            return known is None or known.reason == OUTDATED

        return [n for n in seeds if any(lacks(cell, n) for cell in TRAINED)]

    def _followers(self, ground: Ground, cell: Cell) -> list[Cell]:
        """The cells that come from one of the best, with the options chosen for it."""
        record = self.records.current(cell, ground.seed)
        assert record is not None
        chosen = replace(cell, trials=(record.facts["trial"],))
        plan = plan_of(ground, chosen, record.facts["trial"])
        terms = [switched(chosen, term, plan.terms[term], plan.own) for term in SWITCHES]
        # which option set was chosen may differ from seed to seed, and from which it was does not
        return [
            replace(
                found,
                known_settings=replace(found, trials=cell.trials).settings(self.size),
                follows=cell.settings(self.size),
            )
            for found in (*(rounds_of(chosen, n) for n in ROUNDS), *terms)
        ]

    def _once(
        self, cell: Cell, ground: Ground, run: Callable[[], dict[str, Any]],
        called: str = "",
    ) -> None:  # fmt: skip
        """Run a cell unless its outcome is there, and write that down whatever it is."""
        identity = digest([cell.identity(self.size), self.size.plain, ground.identity])
        settings = cell.settings(self.size)
        known = self.records.read(cell.slug, ground.seed)
        old = known is not None and known.identity != identity
        if known and not old and known.settings != settings:
            known = self.records.write(cell.slug, replace(known, settings=settings))
        # without the base there is nothing to compare with
        wanted = self.config.wanted and {*self.config.wanted, BASE.slug}
        if wanted and not {called, cell.slug} & wanted:
            if known and old:
                self.records.write(cell.slug, replace(known, state="left out", reason=OUTDATED))
            return
        again = known and known.state == "failed" and self.config.retry_failed
        if known and not old and known.state != "left out" and not again:
            told = "finished" if known.finished else f"failed before: {known.reason}"
            console.print(f"{cell.name}, seed {ground.seed}: {told}", soft_wrap=True)
            return
        console.rule(f"{cell.name}, seed {ground.seed}")
        outcome = Record(cell.name, ground.seed, identity, "finished", settings=settings)
        self.records.write(cell.slug, _outcome(outcome, cell, ground, run))


def _base(ground: Ground) -> dict[str, Any]:
    """The base as it is; of its test images all are kept, for best of n is made of them."""
    return {
        "scores": judging.tested(ground, "base"),
        "facts": _facts(ground, fidelity=judging.distances(ground, "base")),
    }


def _best(ground: Ground) -> dict[str, Any]:
    """The best set by the reward among all of the base's images, and the blind comparison."""
    from sayso.study.identity import canonical_model

    model = canonical_model(ground.study, f"base@best-of-{ground.size.pool}")
    return {
        "scores": judging.tested(ground, model),
        "votes": judging.compared(ground, model),
        "facts": _facts(ground, model=model),
    }


def _trained(ground: Ground, cell: Cell) -> dict[str, Any]:
    """Try the option sets, keep the best on validation prompts, judge it."""
    tried = [_tried(ground, cell, trial) for trial in cell.trials[: ground.size.trials]]
    finished = [t for t in tried if "reward" in t]
    if not finished:
        raise UserError(f"every trial failed; the first: {tried[0]['failed']}")
    chosen = max(finished, key=lambda t: t["reward"])
    scores = judging.tested(ground, chosen["run"])
    earlier = [
        _earlier(ground, cell, chosen["trial"], share)
        for share in (ground.size.earlier if cell.kind != "switch" else ())
    ]
    return _judged(ground, scores, chosen, trials=tried, earlier=earlier)


def _earlier(ground: Ground, cell: Cell, trial: str, share: float) -> dict[str, Any]:
    """The chosen options with a part of the budget: another point of the curve, or why not."""
    try:
        trained = train(ground, cell, trial, int(ground.size.budget * share))
        scores = judging.tested(ground, trained.run)
        distance = judging.distance_to_base(ground, trained.run)
    except Exception as error:
        return {"share": share, "failed": why_failed(error)}
    return {**asdict(trained), "share": share, "distance": distance, "scores": scores}


def _in_rounds(ground: Ground, cell: Cell) -> dict[str, Any]:
    trained, ratings = train_in_rounds(ground, cell)
    chosen = {**asdict(trained), "trial": cell.trials[0], **_validated(ground, trained)}
    scores = judging.tested(ground, trained.run)
    return _judged(ground, scores, chosen, ratings=ratings)


def _outcome(
    outcome: Record, cell: Cell, ground: Ground, run: Callable[[], dict[str, Any]]
) -> Record:
    """`outcome` with what came of the cell, or why nothing did.

    Raises: whatever the base failed of, for nothing can be said without it.
    """
    try:
        if cell.aligner:
            plan_of(ground, cell, cell.trials[0])
    except UserError as error:
        console.print(f"{cell.name} is left out: {error}", soft_wrap=True)
        return replace(outcome, state="left out", reason=why_failed(error))
    try:
        return replace(outcome, **run())
    except Exception as error:
        if cell == BASE:
            raise
        reason = why_failed(error)
        console.print(f"{cell.name} failed: {reason}", soft_wrap=True)
        return replace(outcome, state="failed", reason=reason)


def _tried(ground: Ground, cell: Cell, trial: str) -> dict[str, Any]:
    """One option set: trained and measured on validation prompts, or why it failed."""
    try:
        trained = train(ground, cell, trial, ground.size.budget)
        return {"trial": trial, **asdict(trained), **_validated(ground, trained)}
    except Exception as error:
        reason = why_failed(error)
        console.print(f"{cell.name} with {trial} failed: {reason}", soft_wrap=True)
        return {"trial": trial, "failed": reason}


def _validated(ground: Ground, trained: Trained) -> dict[str, float]:
    """The mean held-out reward, by which is chosen; the truth beside is only written down."""
    rows = judging.validated(ground, trained.run)
    return {
        "reward": float(np.mean([row["reward"] for row in rows])),
        "truth": float(np.mean([bool(row["true"]) for row in rows])),
    }


def _judged(
    ground: Ground, scores: Sequence[Mapping[str, Any]], chosen: Mapping[str, Any],
    **facts: Any,
) -> dict[str, Any]:  # fmt: skip
    """A trained cell's scores, votes and facts."""
    model = chosen["run"]
    known = {
        **chosen,
        "distance": judging.distance_to_base(ground, model),
        "fidelity": judging.distances(ground, model),
        **facts,
    }
    return {
        "scores": scores,
        "votes": judging.compared(ground, model),
        "facts": _facts(ground, **known),
    }


def _facts(ground: Ground, **known: Any) -> dict[str, Any]:
    from sayso.study.run import environment

    found = environment(ground.seed)
    drawn = ground.size.train * ground.size.train_images
    return {
        "per_image": ground.per_image, "ratings": drawn,
        "commit": found["commit"], "reward_run": REWARD, **known,
    }  # fmt: skip
