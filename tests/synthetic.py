"""A study with drawn scenes and invented votes, to test evaluation and report quickly."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sayso.base import files
from sayso.base.types import Comparison, Prompt, Rating, Sample, Sampler, Size, digest, sample_id
from sayso.prompts.grammar import load_grammar, make_prompts, share_out
from sayso.stages.evaluate import EvaluateConfig
from sayso.study.info import StudyInfo
from sayso.study.study import Study
from sayso.tinyworld.render import render
from sayso.tinyworld.scenes import BACKGROUNDS, COLOURS, Scene

SAMPLER = Sampler(num_inference_steps=12, guidance_scale=3.0, image_size=Size(64, 64))
BASE, ALIGNED, BEST = "base", "runs/align-rwr", "base@best-of-16"
TRUE_SHARES = {BASE: 0.35, BEST: 0.6, ALIGNED: 0.65}


@dataclass
class Truth:
    """The invented truth of every sample, in place of the judge's."""

    true: dict[str, bool]


def make_study(
    path: Path, train: int = 8, test: int = 16, per_prompt: int = 4
) -> tuple[Study, Truth]:
    """A study with images of all models for its prompts, and the truth of each image."""
    info = StudyInfo(name=path.name, seed=7, sampler=SAMPLER)
    study = Study.create(path, info)
    sizes = share_out(
        load_grammar("tinyworld"), train=train, seen=test - test // 2, unseen=test // 2
    )
    study.write_prompts(make_prompts(load_grammar("tinyworld"), sizes, seed=7))
    truth = Truth({})
    add_images(study, truth, BASE, study.prompts("train"), per_prompt)
    for model in (BASE, BEST, ALIGNED):
        add_images(study, truth, model, study.prompts("test"), per_prompt)
    return study, truth


def add_images(
    study: Study, truth: Truth, model: str, prompts: Sequence[Prompt], n: int,
    identity: str = "", sampler: Sampler = SAMPLER,
) -> None:  # fmt: skip
    """Draw what the prompt says, or with the model's share of errors something else."""
    samples, images = [], []
    for prompt in prompts:
        for k in range(n):
            seed = int(digest([study.info.seed, prompt.id, k]), 16) % 2**31
            sample = sample_id(prompt.id, model, seed, sampler, identity)
            rng = np.random.default_rng(int(sample, 16))
            true = bool(rng.random() < TRUE_SHARES.get(model, 0.6))
            truth.true[sample] = true
            samples.append(Sample(
                sample, prompt.id, model, seed, sampler, study.image_path(sample),
                study.latents_path(digest([model, len(prompts)])), identity,
            ))  # fmt: skip
            images.append(Image.fromarray(render(_scene(prompt, true, rng), rng)))
    latents = {s.id: torch.zeros(4, 2, 2) for s in samples}
    study.add_samples(samples, images, latents)


def _scene(prompt: Prompt, true: bool, rng: np.random.Generator) -> Scene:
    wanted = prompt.slots
    scene = Scene(
        object=str(wanted["object"]),
        colour=str(wanted.get("colour", rng.choice(COLOURS))),
        count=int(wanted.get("count", rng.integers(1, 4))),
        background=str(wanted.get("background", rng.choice(BACKGROUNDS))),
    )
    if true:
        return scene
    other = "apple" if scene.object != "apple" else "cup"
    return Scene(other, scene.colour, scene.count % 5 + 1, scene.background)


def add_ratings(study: Study, truth: Truth, simulated: bool = True, which: str = "train") -> None:
    """One rating an image by one of two raters, right nine times in ten."""
    wanted = {p.id for p in study.prompts(which)}
    votes = []
    for i, sample in enumerate(s for s in study.samples() if s.prompt_id in wanted):
        rng = np.random.default_rng(int(sample.id, 16) + 1)
        good = truth.true[sample.id] == (rng.random() < 0.9)
        value = "skip" if rng.random() < 0.05 else "good" if good else "bad"
        rater = f"simulated-{i % 2}" if simulated else f"person-{i % 2}"
        votes.append(Rating(
            digest([sample.id, rater]), sample.id, rater, "alignment", value, simulated,
            1.7e9 + i / 100, 1.7e9 + i / 100 + 0.005,
        ))  # fmt: skip
    study.feedback.add_ratings(votes)


