"""Sample grids: pictures of the weights of the moment that leave no trace in the training."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from loops import ALIGNER, OPTIONS, killed_at, run_at, work
from PIL import Image, ImageFont
from studies import rated_study
from test_processes import TWO, launched
from test_trackers import board_of
from torch import nn

from sayso.aligners.sft import GoodImages
from sayso.base import contact_sheet as contact_sheet_module
from sayso.base.contact_sheet import SIDE_PX, contact_sheet, lacking, spaced, tiles
from sayso.base.devices import make_accelerator
from sayso.base.errors import UserError
from sayso.base.types import Sampler
from sayso.reporting.sample_strip import sample_strip
from sayso.stages.align import AlignConfig, align
from sayso.study.run import Run
from sayso.study.study import Study
from sayso.testing import ToyPolicy
from sayso.training import loop as training
from sayso.training.options import MOST_PROMPTS, TrainOptions
from sayso.training.sample_grids import SampleGrids, SamplePrompts
from sayso.training.trackers import Trackers

PLAIN = AlignConfig(
    aligner="sft", name="plain", max_steps=5, batch_size=4, checkpoint_every=3,
    mixed_precision="no",
)  # fmt: skip
SAMPLED = dataclasses.replace(PLAIN, name="sampled", sample_every=2)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    made = rated_study(tmp_path_factory.mktemp("grids"))
    align(made, PLAIN, GoodImages())
    align(made, SAMPLED, GoodImages())
    return made


def weights(run: Run) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in run.weights.rglob("*.safetensors")}


def pixels(run: Run) -> dict[int, Any]:
    return {step: np.asarray(Image.open(path)) for step, path in run.sample_grids().items()}


# the training


def test_the_training_is_the_same_to_the_bit(study: Study) -> None:
    plain, sampled = (study.find_run(f"align-{name}") for name in ("plain", "sampled"))
    assert weights(plain) == weights(sampled)
    losses = [[row["loss"] for row in run.history()] for run in (plain, sampled)]
    assert losses[0] == losses[1]
    assert sampled.result["evaluations"] == plain.result["evaluations"] > 0
    assert [*sampled.sample_grids()] == [0, 2, 4]
    assert not plain.sample_grids()


def test_a_killed_run_ends_the_same_grids_and_all(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the grid of step 4, which is in no checkpoint; it is drawn again."""
    config = dataclasses.replace(SAMPLED, name="killed")
    with killed_at(monkeypatch, 4):
        align(study, config, GoodImages())
    killed = study.path / "runs" / "align-killed" / "samples" / "step-000004.png"
    killed.unlink()
    run = align(study, config, GoodImages())
    whole = study.find_run("align-sampled")
    assert weights(run) == weights(whole)
    assert pixels(run).keys() == pixels(whole).keys()
    for step, grid in pixels(whole).items():
        # the title has the name of the run
        assert np.array_equal(pixels(run)[step][60:], grid[60:]), step


class Dropping(ToyPolicy):
    """Has dropout, whose noise is the process's own generator's."""

    def __init__(self) -> None:
        super().__init__(8)
        self.network.insert(2, nn.Dropout(0.5))
        self.modes = list[bool]()

    def sample(self, *args: Any, **named: Any) -> Any:
        self.modes.append(self.network.training or torch.is_grad_enabled())
        torch.rand(3)
        return super().sample(*args, **named)


@pytest.mark.parametrize("compiled", [False, True])
def test_dropout_modes_and_random_numbers_stay(tmp_path: Path, compiled: bool) -> None:
    def trained(name: str, *, grids: bool) -> Dropping:
        torch.manual_seed(3)
        policy, accelerator = Dropping(), make_accelerator("no")
        policy.network[1].training = True
        shown = SamplePrompts.encoded(policy, PROMPTS, TOY, accelerator)
        training.train(
            work(policy=policy), ALIGNER, dataclasses.replace(OPTIONS, compile=compiled),
            run_at(tmp_path / name), accelerator, SampleGrids(shown, 2, 2) if grids else None,
        )  # fmt: skip
        return policy

    plain, sampled = trained("plain", grids=False), trained("grids", grids=True)
    for one, other in zip(plain.network.parameters(), sampled.network.parameters(), strict=True):
        assert torch.equal(one, other)
    # of three prompts two at a time, at steps 0, 2 and 4
    assert sampled.modes == [False] * 6


PROMPTS = [("0", 5), ("1", 6), ("2", 7)]
TOY = Sampler(num_inference_steps=3, guidance_scale=1.0)

LAUNCH = """
import dataclasses, sys
from pathlib import Path

from sayso.aligners.sft import GoodImages
from sayso.stages.align import AlignConfig, align
from sayso.study.study import Study

study = Study.open(Path(sys.argv[1]) / "study")
for sharding in ("none", "full"):
    for every in (0, 2):
        align(study, AlignConfig(
            aligner="sft", name=f"{sharding}-{every}", max_steps=5, batch_size=4,
            mixed_precision="no", sharding=sharding, sample_every=every,
        ), GoodImages())
"""


