"""Width and height are two numbers everywhere: typed, stored, drawn, imported."""

import json
from pathlib import Path

import pytest
import torch
from models import tiny_pipeline
from PIL import Image
from safetensors.torch import load_file

from sayso.base.errors import UserError
from sayso.base.records import sampler_from_row
from sayso.base.samplers import parse_size
from sayso.base.types import Sampler, Size, sample_id
from sayso.cli import commands as cli
from sayso.data.pretraining_images import open_pretraining
from sayso.study.study import Study

OLD_ROW = {"num_inference_steps": 6, "guidance_scale": 3.0, "eta": 0.0, "negative_prompt": "sea"}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study of images that are wider than high, with pre-training images higher than wide."""
    folder = tmp_path_factory.mktemp("wide")
    tiny_pipeline(folder / "model")
    images = folder / "images"
    images.mkdir()
    lines = [{"file_name": f"{i}.png", "text": "a"} for i in range(24)]
    (images / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for i in range(24):
        picture = Image.new("RGB", (40, 60), (0, 0, 255))
        picture.paste((255, 0, 0), (0, 20, 40, 40))
        picture.save(images / f"{i}.png")
    path = str(folder / "study")
    cli.run([
        "new", path, "--base-model", str(folder / "model"), "--image-size", "48x32",
        "--pretraining", str(images), "--num-inference-steps", "2",
    ])  # fmt: skip
    cli.run(["prompts", path, "--train", "4", "--test", "2", "--fidelity", "1"])
    cli.run(["generate", path, "--per-prompt", "1"])
    return Study.open(Path(path))


@pytest.mark.parametrize("text", ["1024x768", "1024X768", "1024×768", " 1024x768 "])
def test_width_comes_first(text: str) -> None:
    assert parse_size(text) == Size(width=1024, height=768)


def test_one_number_is_a_square() -> None:
    assert parse_size("512") == Size(512, 512)


@pytest.mark.parametrize("text", ["", "64x", "x64", "64x64x64", "-64", "64.0", "wide"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UserError, match="give width x height such as 1024x768"):
        parse_size(text)


def test_ids_of_square_images_are_those_of_earlier_versions() -> None:
    """The number was computed before there were other sizes."""
    sampler = Sampler(6, 3.0, 0.0, Size(64, 64), "sea")
    assert sample_id("p", "base", 7, sampler, "m") == "453f7a9871b8edcb"


def test_width_and_height_make_another_id() -> None:
    sizes = [Size(64, 64), Size(64, 32), Size(32, 64)]
    ids = {sample_id("p", "base", 7, Sampler(6, 3.0, 0.0, size), "m") for size in sizes}
    assert len(ids) == 3


def test_records_of_earlier_versions_are_squares() -> None:
    row = OLD_ROW | {"image_size_px": 64}
    assert sampler_from_row(row, "here") == Sampler(6, 3.0, 0.0, Size(64, 64), "sea")


@pytest.mark.parametrize("size", [64, [64], [64, "64"], [64, 64.5], [True, 64], "64x64", None])
def test_a_damaged_size_is_refused(size: object) -> None:
    with pytest.raises(UserError, match=r"here has image_size .*; restore it"):
        sampler_from_row(OLD_ROW | {"image_size": size}, "here")


def test_images_and_latents_have_the_size(wide: Study) -> None:
    samples = wide.samples("base")
    assert {sample.sampler.image_size for sample in samples} == {(48, 32)}
    for sample in samples:
        with Image.open(wide.path / sample.path) as picture:
            assert picture.size == (48, 32)
    latents = load_file(wide.path / samples[0].latents)
    assert latents[samples[0].id].shape == (4, 16, 24)


def test_one_command_may_draw_another_size(wide: Study) -> None:
    cli.run(["generate", str(wide.path), "--per-prompt", "1", "--prompts", "test",
             "--image-size", "32x64", "--name", "high"])  # fmt: skip
    drawn = [s for s in wide.samples("base") if s.sampler.image_size == Size(32, 64)]
    assert len(drawn) == len(wide.prompts("test"))
    with Image.open(wide.path / drawn[0].path) as picture:
        assert picture.size == (32, 64)


def test_pretraining_images_are_cropped_not_squeezed(wide: Study) -> None:
    """Of 40 × 60 the middle 40 × 26.7 is kept: the red third and a little blue on both sides."""
    picture = next(iter(open_pretraining(wide).train_images(0, 1)))
    assert picture.size == (48, 32)
    column = torch.tensor([picture.getpixel((24, y)) for y in range(32)])
    assert 20 <= (column[:, 0] > 128).sum() <= 26
    assert column[0, 2] > 128
    assert column[-1, 2] > 128


def test_an_old_config_file_still_says_the_size(wide: Study, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"image_size_px": 32, "num_inference_steps": 2}))
    study = str(tmp_path / "study")
    cli.run(["new", study, "--base-model", wide.info.base_model, "--config", str(config)])
    assert Study.open(Path(study)).info.sampler.image_size == Size(32, 32)


def test_the_tiny_worlds_scenes_are_squares(tmp_path: Path) -> None:
    path = str(tmp_path / "study")
    cli.run(["new", path, "--image-size", "96x64"])
    with pytest.raises(UserError, match=r"image_size 96x64 .* are squares"):
        open_pretraining(Study.open(Path(path)))
