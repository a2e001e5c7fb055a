"""Bad input through the real command line: one clear line, exit code 2, an unchanged study."""

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import run_sayso
from disks import small_disk

from sayso import tinyworld

IS_ROOT = os.geteuid() == 0


def state_of(folder: Path) -> dict[str, str]:
    """Hash of every file below a folder; what SQLite leaves beside its file does not count."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(("-wal", "-shm"))
    }


def refused(*arguments: object, says: str, unchanged: Path | None = None, **options: object) -> str:
    """Run a command that must be refused and return its one line."""
    before = state_of(unchanged) if unchanged else {}
    done = run_sayso(*arguments, **options)
    lines = [line for line in done.stderr.splitlines() if line.startswith("sayso: error: ")]
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert len(lines) == 1
    assert done.stderr.splitlines()[-1] == lines[0]
    assert says in lines[0], lines[0]
    if unchanged:
        assert state_of(unchanged) == before
    return lines[0]


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_no_such_study(tmp_path: Path) -> None:
    refused("generate", tmp_path / "nowhere", says="make one with: sayso new")


def test_newer_format(study_path: Path) -> None:
    edit_json(study_path / "study.json", format=99)
    refused("generate", study_path, says="upgrade sayso", unchanged=study_path)


def test_file_in_place_of_a_folder(tmp_path: Path) -> None:
    file = tmp_path / "study"
    file.write_text("not a study")
    refused("generate", file, says="is a file", unchanged=tmp_path)
    refused("new", file, says="is a file", unchanged=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("align", "STUDY", "--aligner", "rwx"), "did you mean 'rwr'"),
        (("fit", "STUDY", "--reward", "clip_hed"), "did you mean 'clip_head'"),
        (("align", "STUDY", "--name", "x", "--reward", "runs/fit-clip_hed"), "fit-clip_head"),
        (("align", "STUDY", "--lerning-rate", "1"), "did you mean '--learning-rate'"),
        (("align", "STUDY", "--name", "x", "--reward", "clip_scoer"), "did you mean 'clip_score'"),
        (("generate", "STUDY", "--best-of", "4", "--reward", "clipscore"), "'clip_score'? choose"),
        (("evaluate", "STUDY", "--name", "x", "--reward", "clipscore"), "mean 'clip_score'"),
        (("evaluate", "STUDY", "--model", "runs/align-x"), "choose one of runs/align-rwr"),
        (("weights", "STUDY", "--to", "w", "--model", "align-x"), "choose one of runs/align-rwr"),
        (("generate", "STUDY", "--model", "runs/align-rwx"), "mean 'runs/align-rwr'? choose one"),
        (("generate", "STUDY", "--prompts", "trian"), "trian"),
    ],
)
def test_unknown_names(study_path: Path, arguments: tuple[str, ...], says: str) -> None:
    filled = [str(study_path) if a == "STUDY" else a for a in arguments]
    refused(*filled, says=says, unchanged=study_path)


def test_unknown_family(tmp_path: Path) -> None:
    pipeline = Path(shutil.copytree(tinyworld.paths().pipeline, tmp_path / "pipeline"))
    edit_json(pipeline / "model_index.json", _class_name="StableDifusionPipeline")
    study = tmp_path / "study"
    assert run_sayso("new", study, "--base-model", pipeline).returncode == 0
    assert run_sayso("prompts", study, "--set", "tinyworld").returncode == 0
    refused("generate", study, says="StableDifusionPipeline", unchanged=study)


def first_sample(study: Path) -> dict[str, str]:
    return json.loads((study / "samples.jsonl").read_text().splitlines()[0])


def test_truncated_image(study_path: Path) -> None:
    image = study_path / first_sample(study_path)["path"]
    image.write_bytes(image.read_bytes()[:200])
    shutil.rmtree(study_path / "cache", ignore_errors=True)
    refused(
        "rate", study_path, "--simulated", "--prompts", "train", "--seed", 9,
        says=image.name, unchanged=study_path,
    )  # fmt: skip
    refused("fit", study_path, "--name", "again", says=image.name)


def test_rating_for_an_image_that_is_gone(study_path: Path) -> None:
    (study_path / first_sample(study_path)["path"]).unlink()
    refused("fit", study_path, "--name", "again", says="missing", unchanged=study_path)


def test_rating_for_a_sample_without_record(study_path: Path) -> None:
    lines = (study_path / "samples.jsonl").read_text().splitlines(keepends=True)
    (study_path / "samples.jsonl").write_text("".join(lines[1:]))
    refused("fit", study_path, "--name", "again", says="rating", unchanged=study_path)


@pytest.mark.parametrize(("only", "missing"), [("good", "bad"), ("bad", "good")])
def test_ratings_of_one_kind(study_path: Path, only: str, missing: str) -> None:
    database = sqlite3.connect(study_path / "feedback.db")
    database.execute("UPDATE ratings SET value = ?", (only,))
    database.commit()
    database.close()
    refused("fit", study_path, "--name", "again", says=missing, unchanged=study_path)


def test_prompt_the_tokenizer_would_cut(tmp_path: Path) -> None:
    study, texts = tmp_path / "study", tmp_path / "prompts.txt"
    texts.write_text("two cats\n" + "five green cats in the forest and " * 9 + "\n")
    assert run_sayso("new", study).returncode == 0
    refused("prompts", study, "--file", texts, says="five green cats", unchanged=study)


def spoil(weights: Path, key: str) -> None:
    """Put a NaN into one tensor of a safetensors file."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(weights)
    tensors[key] = torch.full_like(tensors[key], float("nan"))
    save_file(tensors, weights)