def add_comparisons(study: Study, truth: Truth, raters: int = 9) -> None:
    """Votes on the three pairs of models: the side with more true images wins, mostly."""
    votes = []
    for left, right in ((BASE, ALIGNED), (BASE, BEST), (BEST, ALIGNED)):
        for prompt in study.prompts("test"):
            sides = [tuple(s.id for s in study_samples(study, m, prompt)) for m in (left, right)]
            for question in ("alignment", "fidelity"):
                votes += _votes(truth, prompt, (left, right), sides, question, raters)
    study.feedback.add_comparisons(votes)


def study_samples(study: Study, model: str, prompt: Prompt) -> list[Sample]:
    if model not in _cache(study):
        _cache(study)[model] = study.samples(model)
    return [s for s in _cache(study)[model] if s.prompt_id == prompt.id]


_CACHES: dict[Path, dict[str, list[Sample]]] = {}


def _cache(study: Study) -> dict[str, list[Sample]]:
    return _CACHES.setdefault(study.path, {})


def _votes(
    truth: Truth, prompt: Prompt, models: tuple[str, str], sides: list[tuple[str, ...]],
    question: str, raters: int,
) -> list[Comparison]:  # fmt: skip
    votes = []
    scores = [sum(truth.true[i] for i in side) for side in sides]
    for r in range(raters):
        rng = np.random.default_rng(int(digest([prompt.id, models, question, r]), 16))
        lead = (scores[1] - scores[0]) * (question == "alignment") + rng.normal(0, 1)
        value = "tie" if abs(lead) < 0.6 else "right" if lead > 0 else "left"
        order = (0, 1) if rng.random() < 0.5 else (1, 0)
        if order == (1, 0) and value != "tie":
            value = "left" if value == "right" else "right"
        votes.append(Comparison(
            digest([prompt.id, models, question, r]), prompt.id, sides[order[0]], sides[order[1]],
            models[order[0]], models[order[1]], f"simulated-{r}", question, value, True,
            1.7e9 + 500, 1.7e9 + 500,
        ))  # fmt: skip
    return votes


def add_runs(study: Study) -> None:
    """The runs that an evaluation and a report look for, with invented logs."""
    generate = study.run("generate", "base-train", {"model": "base", "prompts": "train"})
    generate.finish({"seconds": 41.0, "images": 32})
    fit = study.run("fit", "clip_head", {"reward": "clip_head", "options": {"temperature": 2.0}})
    files.append_lines(fit.path / "log.jsonl", [
        {"step": e, "squared_error": 0.25 / e + 0.05, "heldout_squared_error": 0.25 / e**0.7 + 0.08}
        for e in range(1, 18)
    ])  # fmt: skip
    fit.weights.mkdir()
    fit.finish({"raters": "simulated", "seconds": 9.2})
    align = study.run("align", "rwr", {"aligner": "rwr", "batch_size": 64, "max_steps": 400})
    rng = np.random.default_rng(0)
    files.append_lines(align.path / "log.jsonl", [
        {"step": s, "loss": 0.2 + 0.1 / s**0.3 + float(rng.normal(0, 0.01)),
         "learning_rate": 5e-4 * min(1, s / 20, (401 - s) / 133)}
        for s in range(1, 401)
    ])  # fmt: skip
    align.finish({"steps": 400, "seconds": 131.0, "samples": 2560, "rated_images": 2560,
                  "good_images": 1100, "pretraining_images": 1024})  # fmt: skip


REWARD_FILE = '''
"""A reward that needs no model: how bright the picture is."""

from dataclasses import dataclass
from typing import ClassVar

from sayso.rewards import Reward


@dataclass
class Brightness(Reward):
    differentiable: ClassVar[bool] = True
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def score(self, images, prompts):
        return images.mean(dim=(1, 2, 3))
'''


def evaluate_config(reward: str = "") -> EvaluateConfig:
    return EvaluateConfig(model=ALIGNED, reward=reward)
