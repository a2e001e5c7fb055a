"""A small study with images and all kinds of votes, made without torch; for exports and imports."""

from pathlib import Path

import numpy as np
from PIL import Image

from sayso.base.types import Comparison, Prompt, Rating, Sample, Sampler, Size, digest, sample_id
from sayso.study.info import StudyInfo
from sayso.study.study import Study

SAMPLER = Sampler(num_inference_steps=4, guidance_scale=3.5, eta=0.25, image_size=Size(16, 16))
PROMPTS = [
    Prompt("p0", 'a "red" dog,\nthen — 猫 🐕', "colour", {"object": "dog", "count": 2}, "train"),
    Prompt("p1", "two cats, 'quoted'", "count", {}, "train"),
    Prompt("p2", "<b>sea</b> & sky", "custom", {}, "train"),
    Prompt("q0", "one bird", "count", {}, "seen"),
    Prompt("q1", "one owl", "count", {}, "unseen"),
]
BASE, TUNED = "base", "runs/align-rwr"
SHOWN = {"task": "t1", "position": 3, "session": "s-secret", "latency_ms": 1234.5, "gold": False,
         "overlap_target": 3, "app_version": "0.2", "guideline_version": 2, "with": 1}  # fmt: skip


def voted_study(path: Path, votes: bool = True) -> Study:
    """Four images of the base per prompt, four of the tuned model per test prompt."""
    study = Study.create(path, StudyInfo(path.name, 3, "tinyworld", sampler=SAMPLER))
    study.write_prompts(PROMPTS)
    for prompt in PROMPTS:
        for model in (BASE,) if prompt.split == "train" else (BASE, TUNED):
            add_images(study, prompt, model)
    if votes:
        study.feedback.add_ratings(ratings(study))
        study.feedback.add_comparisons(comparisons(study))
    return study


def add_images(study: Study, prompt: Prompt, model: str, n: int = 4) -> None:
    samples, images = [], []
    for seed in range(n):
        own_id = sample_id(prompt.id, model, seed, SAMPLER)
        rng = np.random.default_rng(int(own_id, 16))
        images.append(Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)))
        path = study.image_path(own_id)
        samples.append(Sample(own_id, prompt.id, model, seed, SAMPLER, path, ""))
    study.add_samples(samples, images)


def images_of(study: Study, prompt_id: str, model: str = BASE) -> list[str]:
    return [s.id for s in study.samples(model) if s.prompt_id == prompt_id]


def a_rating(sample: str, rater: str, value: str = "good", **more: object) -> Rating:
    fields = {
        "question": "alignment", "simulated": False, "shown_at": 1.7e9 + 0.123456,
        "answered_at": 1.7e9 + 1.7654321, "id": digest(["mark", sample, rater, str(more)]), **more,
    }  # fmt: skip
    return Rating(sample_id=sample, rater=rater, value=value, **fields)  # type: ignore[arg-type]


def ratings(study: Study) -> list[Rating]:
    """Truth of two people (one changed her mind, one skipped), an attention item, one program."""
    p0, p1, p2 = (images_of(study, p) for p in ("p0", "p1", "p2"))
    first = a_rating(p0[3], "ann", "good", id="v-first", shown=SHOWN)
    people = [
        a_rating(p0[0], "ann", "good", shown=SHOWN), a_rating(p0[0], "Zoë 猫", "good"),
        a_rating(p0[1], "ann", "bad"), a_rating(p0[1], "Zoë 猫", "bad"),
        a_rating(p0[2], "ann", "good"), a_rating(p0[2], "Zoë 猫", "bad"),
        first, a_rating(p0[3], "ann", "bad", id="v-second", supersedes="v-first"),
        a_rating(p1[0], "ann", "good"), a_rating(p1[1], "ann", "bad"),
        a_rating(p1[2], "ann", "bad"),
        a_rating(p1[3], "ann", "skip", reason="blurred, \"very\"\n"),
        a_rating(p0[0], "ann", "bad", question="fidelity"),
        a_rating(p0[1], "ann", "good", question="fidelity"),
        a_rating(p2[0], "ann", "bad", shown={"attention": True}),
        a_rating(images_of(study, "q0")[0], "ann", "good"),
        a_rating(images_of(study, "q0")[1], "ann", "bad"),
    ]  # fmt: skip
    return [*people, a_rating(p2[1], "simulated-1", "good", simulated=True)]


def comparison(
    study: Study,
    key: str,
    prompt: str,
    left: list[str],
    right: list[str],
    value: str,
    **more: object,
) -> Comparison:
    models = {s.id: s.model for s in study.samples()}
    fields = {
        "rater": "ann", "question": "alignment", "simulated": False, "shown_at": 1.7e9,
        "answered_at": 1.7e9 + 2, "left_model": models[left[0]], "right_model": models[right[0]],
        **more,
    }  # fmt: skip
    return Comparison(
        id=key, prompt_id=prompt, left_ids=tuple(left), right_ids=tuple(right), value=value,
        **fields,  # type: ignore[arg-type]
    )  # fmt: skip


def comparisons(study: Study) -> list[Comparison]:
    """Sets of four on test prompts; single images of train prompts and of one test prompt."""
    p0, p1 = images_of(study, "p0"), images_of(study, "p1")
    base, tuned = images_of(study, "q0"), images_of(study, "q0", TUNED)
    return [
        comparison(study, "c-set", "q0", base, tuned, "right"),
        comparison(study, "c-set-f", "q0", tuned, base, "tie", question="fidelity"),
        comparison(study, "c-1", "p0", p0[:1], p0[1:2], "left"),
        comparison(study, "c-2", "p0", p0[1:2], p0[:1], "right", rater="Zoë 猫", shown=SHOWN),
        comparison(study, "c-3", "p0", p0[:1], p0[1:2], "right", rater="cy"),
        comparison(study, "c-4", "p1", p1[:1], p1[1:2], "tie"),
        comparison(study, "c-5", "q0", base[:1], tuned[:1], "right"),
    ]
