"""The whole loop of a study by the command line, on a random tiny model of each family.

What training wrote loads in plain diffusers and draws there what the study shows.
"""

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from clips import tiny_clip
from flows import T5_LENGTH
from PIL import Image

from sayso.base.plugins import load_plugin, plugin_names
from sayso.base.types import Rating, Sample, digest
from sayso.cli import commands as cli
from sayso.families import Policy
from sayso.study.study import Study

GUIDED = {"guidance_scale": 3.0}
"""How a pipeline is told of guidance, where it is not so: see `CALLS`."""
CALLS: dict[str, dict[str, Any]] = {
    "sd3": {**GUIDED, "max_sequence_length": T5_LENGTH},
    "flux": {**GUIDED, "max_sequence_length": T5_LENGTH},
    "qwen_image": {"true_cfg_scale": 3.0, "negative_prompt": ["", ""]},
}
"""Family → what its pipeline is called with for the guidance that the study has."""
PROMPTS = [("red ball", "train"), ("two dogs", "train"), ("a cat", "train"), ("red dog", "seen")]
STEPS = 2
PRECISE = "--mixed-precision no"


@pytest.fixture(scope="module", params=plugin_names("family"))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def study(family: str, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study with two tuned models, one of them by adapters."""
    folder = tmp_path_factory.mktemp(family)
    base = load_plugin("family", family, Policy).tiny(folder / "base")
    rows = [{"text": text, "category": "count", "split": split} for text, split in PROMPTS]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def sayso(command: str, options: str = "") -> None:
        cli.run([command, str(folder / "study"), *options.split()])

    sayso("new", f"--base-model {base} --clip-model {tiny_clip(folder / 'clip')} "
          f"--num-inference-steps {STEPS} --guidance-scale 3 --pretraining {photos(folder)} "
          "--image-size 48x32")  # fmt: skip
    sayso("prompts", f"--file {folder / 'prompts.jsonl'} --fidelity 0")
    sayso("generate", f"--prompts all --per-prompt 4 {PRECISE}")
    study = Study.open(folder / "study")
    study.feedback.add_ratings([rating(s) for s in study.samples() if s.prompt_id in train(study)])
    sayso("fit", "--max-epochs 2 --hidden-width 8")
    align = "--max-steps 2 --batch-size 4 --pretraining-images 2 --ema-decay 0 --warmup-steps 0"
    sayso("align", f"--learning-rate 1e-2 {align} {PRECISE}")
    sayso("align", f"--name lora --lora-rank 2 --learning-rate 0.1 {align} {PRECISE}")
    for model in ("runs/align-rwr", "runs/align-lora"):
        sayso("generate", f"--prompts test --per-prompt 4 --model {model} {PRECISE}")
        sayso("evaluate", f"--model {model} --judge reward --judge-reward clip_score --threshold 0")
    sayso("report")
    return study


def photos(folder: Path) -> Path:
    """Eight pictures with captions, one colour each."""
    (folder / "photos").mkdir()
    for i in range(8):
        Image.new("RGB", (60, 50), (30 * i, 90, 250 - 30 * i)).save(folder / f"photos/{i}.png")
    rows = [{"file_name": f"{i}.png", "text": "a field"} for i in range(8)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "photos" / "metadata.jsonl").write_text(lines)
    return folder / "photos"


def train(study: Study) -> set[str]:
    return {prompt.id for prompt in study.prompts("train")}


def rating(sample: Sample) -> Rating:
    """Every other image is good."""
    value = "good" if int(sample.id, 16) % 2 else "bad"
    made = digest(["rating", sample.id])
    return Rating(made, sample.id, "rater", "alignment", value, False, 1.0, 2.0)


def test_the_report_has_both_models(study: Study) -> None:
    page = (study.path / "report.html").read_text()
    assert "align-rwr" in page
    assert "align-lora" in page
    runs = [run.name for run in study.runs("evaluate") if run.finished]
    assert runs == ["runs/evaluate-align-lora", "runs/evaluate-align-rwr"]


@pytest.mark.parametrize("model", ["base", "runs/align-rwr", "runs/align-lora"])
def test_plain_diffusers_draws_the_images_of_the_study(
    family: str, study: Study, model: str
) -> None:
    kind: Any = load_plugin("family", family, Policy)
    base = study.info.base_model
    pipeline = getattr(diffusers, kind.pipelines[0]).from_pretrained(base)
    pipeline.set_progress_bar_config(disable=True)
    if model == "runs/align-rwr":
        network_class: Any = getattr(diffusers, kind.network_class)
        weights = study.find_run(model).weights
        tuned = network_class.from_pretrained(weights, subfolder=kind.network_part)
        pipeline.register_modules(**{kind.network_part: tuned})
    if model == "runs/align-lora":
        pipeline.load_lora_weights(study.find_run(model).weights)
    (prompt,) = study.prompts("test")
    samples = [s for s in study.samples(model) if s.prompt_id == prompt.id][:2]
    theirs = pipeline(
        [prompt.text] * 2, num_inference_steps=STEPS, width=48, height=32, output_type="np",
        generator=[torch.Generator().manual_seed(s.seed) for s in samples],
        **CALLS.get(family, GUIDED),
    ).images  # fmt: skip
    ours = np.stack([np.asarray(study.image(s)) for s in samples])
    assert ours.shape == (2, 32, 48, 3)
    assert ours.std() > 1
    assert np.abs(theirs * 255 - ours).max() <= 1


def test_the_models_draw_different_images(study: Study) -> None:
    drawn = {
        model: drawn_by(study, model) for model in ("base", "runs/align-rwr", "runs/align-lora")
    }
    for tuned in ("runs/align-rwr", "runs/align-lora"):
        assert np.abs(drawn["base"] - drawn[tuned]).max() > 4, tuned


def drawn_by(study: Study, model: str) -> np.ndarray:
    """The model's images of the test prompt, by seed."""
    (prompt,) = study.prompts("test")
    samples = sorted(study.samples(model), key=lambda s: s.seed)
    return np.stack([
        np.asarray(study.image(s), dtype=float) for s in samples if s.prompt_id == prompt.id
    ])  # fmt: skip