def test_nan_in_the_reward(study_path: Path) -> None:
    from safetensors.torch import load_file

    weights = next((study_path / "runs/fit-clip_head/weights").glob("*.safetensors"))
    spoil(weights, next(iter(load_file(weights))))
    refused("align", study_path, "--name", "again", says="NaN")


def test_nan_in_the_loss(study_path: Path) -> None:
    """A learning rate that explodes: the loop stops and names the step; what was saved stays."""
    line = refused(
        "align", study_path, "--name", "wild", "--learning-rate", 1e30, "--max-grad-norm", 1e30,
        "--max-steps", 40, "--batch-size", 8, "--pretraining-images", 16, "--checkpoint-every", 1,
        "--warmup-steps", 0, "--mixed-precision", "no", says="step",
    )  # fmt: skip
    assert "nan" in line.lower() or "inf" in line
    assert not (study_path / "runs/align-wild/result.json").exists()


def test_weights_that_are_not_safetensors(tmp_path: Path) -> None:
    pipeline = Path(shutil.copytree(tinyworld.paths().pipeline, tmp_path / "pipeline"))
    weights = next((pipeline / "unet").glob("*.safetensors"))
    weights.rename(weights.with_suffix(".bin"))
    study = tmp_path / "study"
    assert run_sayso("new", study, "--base-model", pipeline).returncode == 0
    assert run_sayso("prompts", study, "--set", "tinyworld").returncode == 0
    refused("generate", study, says="safetensors", unchanged=study)


def test_half_written_run(study_path: Path) -> None:
    run = study_path / "runs/fit-clip_head"
    (run / "config.json").unlink()
    refused("fit", study_path, says="is incomplete", unchanged=study_path)
    refused("align", study_path, "--name", "again", says="fit-clip_head", unchanged=study_path)


def test_same_name_other_config(study_path: Path) -> None:
    line = refused("align", study_path, "--learning-rate", 0.125, says="exists with other options")
    assert "learning_rate" in line
    assert "0.125" in line


def test_full_disk(tmp_path: Path) -> None:
    """Records never name files that did not fit; with more room the command goes on."""
    with small_disk(tmp_path / "disk", "300k") as disk:
        study = disk / "study"
        assert run_sayso("new", study).returncode == 0
        assert (
            run_sayso("prompts", study, "--train", 24, "--test", 16, "--fidelity", 0).returncode
            == 0
        )
        refused("generate", study, "--batch-size", 8, says="disk is full")
        rows = (study / "samples.jsonl").read_text().splitlines()
        assert all((study / json.loads(row)["path"]).exists() for row in rows)
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        assert run_sayso("generate", study, "--batch-size", 8).returncode == 0
        assert len((study / "samples.jsonl").read_text().splitlines()) == 24 * 4


def test_read_only_study(study_path: Path) -> None:
    folders = [study_path, *(p for p in study_path.rglob("*") if p.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    command = [sys.executable, "-m", "sayso", "fit", str(study_path), "--name", "again"]
    if IS_ROOT:  # root may write everywhere unless it gives that right away
        drop = "-dac_override,-dac_read_search"
        command = ["setpriv", f"--inh-caps={drop}", f"--bounding-set={drop}", *command]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("sayso: error: ")
    assert "read-only" in done.stderr or "permission" in done.stderr
