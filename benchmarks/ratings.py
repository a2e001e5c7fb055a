"""Ratings → alignment: how much alignment one gets from 250, 500, … ratings, and with which method.

    python benchmarks/ratings.py STUDY WORK [--only ours,paper] [--ratings 250,500] [--steps 250]

STUDY has images of its base that simulated raters rated, such as that of recipes/lee2023_tiny.sh;
it is only read, and made first if it is not there. For each number of ratings and each method WORK
gets a study with the same prompts and images, but only so many of the ratings, drawn at random;
the fewer are among the more. There the reward is fitted, the model tuned and compared with the base
by 9 raters a set, through the ordinary commands.

Run again it resumes, and what is finished is kept; a study's name holds a digest of all that
decides what comes of it. Several processes may work in WORK, each on methods of its own (--only).
The results are ratings.json, ratings.md and ratings.png in WORK.
"""

import argparse
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from ratings_page import publish

from sayso.base import files
from sayso.base.errors import UserError, quoted
from sayso.base.files import JsonObject
from sayso.base.progress import console
from sayso.base.types import QUESTIONS, Rating, Sample, digest
from sayso.cli.demo import FIT, TUNE
from sayso.cli.league.cells import PAPER
from sayso.cli.league.ground import run_line
from sayso.judges import judge_identities, named_judge, world_judge
from sayso.reporting.report_data import number
from sayso.reporting.summary import comparison
from sayso.stages._drawing_plan import seed_of
from sayso.study.identity import base_identity, clip_identity
from sayso.study.run import Run
from sayso.study.sample_records import FILE
from sayso.study.study import Study
from sayso.votes.counted import is_for

RATINGS = (250, 500, 1000, 2300, 8600)
SET, RATERS = 4, 9
"""Images of a set, and raters of each pair of sets, as in the paper."""
TUNED = "runs/align-rwr"
FACTS = ("commit", "device", "platform", "processors", "threads", "cpu_capability",
         "mixed_precision", "packages")  # fmt: skip
"""What a row keeps of env.json."""


@dataclass(frozen=True)
class Method:
    """A way from ratings to a tuned model; `fit` and `align` are options of these commands."""

    name: str
    label: str
    about: str
    fit: str
    align: str