@pytest.mark.slow
def test_processes_of_a_launch_stay_in_step(tmp_path: Path) -> None:
    """Copies: the main process draws; shards: all draw. Both give one process's pictures."""
    study = rated_study(tmp_path)
    done = launched(LAUNCH, tmp_path, *TWO)
    assert done.returncode == 0, done.stderr
    one = pixels(align(study, SAMPLED, GoodImages()))
    for sharding in ("none", "full"):
        plain, sampled = (study.find_run(f"align-{sharding}-{every}") for every in (0, 2))
        assert weights(plain) == weights(sampled), sharding
        for step, grid in pixels(sampled).items():
            difference = grid[60:].astype(int) - one[step][60:]
            assert np.abs(difference).max() <= 2, (sharding, step)


# the pictures


def test_a_grid_shows_prompts_and_begins_with_the_studys_own_images(study: Study) -> None:
    grids = study.find_run("align-sampled").sample_grids()
    with Image.open(grids[0]) as sheet:
        shown = dict(tiles(sheet))
    texts = {prompt.id: prompt.text for prompt in study.prompts("train")}
    assert [*shown] == [*texts.values()]
    first = {texts[s.prompt_id]: s for s in reversed(study.samples("base")) if s.prompt_id in texts}
    for text, picture in shown.items():
        own = study.image(first[text]).resize(picture.size, Image.Resampling.NEAREST)
        assert np.abs(np.asarray(own).astype(int) - np.asarray(picture)).max() <= 6, text


