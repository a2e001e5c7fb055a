"""What can be known early is said early: names, sizes and lengths, before anything is drawn."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from models import VAE, edit, spoiled, tiny_pipeline
from PIL import Image
from studies import random_study, rated_study

from sayso.base.errors import UserError
from sayso.base.types import Size
from sayso.stages.align import AlignConfig, align
from sayso.stages.generate import GenerateConfig, generate
from sayso.stages.moved import MovedConfig, moved
from sayso.stages.new import NewConfig, new
from sayso.stages.prompts import PromptsConfig, write_prompts
from sayso.study.model_files import native_size
from sayso.study.study import Study

LONG = "z" * 60


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipeline(tmp_path_factory.mktemp("sd") / "p")


@pytest.mark.parametrize("name", ["./typo", "../typo", "/no/such/model", "~/typo", "a/b/c", "typo"])
@pytest.mark.parametrize("field", ["base_model", "clip_model"])
def test_new_refuses_a_model_that_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    kind = field.split("_")[0]
    with pytest.raises(
        UserError, match=f"(?i){kind} model '{name}' is neither a folder nor a hub id"
    ):
        new(tmp_path / "s", NewConfig(**{field: name}))
    assert not (tmp_path / "s").exists()


def test_new_refuses_a_folder_that_is_no_model(tmp_path: Path, model: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty' is a folder without model_index\.json"):
        new(tmp_path / "s", NewConfig(base_model=str(tmp_path / "empty")))
    with pytest.raises(UserError, match=r"p' is a folder without config\.json"):
        new(tmp_path / "s", NewConfig(clip_model=str(model)))


def test_new_takes_a_folder_and_a_hub_id(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(model.parent))
    info = new(tmp_path / "a", NewConfig(base_model="~/p", clip_model="owner/clip-1.0")).info
    assert (info.base_model, info.clip_model) == (str(model), "owner/clip-1.0")


def test_new_knows_the_models_size(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def made(name: str, **options: object) -> tuple[Size, str]:
        size = new(tmp_path / name, NewConfig(base_model=str(model), **options)).info.sampler
        return size.image_size, capsys.readouterr().err

    assert made("default") == (Size(32, 32), "")
    assert made("same", image_size="32") == (Size(32, 32), "")
    size, said = made("other", image_size="64x48")
    assert size == Size(64, 48)
    assert "was trained on images of 32x32 pixels; this study's have 64x48" in said


def test_size_of_an_old_file_is_diffusers(tmp_path: Path, model: Path) -> None:
    assert native_size(str(model)) == Size(32, 32)
    assert native_size("owner/not-fetched") is None
    copy = Path(shutil.copytree(model, tmp_path / "copy"))
    config = json.loads((copy / "unet/config.json").read_text())
    (copy / "unet/config.json").write_text(json.dumps(config | {"_diffusers_version": "0.8.1"}))
    assert native_size(str(copy)) == Size(128, 128)
    (copy / "unet/config.json").write_text("{")
    assert native_size(str(copy)) is None


def pictures(folder: Path, caption: str) -> str:
    folder.mkdir()
    rows = [{"file_name": f"{i}.png", "text": caption} for i in range(40)]
    for row in rows:
        Image.new("RGB", (32, 32)).save(folder / row["file_name"])
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def test_long_held_out_captions_are_said_when_prompts_are_made(tmp_path: Path, model: Path) -> None:
    natural = pictures(tmp_path / "natural", LONG)
    study = new(tmp_path / "s", NewConfig(base_model=str(model), pretraining=natural))
    says = rf"natural(/metadata\.jsonl)?, held out, has \d texts .* '{LONG}' with 60 tok"
    with pytest.raises(UserError, match=says):
        write_prompts(study, PromptsConfig(train=8, test=4, fidelity=2))
    # so they can still be mended
    metadata = tmp_path / "natural/metadata.jsonl"
    metadata.write_text(metadata.read_text().replace(LONG, "a cat"))
    made = write_prompts(study, PromptsConfig(train=8, test=4, fidelity=2))
    assert made.result["fidelity"] == 2


def test_long_prompts_of_a_file_too(tmp_path: Path, model: Path) -> None:
    study = new(tmp_path / "s", NewConfig(base_model=str(model)))
    (tmp_path / "mine.txt").write_text(f"a cat\n{LONG}\n")
    config = PromptsConfig(file=str(tmp_path / "mine.txt"), fidelity=0)
    with pytest.raises(UserError, match=f"has 1 texts .* '{LONG}' with 60 tokens; it reads 38"):
        write_prompts(study, config)
    assert not study.has_prompts


def test_without_the_tokenizer_it_is_said_later(tmp_path: Path) -> None:
    study = new(tmp_path / "s", NewConfig(base_model="owner/not-fetched"))
    (tmp_path / "mine.txt").write_text(f"a cat\n{LONG}\n")
    assert write_prompts(study, PromptsConfig(file=str(tmp_path / "mine.txt"), fidelity=0)).finished


def test_align_says_how_many_captions_are_cut(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = rated_study(tmp_path)
    monkeypatch.setattr("sayso.stages._training_data.open_conditions", lambda *_: 1 / 0)
    monkeypatch.setattr("sayso.stages._ready.rewards_of", lambda *_: [0.5] * 12)
    natural = (torch.zeros(2, 4, 16, 16), ["a cat", LONG])
    monkeypatch.setattr("sayso.stages._training_data.encoded_pretraining", lambda *_, **__: natural)
    with pytest.raises(ZeroDivisionError):
        align(study, AlignConfig(max_steps=1, batch_size=4, reward="clip_score"))
    said = " ".join(capsys.readouterr().err.split())
    assert "1 of 2 captions of pre-training images are too long for the model" in said


def test_a_study_is_told_where_its_models_lie_now(tmp_path: Path, model: Path) -> None:
    study = random_study(tmp_path)
    config = GenerateConfig(per_prompt=1)
    generate(study, config)
    place = (tmp_path / "model").rename(tmp_path / "elsewhere")
    again = dataclasses.replace(config, per_prompt=2, name="again")
    with pytest.raises(UserError, match="no model at"):
        generate(study, again)
    with pytest.raises(UserError, match="give the model that was moved"):
        moved(study, MovedConfig())
    found = moved(study, MovedConfig(base_model=str(place)))
    assert Study.open(study.path).info == found.info
    assert (found.info.base_model, found.info.clip_model) == (str(place), "tinyworld")
    assert generate(found, again).result["drawn"] == 3


def test_another_model_is_not_the_moved_one(tmp_path: Path) -> None:
    study = random_study(tmp_path)
    generate(study, GenerateConfig(per_prompt=1))
    other = Path(shutil.copytree(tmp_path / "model", tmp_path / "other"))
    edit(other / VAE, spoiled("decoder.conv_out.bias", 0.5))
    with pytest.raises(UserError, match=f"other is not the model .*generate-base-train .*{VAE}"):
        moved(study, MovedConfig(base_model=str(other)))
    with pytest.raises(UserError, match="owner/name is not on this machine"):
        moved(study, MovedConfig(base_model="owner/name"))
    assert Study.open(study.path).info == study.info


def test_the_native_size_of_a_hub_id_is_read_from_the_local_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the hub's client leaves a model there; nothing is fetched."""
    cached = tmp_path / "hub/models--owner--name"
    tiny_pipeline(cached / "snapshots/0123abcd")
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text("0123abcd")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert native_size("owner/name") == Size(32, 32)
