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
from safetensors.torch import load_file

from sayso.base.errors import UserError
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
ORIGINAL_NAMES = ("stable_diffusion", "sdxl")
"""Families whose weights other programs know by names of before diffusers."""


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
    draws_as_the_study_has_it(family, study, pipeline, model)


def draws_as_the_study_has_it(family: str, study: Study, pipeline: Any, model: str) -> None:
    pipeline.set_progress_bar_config(disable=True)
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


def written(study: Study, to: Path, options: str) -> Path:
    cli.run(["weights", str(study.path), "--to", str(to), *options.split()])
    return to


def base_pipeline(family: str, study: Study) -> Any:
    kind = load_plugin("family", family, Policy)
    return getattr(diffusers, kind.pipelines[0]).from_pretrained(study.info.base_model)


@pytest.mark.parametrize("model", ["runs/align-rwr", "runs/align-lora"])
def test_a_written_pipeline_draws_the_images_of_the_study(
    family: str, study: Study, model: str, tmp_path: Path
) -> None:
    folder = written(study, tmp_path / "out", f"--model {model}")
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
    draws_as_the_study_has_it(family, study, pipeline, model)
    text = (folder / "README.md").read_text()
    assert f"# study: {model}" in text
    good = sum(r.value == "good" for r in study.feedback.ratings(False))
    assert f"12 ratings by 1 person: {good} good, {12 - good} bad" in text
    with Image.open(folder / "before-after.png") as sheet:
        assert sheet.size == (520, 256)


@pytest.mark.parametrize("layout", ["lora", "kohya"])
def test_written_adapters_load_on_the_base(
    family: str, study: Study, layout: str, tmp_path: Path
) -> None:
    options = f"--model runs/align-lora --layout {layout}"
    if layout == "kohya" and family not in ORIGINAL_NAMES:
        with pytest.raises(UserError, match="give --layout lora"):
            written(study, tmp_path / "out", options)
        return
    folder = written(study, tmp_path / "out", options)
    names = load_file(folder / "pytorch_lora_weights.safetensors")
    assert any(name.startswith("lora_unet_") for name in names) == (layout == "kohya")
    pipeline = base_pipeline(family, study)
    pipeline.load_lora_weights(folder)
    draws_as_the_study_has_it(family, study, pipeline, "runs/align-lora")


def test_a_single_file_draws_the_images_of_the_study(
    family: str, study: Study, tmp_path: Path
) -> None:
    options = "--model runs/align-rwr --layout single-file"
    if family not in ORIGINAL_NAMES:
        with pytest.raises(UserError, match="is not written as one file; give --layout pipeline"):
            written(study, tmp_path / "out", options)
        assert not (tmp_path / "out").exists()
        return
    file = written(study, tmp_path / "out", options) / "model.safetensors"
    kind = load_plugin("family", family, Policy)
    pipeline = getattr(diffusers, kind.pipelines[0]).from_single_file(
        str(file), config=study.info.base_model
    )
    draws_as_the_study_has_it(family, study, pipeline, "runs/align-rwr")


def test_a_network_without_adapters_has_no_lora(study: Study, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no adapters; give --layout pipeline"):
        written(study, tmp_path / "out", "--model runs/align-rwr --layout lora")
    with pytest.raises(UserError, match="give a run of align"):
        written(study, tmp_path / "out", "--model base")
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="exists already; give --to another folder"):
        written(study, tmp_path / "there", "--model runs/align-rwr")
    assert not (tmp_path / "out").exists()


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