METHODS = {
    method.name: method
    for method in (
        Method(
            "ours", "Sayso, as in the demo",
            "images and pre-training images drawn in proportion to the reward", FIT, TUNE,
        ),
        Method(
            "paper", "the paper's method",
            "Lee et al. 2023: every image, rated or not, weighted by the reward", "", PAPER,
        ),
        Method(
            "paper-rated", "the paper's method, rated images only",
            "the paper's ablation: every rated image weighted by the reward", "",
            f"{PAPER} --no-unrated",
        ),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """How much of everything: of a study that has to be made, and of the training."""

    prompts: int = 360
    train_images: int = 24
    test: int = 120
    fidelity: int = 512
    steps: int = 250


@dataclass(frozen=True)
class Ground:
    """What all points share: a study with the base's images, and the ratings in random order.

    `identity` changes with everything that a point uses of both.
    """

    study: Study
    ratings: Sequence[Rating]
    identity: str
    seed: int


def made(path: Path, sizes: Sizes) -> Study:
    """The study at `path`; if there is none it is made as the recipe makes it, seed 0."""
    if not path.exists():
        making = path.with_name(f"{path.name}.unfinished")
        where = quoted(making)
        if not (making / "study.json").exists():
            run_line(f"new {where} --seed 0")
        run_line(
            f"prompts {where} --train {sizes.prompts} --test {sizes.test} "
            f"--fidelity {sizes.fidelity}"
        )
        run_line(f"generate {where} --prompts train --per-prompt {sizes.train_images}")
        run_line(f"rate {where} --simulated --prompts train")
        making.rename(path)
    return Study.open(path)


def ratings_of(study: Study, seed: int) -> list[Rating]:
    """The simulated ratings of the base's images for train prompts, in random order.

    Raises: UserError: if there are none.
    """
    train = {prompt.id for prompt in study.prompts("train")}
    images = {s.id for s in study.samples("base") if s.prompt_id in train}
    found = [
        rating
        for rating in study.feedback.ratings(simulated=True)
        if rating.sample_id in images and rating.question == "alignment" and is_for(rating, "vote")
    ]
    if not found:
        raise UserError(
            f"nobody has rated the base's images in {study.path}; run: sayso rate "
            f"{quoted(study.path)} --simulated --prompts train"
        )
    ordered = sorted(found, key=lambda rating: (rating.sample_id, rating.rater))
    return [ordered[i] for i in np.random.default_rng(seed).permutation(len(ordered))]


def prepared(path: Path, work: Path, sizes: Sizes, seed: int) -> Ground:
    """The ground in `work`: the base's images of the study at `path`, and those it lacks."""
    with _alone(work):
        source = made(path, sizes)
        ratings = ratings_of(source, seed)
        identity = _identity(source)
        study = _linked(source, work / f"base-{identity[:8]}", work / "cache")
        where = quoted(study.path)
        run_line(f"generate {where} --prompts test --per-prompt {SET}")
        if study.prompts("fidelity"):
            run_line(f"generate {where} --prompts fidelity --per-prompt 1")
        return Ground(study, ratings, _identity(study), seed)


def _alone(work: Path) -> FileLock:
    """A block that one process at a time is in; another waits for it."""
    work.mkdir(parents=True, exist_ok=True)
    return FileLock(work / ".preparing.lock")


def _identity(study: Study) -> str:
    """A digest of prompts, the base's images, and all that draws, embeds and judges them."""
    judge = world_judge(study)
    return digest([
        asdict(replace(study.info, name="", feedback_url="")),
        [prompt.id for prompt in study.prompts()],
        sorted(sample.id for sample in used_images(study)),
        base_identity(study), clip_identity(study),
        judge_identities(study, judge, named_judge(study, judge)),
    ])  # fmt: skip


def used_images(study: Study) -> list[Sample]:
    """The base's images that points use: all of train prompts, of the others as many as compared.

    Those that the study has beside them, such as a pool for best of n, change nothing.
    """
    kept = {"seen": SET, "unseen": SET, "fidelity": 1, "validation": 0}
    seeds = {
        prompt.id: {seed_of(study, prompt.id, k) for k in range(kept[prompt.split])}
        for prompt in study.prompts()
        if prompt.split in kept
    }
    return [s for s in study.samples("base") if s.seed in seeds.get(s.prompt_id, {s.seed})]


def _linked(source: Study, path: Path, cache: Path) -> Study:
    """A study with the prompts and the base's images of another one, whose files it shares."""
    if not path.exists():
        making, samples = path.with_name(f"{path.name}.unfinished"), used_images(source)
        shutil.rmtree(making, ignore_errors=True)
        study = Study.create(making, replace(source.info, feedback_url=""))
        study.write_prompts(source.prompts())
        for name in dict.fromkeys(name for s in samples for name in (s.path, s.latents)):
            _link(source.path / name, making / name)
        files.append_lines(making / FILE, map(asdict, samples))
        cache.mkdir(exist_ok=True)
        study.cache.symlink_to(cache.resolve())
        making.rename(path)
    return Study.open(path)


def _link(old: Path, new: Path) -> None:
    new.parent.mkdir(parents=True, exist_ok=True)
    if not old.is_file():
        raise UserError(f"{old} is missing; restore it, or make the study again")
    try:
        os.link(old, new)
    except OSError:  # another disk, or one without hard links
        shutil.copy2(old, new)


@dataclass(frozen=True)
class Point:
    """One number of ratings and one method."""

    ground: Ground
    work: Path
    method: Method
    n: int
    steps: int

    @property
    def ratings(self) -> Sequence[Rating]:
        return self.ground.ratings[: self.n]

    def commands(self, where: str) -> list[str]:
        """What is done in the point's study, without the leading "sayso"."""
        drawn = f"generate {where} --model {TUNED} --prompts"
        fidelity = self.ground.study.prompts("fidelity")
        return [
            f"fit {where} {self.method.fit}".strip(),
            f"align {where} {self.method.align} --max-steps {self.steps}",
            f"{drawn} test --per-prompt {SET}",
            *([f"{drawn} fidelity --per-prompt 1"] if fidelity else []),
            f"rate {where} --simulated --task compare --prompts test --set-size {SET} --left base "
            f"--right {TUNED} --raters {RATERS} --overlap {RATERS}",
            f"evaluate {where} --model {TUNED}",
        ]

    @property
    def name(self) -> str:
        """Of its study: the digest is of the ground, the ratings and the commands."""
        votes = sorted([r.sample_id, r.rater, r.value] for r in self.ratings)
        own = digest([self.ground.identity, votes, self.commands("STUDY")], 8)
        return f"{self.method.name}-{self.n}-{own}"

    @property
    def row(self) -> Path:
        return self.work / "rows" / f"{self.name}.json"

    def run(self) -> None:
        """Do what is missing, and write the row."""
        path = self.work / self.name
        with _alone(self.work):
            study = _linked(self.ground.study, path, self.work / "cache")
        # in a store of their own they replace nothing; those that are there already stay
        study.feedback.add_ratings([replace(r, supersedes=None) for r in self.ratings])
        runs = [run_line(line) for line in self.commands(quoted(path))]
        files.write_json(self.row, self._measured(runs[0], runs[1], runs[-1]))

    def _measured(self, fitted: Run, tuned: Run, evaluated: Run) -> JsonObject:
        result, environment = evaluated.result, tuned.environment
        quality, distance = result["reward_quality"], result["fidelity"]
        return {
            "ratings": self.n, "method": self.method.name, "study": self.name,
            "seed": self.ground.seed, "training_seed": environment["seed"],
            "steps": self.steps, "commands": self.commands("STUDY"),
            "fitted_to": fitted.result["n"],
            "trained_on": {k: tuned.result[k] for k in ("samples", "rated_images", "good_images",
                                                       "pretraining_images")},
            "net": {question: _net(result, question) for question in QUESTIONS},
            "truth": result["alignment"]["aligned"], "base": result["alignment"]["base"],
            "change": result["paired"],
            "distance": {
                "ratio": number(distance.get("ratio")), "n": distance.get("n"),
                "skipped": distance.get("skipped"),
                **{role: number(distance.get(role, {}).get("frechet"))
                   for role in ("base", "aligned")},
            },
            "reward_auc": {s: number(quality.get(s, {}).get("auc")) for s in ("seen", "unseen")},
            "seconds": {"fit": fitted.result["seconds"], "align": tuned.result["seconds"]},
            **{name: environment.get(name) for name in FACTS},
        }  # fmt: skip


def _net(result: JsonObject, question: str) -> JsonObject:
    """Net share of prompts with its interval over raters and prompts; won and lost beside it."""
    found: dict[str, Any] = comparison(result, "aligned", "base", question) or {}
    sides = {side: found[side]["value"] for side in ("win", "tie", "lose")}
    return {**found["intervals"]["net"], **sides, "prompts": found["n_prompts"]}


def curve(
    ground: Ground, work: Path, sizes: Sizes, numbers: Sequence[int], wanted: Sequence[Method],
    methods: Sequence[Method],
) -> JsonObject:  # fmt: skip
    """Run the points of the wanted methods that are not there; the results of all methods' points.

    Raises: UserError: if there are fewer ratings than asked for.
    """
    if max(numbers) > len(ground.ratings):
        raise UserError(
            f"{max(numbers)} ratings asked for, but there are {len(ground.ratings)}; give fewer "
            "with --ratings"
        )
    points = [Point(ground, work, m, n, sizes.steps) for m in methods for n in numbers]
    todo = [p for p in points if p.method in wanted and not p.row.exists()]
    for i, point in enumerate(todo, 1):
        console.rule(f"{point.method.label}, {point.n} ratings ({i} of {len(todo)})")
        point.run()
        publish(_results(ground, points), work)
    results = _results(ground, points)
    publish(results, work)
    return results


def _results(ground: Ground, points: Sequence[Point]) -> JsonObject:
    rows = [files.read_json(point.row) for point in points if point.row.exists()]
    test = ground.study.prompts("test")
    return {
        "ratings_in_all": len(ground.ratings), "seed": ground.seed,
        "study_seed": ground.study.info.seed, "test_prompts": len(test),
        "set_size": SET, "raters": RATERS, "ground": ground.identity,
        "commits": sorted({str(row["commit"]) for row in rows}),
        "methods": {p.method.name: asdict(p.method) for p in points},
        "base": rows[0]["base"] if rows else None,
        "rows": rows,
    }  # fmt: skip


def numbers(text: str) -> list[int]:
    """Numbers of ratings with commas between, each once, in order."""
    found = sorted({int(part) for part in text.split(",")})
    if found[0] < 1:
        raise argparse.ArgumentTypeError(f"{found[0]} ratings are too few; give 1 or more")
    return found


def methods(text: str) -> list[Method]:
    """Names of methods with commas between."""
    if unknown := [name for name in text.split(",") if name not in METHODS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is unknown; choose {', '.join(METHODS)}")
    return [METHODS[name] for name in text.split(",")]


def _parser() -> argparse.ArgumentParser:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("study", type=Path)
    parser.add_argument("work", type=Path)
    every = ",".join(map(str, RATINGS))
    parser.add_argument("--ratings", type=numbers, default=every, help=f"default: {every}")
    parser.add_argument("--only", type=methods, default="ours,paper",
                        help=f"of {', '.join(METHODS)}; default: ours,paper")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the drawing of ratings")
    for name, value in asdict(Sizes()).items():
        of = "each training" if name == "steps" else "a study that is made"
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=int, default=value, help=f"of {of}; default: {value}")
    return parser


def main() -> None:
    given = vars(_parser().parse_args())
    sizes = Sizes(**{name: given[name] for name in asdict(Sizes())})
    try:
        ground = prepared(given["study"], given["work"], sizes, given["seed"])
        curve(ground, given["work"], sizes, given["ratings"], given["only"], [*METHODS.values()])
    except UserError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