def test_ones_own_prompts_and_those_that_are_refused(study: Study, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a blue dog\n\n  two   cats \n")
    config = dataclasses.replace(SAMPLED, name="own", sample_prompts=str(file), max_steps=1)
    run = align(study, config, GoodImages())
    with Image.open(run.sample_grid(0)) as sheet:
        assert [caption for caption, _ in tiles(sheet)] == ["a blue dog", "two cats"]
    with pytest.raises(UserError, match="give --sample-every too"):
        dataclasses.replace(config, sample_every=0).check()
    with pytest.raises(UserError, match="sample_every -1 is too small"):
        dataclasses.replace(config, sample_every=-1).check()
    with pytest.raises(UserError, match=r"nowhere\.txt is missing"):
        dataclasses.replace(config, sample_prompts=str(tmp_path / "nowhere.txt")).check()
    for n in (0, MOST_PROMPTS + 1):
        file.write_text("a\n" * n)
        with pytest.raises(UserError, match=f"has {n} prompts; give 1 to {MOST_PROMPTS}"):
            config.check()
    file.write_text("long " * 200)
    with pytest.raises(UserError, match="would be truncated"):
        align(study, dataclasses.replace(config, name="long"), GoodImages())
    assert not (study.path / "runs" / "align-long").exists()


def test_they_are_no_part_of_a_run(study: Study) -> None:
    assert {"sample_every", "sample_prompts"} <= TrainOptions.portions
    assert align(study, dataclasses.replace(SAMPLED, sample_every=1), GoodImages()).finished


def test_an_image_that_is_not_finite_is_a_grey_field(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken(ToyPolicy):
        def decode(self, latents: Any) -> Any:
            images = super().decode(latents)
            return torch.where(latents[:, :1] == self.first, torch.nan, images)

        def sample(self, *args: Any, **named: Any) -> Any:
            latents = super().sample(*args, **named)
            self.first = latents[0, 0, 0, 0]
            return latents

    policy, accelerator, run = Broken(8), make_accelerator("no"), run_at(tmp_path / "r")
    shown = SamplePrompts.encoded(policy, PROMPTS, TOY, accelerator)
    SampleGrids(shown, 1, 8).draw(
        3, policy, accelerator, run, Trackers(run, accelerator, ()), sharded=False, compiled=False
    )
    assert "1 of 3 images of the sample grid of step 3 are not" in capsys.readouterr().err
    with Image.open(run.sample_grid(3)) as sheet:
        fields = [np.asarray(picture) for _, picture in tiles(sheet)]
    assert (fields[0] == 0xD9).all()
    assert not (fields[1] == 0xD9).all()


def test_a_contact_sheet_can_be_taken_apart_again(tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (32, 16), (i * 9, 0, 0)) for i in range(6)]
    captions = [f"caption {i}" for i in range(5)] + ["of very many words " * 20]
    sheet = contact_sheet(pictures, captions, "title")
    sheet.image.save(tmp_path / "s.png", pnginfo=sheet.png_info())
    with Image.open(tmp_path / "s.png") as read:
        found = tiles(read)
    assert [caption for caption, _ in found] == captions
    for i, (_, picture) in enumerate(found):
        assert picture.size == (SIDE_PX, SIDE_PX // 2)
        assert picture.getextrema() == ((i * 9, i * 9), (0, 0), (0, 0))
    assert tiles(pictures[0]) == []


@pytest.mark.parametrize("size", [(1024, 512), (3, 700), (256, 256), (300, 300)])
def test_large_pictures_are_made_smaller(size: tuple[int, int]) -> None:
    [box] = contact_sheet([Image.new("RGB", size)], ["x" * 400], "t").boxes
    width, height = box[2] - box[0], box[3] - box[1]
    assert max(width, height) == SIDE_PX
    assert width == max(1, round(size[0] * SIDE_PX / max(size)))


def test_letters_that_pillows_font_lacks_come_from_the_systems(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = contact_sheet_module.font_for("a cat, 3", 13)
    assert lacking(plain, "a cat, 3") == 0
    assert lacking(plain, "Bär Öl ä") == 2

    def truetype(name: str, height: int) -> Any:
        if name == "none.ttf":
            raise OSError("cannot open resource")
        return {"worse.ttf": plain, "better.ttf": better}[name]

    better = _Better()
    monkeypatch.setattr(contact_sheet_module, "FONTS", ("none.ttf", "worse.ttf", "better.ttf"))
    monkeypatch.setattr(contact_sheet_module.ImageFont, "truetype", truetype)
    monkeypatch.setattr(contact_sheet_module.ImageFont, "load_default", lambda height: plain)
    assert contact_sheet_module.font_for("Bär", 13) is better
    assert contact_sheet_module.font_for("bar", 13) is not better


class _Better(ImageFont.ImageFont):
    """Has every letter."""

    def getmask(self, text: str, *_args: Any, **_named: Any) -> Any:
        return _Mask(text)


class _Mask(bytes):
    """Each character is another one's."""

    size = (1, 1)

    def __new__(cls, character: str) -> "_Mask":
        return super().__new__(cls, character.encode())


def test_evenly_spaced() -> None:
    assert spaced(range(9), 3) == [0, 4, 8]
    assert spaced(range(2), 8) == [0, 1]
    assert spaced(range(5), 1) == [0]
    assert spaced([], 3) == []


# where else they are shown


def test_tensorboard_has_them_once(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(SAMPLED, name="tracked", tracker="tensorboard")
    with killed_at(monkeypatch, 4):
        align(study, config, GoodImages())
    run = align(study, config, GoodImages())
    shown = board_of(run)
    assert [event.step for event in shown.Images("samples")] == [0, 2, 4]
    assert [event.step for event in shown.Scalars("loss")] == [1, 2, 3, 4, 5]
    noted = json.loads((run.path / "trackers.json").read_text())
    assert (noted["tensorboard"]["step"], noted["tensorboard"]["shown"]) == (5, 4)


def test_other_trackers_have_them_once_and_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = list[tuple[str, int | None]]()

    class Fake(GeneralTracker):
        name = "fake"
        requires_logging_directory = False
        tracker = None

        def __init__(self, *_args: Any, **_named: Any) -> None:
            super().__init__()

        def log(self, values: dict[str, Any], step: int | None = None, **_named: Any) -> None:
            sent.append((next(iter(values)), step))

        def log_images(self, values: dict[str, Any], step: int | None, **_named: Any) -> None:
            [picture] = values["samples"]
            assert isinstance(picture, Image.Image)
            sent.append(("samples", step))

    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "wandb", Fake)
    run, accelerator = run_at(tmp_path / "r"), make_accelerator("no")
    for start in (0, 1):
        trackers = Trackers(run, accelerator, ("wandb",))
        with trackers.begun(start):
            for step in (1, 2, 3):
                trackers.log([{"step": step, "loss": 0.1}])
                trackers.show(step, Image.new("RGB", (8, 8)))
    assert sent == [(name, step) for step in (1, 2, 3) for name in ("loss", "samples")]


def test_the_report_shows_a_strip(study: Study, tmp_path: Path) -> None:
    run = study.find_run("align-sampled")
    strip = sample_strip(run)
    assert strip is not None
    assert strip.prompts == ["a dog", "two cats", "red sea"]
    assert [(step, len(urls)) for step, urls in strip.rows] == [(0, 3), (2, 3), (4, 3)]
    assert all(url.startswith("data:image/webp;base64,") for _, urls in strip.rows for url in urls)
    assert sample_strip(None) is None
    assert sample_strip(study.find_run("align-plain")) is None


def test_a_strip_leaves_out_other_prompts_and_what_is_no_grid(tmp_path: Path) -> None:
    run = run_at(tmp_path / "r")
    run.sample_grid(0).parent.mkdir()
    for step, captions in {0: ["old"], 1: ["new"], 2: ["new"]}.items():
        sheet = contact_sheet([Image.new("RGB", (8, 8))], captions, "t")
        sheet.image.save(run.sample_grid(step), pnginfo=sheet.png_info())
    run.sample_grid(3).write_bytes(b"no picture")
    Image.new("RGB", (8, 8)).save(run.sample_grid(4))
    strip = sample_strip(run)
    assert strip is not None
    assert (strip.prompts, [step for step, _ in strip.rows]) == (["new"], [1, 2])
