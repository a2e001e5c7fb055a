"""A study of a few prompts on a random tiny model, for tests of single stages."""

import json
import shutil
from pathlib import Path

from models import tiny_pipeline

from sayso.base.types import Prompt, Rating, Sampler, Size, digest
from sayso.stages.generate import GenerateConfig, generate
from sayso.study.identity import base_identity
from sayso.study.info import StudyInfo
from sayso.study.study import Study

TEXTS = ("a dog", "two cats", "red sea")
UNET = "unet/diffusion_pytorch_model.safetensors"
SAMPLER = Sampler(num_inference_steps=2, guidance_scale=3.0, image_size=Size(32, 32))


def random_study(folder: Path, pretraining: str = "tinyworld") -> Study:
    """Three train prompts and one test prompt, no images yet."""
    base = tiny_pipeline(folder / "model")
    info = StudyInfo("s", 7, str(base), "tinyworld", pretraining, SAMPLER)
    study = Study.create(folder / "study", info)
    train = [Prompt(f"p{i}", text, "count", {}, "train") for i, text in enumerate(TEXTS)]
    study.write_prompts([*train, Prompt("q", "one bird", "count", {}, "seen")])
    return study


def rated_study(folder: Path, good_every: int = 2) -> Study:
    """Twelve images of train prompts; every `good_every`-th is rated good, the others bad."""
    study = random_study(folder)
    generate(study, GenerateConfig(per_prompt=4, batch_size=8))
    study.feedback.add_ratings([
        Rating(
            digest(["rating", s.id]), s.id, "simulated-1", "alignment",
            "good" if good_every and i % good_every == 0 else "bad", True, 0.0, 1.0,
        )
        for i, s in enumerate(study.samples())
    ])  # fmt: skip
    return study


def finished_align(study: Study, name: str, weights: bytes, model: str = "base") -> None:
    """A finished run of align whose U-Net has these weights."""
    run = study.run("align", name, {"model": model, "aligner": "rwr"})
    shutil.copytree(Path(study.info.base_model) / "unet", run.weights / "unet")
    (run.weights / UNET).write_bytes(weights)
    run.finish({})


def finished_fit(study: Study, name: str, weights: bytes, **options: object) -> None:
    """A run of fit as far as its identity goes."""
    run = study.run("fit", name, {"reward": "clip_head", "options": options})
    run.weights.mkdir()
    (run.weights / "model.safetensors").write_bytes(weights)
    run.finish({})


def as_now(study: Study) -> None:
    """Let the base's images be of the base as it is now, though its files were changed."""
    path, identity = study.path / "samples.jsonl", base_identity(study)
    rows = [
        json.loads(line) | {"model_identity": identity} for line in path.read_text().splitlines()
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
