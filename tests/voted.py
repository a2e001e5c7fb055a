"""A study with votes of many raters and no images, for tests of what votes become. No torch."""

from dataclasses import asdict
from pathlib import Path

import numpy as np

from sayso.base import files
from sayso.base.types import Comparison, Prompt, Rating, Sample, Sampler
from sayso.study.info import StudyInfo
from sayso.study.study import Study
from sayso.votes.item_votes import ItemVote

CARELESS = "simulated-07"
MODELS = ("base", "base@best-of-4", "runs/align-rwr")
STRENGTHS = {"base": 0.0, "base@best-of-4": 0.7, "runs/align-rwr": 1.2}


def make_study(path: Path, prompts: int = 20, per_prompt: int = 8) -> Study:
    """Prompts of two categories, half of them to train on, and the records of their images."""
    study = Study.create(path, StudyInfo(name=path.name, seed=3, base_model="some-model"))
    kinds = [("count", "train"), ("colour", "train"), ("count", "seen"), ("colour", "seen")]
    study.write_prompts(
        Prompt(f"p{k:02}", f"text {k}", kinds[k % 4][0], {}, kinds[k % 4][1])  # type: ignore[arg-type]
        for k in range(prompts)
    )
    sampler = Sampler()
    rows = [
        Sample(
            f"{model}-{p.id}-{k}",
            p.id,
            model,
            k,
            sampler,
            f"images/{p.id}{k}.png",
            "latents/x.safetensors",
        )
        for model in MODELS
        for p in study.prompts()
        for k in range(per_prompt if model == "base" else 2)
    ]
    files.append_lines(study.path / "samples.jsonl", [asdict(row) for row in rows])
    return study


def truth(sample: str) -> bool:
    """The hidden truth of an image: some prompts are harder than others."""
    rng = np.random.default_rng(list(sample.encode()))
    return bool(rng.random() < 0.5)


def add_ratings(
    study: Study, raters: int = 20, overlap: int = 3, *, simulated: bool = True, seed: int = 0
) -> None:
    """Truth of the base's images by raters who err on 6 % and skip 6 %; one does not look."""
    rng = np.random.default_rng(seed)
    names = [f"{'simulated' if simulated else 'person'}-{k:02}" for k in range(raters)]
    votes = []
    for sample in study.samples("base"):
        for k in rng.choice(raters, overlap, replace=False).tolist():
            good = bool(rng.random() < 0.5) if names[k] == CARELESS else (
                truth(sample.id) != (rng.random() < 0.06)
            )  # fmt: skip
            skips = rng.random() < 0.06 and names[k] != CARELESS
            n = len(votes)
            votes.append(Rating(
                f"{seed}-{simulated}-{n}", sample.id, names[k], "alignment",
                "skip" if skips else "good" if good else "bad", simulated,
                1e9 + n, 1e9 + n + 1.5 + k / 10,
            ))  # fmt: skip
    study.feedback.add_ratings(votes)


def comparisons(study: Study, raters: int = 9, *, left_taste: float = 0.0) -> list[Comparison]:
    """Every pair of models on every test prompt by every rater; sides are drawn for each vote."""
    rng = np.random.default_rng(1)
    sets = {(s.model, s.prompt_id): (s.id,) for s in study.samples()}
    votes = []
    for i, first in enumerate(MODELS):
        for second in MODELS[:i]:
            for prompt in study.prompts("seen"):
                for r in range(raters):
                    left, right = (first, second) if rng.random() < 0.5 else (second, first)
                    lead = STRENGTHS[left] - STRENGTHS[right] + left_taste + rng.logistic()
                    n = len(votes)
                    votes.append(Comparison(
                        f"c{n}", prompt.id, sets[left, prompt.id], sets[right, prompt.id], left,
                        right, f"simulated-{r:02}", "alignment",
                        "tie" if abs(lead) < 0.5 else "left" if lead > 0 else "right",
                        True, 1e9, 1e9 + 4,
                    ))  # fmt: skip
    return votes


def votes_of(rater: str, values: str, **more: object) -> list[ItemVote]:
    """One vote an item: g good, b bad, s skip, - none."""
    names = {"g": "good", "b": "bad", "s": "skip"}
    return [
        ItemVote(f"i{k}", "p", rater, names[v], **more)  # type: ignore[arg-type]
        for k, v in enumerate(values)
        if v != "-"
    ]
