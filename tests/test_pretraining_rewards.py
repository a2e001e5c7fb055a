"""Pre-training images drawn in proportion to the reward for their captions."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from clips import tiny_clip
from loops import killed_at
from PIL import Image
from safetensors.torch import load_file
from studies import rated_study

from sayso.aligners import Work
from sayso.base.errors import UserError
from sayso.base.types import Size
from sayso.data.pretraining_images import is_held_out, open_pretraining
from sayso.data.rows import TrainingRows
from sayso.rewards import Reward, load_reward
from sayso.stages import _training_data
from sayso.stages.align import AlignConfig, align
from sayso.study.study import Study
from sayso.testing import toy_work
from sayso.testing.toy import toy_rows
from sayso.training import pretraining_rewards as scoring
from sayso.training.pretraining_rewards import pretraining_rewards

CPU = torch.device("cpu")
WEIGHTS = "diffusion_pytorch_model.safetensors"
CONFIG = AlignConfig(
    aligner="sft", max_steps=6, batch_size=8, checkpoint_every=2, mixed_precision="no",
    pretraining_weight=0.5, pretraining_fraction=0.5, pretraining_draw="reward",
)  # fmt: skip
BRIGHTNESS = '''
from dataclasses import dataclass
from sayso.rewards import Reward

@dataclass
class Brightness(Reward):
    """How white an image is, if its caption says so."""

    def score(self, images, prompts):
        says = images.new_tensor([float("white" in prompt) for prompt in prompts])
        return images.flatten(1).mean(1) * says - OFFSET
'''


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """Pre-training images of one grey each; of every third the caption is right."""
    study = rated_study(tmp_path)
    folder = tmp_path / "natural"
    folder.mkdir()
    lines = []
    for i in range(40):
        Image.new("RGB", (32, 32), (6 * i, 6 * i, 6 * i)).save(folder / f"{i}.png")
        text = "a white wall" if i % 3 == 0 else "a dog"
        lines.append(json.dumps({"file_name": f"{i}.png", "text": text}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    info = study.path / "study.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"pretraining": str(folder)}))
    (tmp_path / "bright.py").write_text(BRIGHTNESS.replace("OFFSET", "0"))
    return Study.open(study.path)


def bright(study: Study) -> str:
    return str(study.path.parent / "bright.py")


def numbers(study: Study) -> list[int]:
    """The numbers of the pre-training images, in order."""
    pictures = open_pretraining(study, Size(32, 32)).train_pictures([(0, 40)])
    return [picture.getpixel((0, 0))[0] // 6 for picture in pictures]  # pyright: ignore


def expected(greys: list[int]) -> list[float]:
    return [6 * i / 255 * (i % 3 == 0) for i in greys]


def test_each_image_is_scored_for_its_own_caption(study: Study) -> None:
    greys = numbers(study)
    assert len(greys) == sum(not is_held_out(f"{i}.png") for i in range(40)) > 30
    found = pretraining_rewards(study, bright(study), 1000, Size(32, 32), CPU)
    assert found.tolist() == pytest.approx(expected(greys))


def test_they_are_scored_once(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    first = pretraining_rewards(study, bright(study), 8, Size(32, 32), CPU)
    with monkeypatch.context() as patch:
        patch.setattr(scoring, "load_reward", None)
        again = pretraining_rewards(study, bright(study), 8, Size(32, 32), CPU)
    assert torch.equal(first, again)
    # another reward, other captions and other images are other scores
    Path(bright(study)).write_text(BRIGHTNESS.replace("OFFSET", "-1"))
    other = pretraining_rewards(study, bright(study), 8, Size(32, 32), CPU)
    assert other.tolist() == pytest.approx([x + 1 for x in first.tolist()])
    metadata = study.path.parent / "natural/metadata.jsonl"
    metadata.write_text(metadata.read_text().replace("a dog", "a white dog"))
    changed = pretraining_rewards(study, bright(study), 8, Size(32, 32), CPU)
    assert changed.tolist() == pytest.approx([6 * i / 255 + 1 for i in numbers(study)[:8]])


@pytest.mark.parametrize("buckets", [None, [0] * 4 + [1] * 8])
def test_each_is_drawn_in_proportion(buckets: list[int] | None) -> None:
    share = torch.tensor([0.0, 0.5, 1.0, 0.1] * 3)
    rows = replace(toy_rows(), pretraining_share=share)
    if buckets:
        rows = replace(rows, bucket=torch.tensor(buckets), sizes=[Size(64, 64), Size(72, 56)])
    work = toy_work(data=rows, n_pretraining=4, max_steps=900)
    # the toy's latents are points, whatever the size: each is its own
    points = rows.latents[rows.pretraining][:, 0, 0, 0]
    drawn = [work.pretraining_batch(step) for step in work.steps]
    found = torch.cat([batch["latents"][:, 0, 0, 0] for batch in drawn if batch])
    counts = (found[:, None] == points).sum(0)
    wanted = len(found) * share / share.sum()
    assert len(found) == 3600
    assert counts.tolist() == pytest.approx(wanted.tolist(), rel=0.15)


NEAR = '''
from dataclasses import dataclass
from torch.nn import functional as F
from sayso.rewards import ClipReward

@dataclass
class Near(ClipReward):
    """CLIP's cosine, above 0."""

    def score_embeddings(self, images, texts):
        return 1 + F.cosine_similarity(images, texts, dim=1)
'''
LONG = "a very long caption " * 3


def near(study: Study) -> str:
    """A reward on CLIP, with a CLIP that knows small letters alone and at most 48 of them."""
    info, own = study.path / "study.json", study.path.parent / "near.py"
    own.write_text(NEAR)
    clip = str(tiny_clip(study.path.parent / "clip"))
    info.write_text(json.dumps(json.loads(info.read_text()) | {"clip_model": clip}))
    return str(own)


def recaption(study: Study, captions: dict[int, str]) -> None:
    metadata = study.path.parent / "natural/metadata.jsonl"
    rows = [json.loads(line) for line in metadata.read_text().splitlines()]
    rows = [row | {"text": captions.get(i, row["text"])} for i, row in enumerate(rows)]
    metadata.write_text("\n".join(map(json.dumps, rows)))


def test_a_shard_that_lacks_a_tensor_is_not_taken_for_one_that_has_it(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As shards did from before captions were counted."""
    scored = partial(pretraining_rewards, study, near(study), 1000, Size(32, 32), CPU)
    before = scored()
    monkeypatch.setattr(scoring, "READ", "another")
    assert torch.equal(scored(), before)


def test_a_clip_reward_over_several_shards(
    study: Study, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Damaged images, long captions and some that cannot be read, in several shards."""
    monkeypatch.setattr(scoring, "IMAGES_A_SHARD", 8)
    monkeypatch.setattr(scoring, "BATCH_SIZE", 3)
    greys, name = numbers(study), near(study)
    unread, damaged = [greys[0], greys[13], greys[-1]], greys[5]
    long = [greys[2], greys[20], greys[-2]]
    recaption(study, dict.fromkeys(unread, "a café") | dict.fromkeys(long, LONG))
    (study.path.parent / f"natural/{damaged}.png").write_bytes(b"no picture")
    study = Study.open(study.path)
    scored = partial(pretraining_rewards, study, name, 1000, Size(32, 32), CPU)
    refused = rf"3 of {len(greys)} captions .* does not know, such as 'a café' \(.*--leave-out-dam"
    for _ in range(2):
        with pytest.raises(UserError, match=refused):
            scored()
        said = capsys.readouterr().err
        assert said.count(f"3 of {len(greys)} captions of pre-training images are longer") == 1
        assert "prompts are longer" not in said
    with monkeypatch.context() as patch:
        patch.setattr(scoring, "load_reward", None)
        found = scored(leave_out_damaged=True)
    said = capsys.readouterr().err.replace("\n", " ")
    assert "such as 'a café'" in said
    assert said.rstrip().endswith("their images are left out")
    listed = study.cache / "pretraining/captions-not-read.txt"
    assert listed.read_text().splitlines() == ["'a café'"] * 3
    assert len(list(study.cache.glob("pretraining/reward/*"))) == -(-len(greys) // 8)
    reward: Any = load_reward(study, name)
    reward.clip.cuts_texts = True
    texts = open_pretraining(study, Size(32, 32)).train_captions(1000)
    for grey, text, score in zip(greys, texts, found.tolist(), strict=True):
        if grey in (*unread, damaged):
            assert score == 0
            continue
        picture = Image.new("RGB", (32, 32), (6 * grey,) * 3)
        assert score == pytest.approx(reward.score_pictures([picture], [text], [""]).item())


def test_a_reward_below_0_is_found_in_the_first_batch(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "BATCH_SIZE", 4)
    Path(bright(study)).write_text(BRIGHTNESS.replace("OFFSET", "2"))
    shown = list[int]()
    scores = Reward.score_pictures

    def score_pictures(self: Reward, *given: Any) -> torch.Tensor:
        shown.append(len(given[1]))
        return scores(self, *given)

    monkeypatch.setattr(Reward, "score_pictures", score_pictures)
    with pytest.raises(UserError, match=r"is -\d.* for a pre-training image"):
        align(study, replace(CONFIG, reward=bright(study)))
    assert shown == [4]
    assert not list(study.cache.glob("pretraining/**/*.safetensors")), "nothing was encoded yet"


def test_buckets_that_are_impossible_are_found_before_images_are_scored(study: Study) -> None:
    with pytest.raises(UserError, match="bucket_step 5 does not divide"):
        align(study, replace(CONFIG, reward=bright(study), bucket_step=5))
    assert not list(study.cache.glob("pretraining/reward/*"))


@pytest.mark.parametrize("what", ["image", "caption", "reward", "CLIP"])
def test_a_run_resumes_with_the_same_images_and_reward_alone(
    study: Study, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    config = replace(CONFIG, reward=near(study), name="cut", pretraining_images=30)
    natural, grey = study.path.parent / "natural", numbers(study)[0]
    study = Study.open(study.path)
    with killed_at(monkeypatch, 4):
        align(study, config)
    if what == "image":
        Image.new("RGB", (32, 32)).save(natural / f"{grey}.png")
    elif what == "caption":
        recaption(study, {grey: "another"})
    elif what == "reward":
        Path(config.reward).write_text(NEAR.replace("1 +", "2 +"))
    else:
        tiny_clip(study.path.parent / "clip", seed=1)
    named = "pre-training images" if what in ("image", "caption") else "reward .*near.py"
    with pytest.raises(UserError, match=f"changed since it began: {named}"):
        align(Study.open(study.path), config)


def test_damaged_images_move_no_other(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    greys = numbers(study)
    bad = greys.index(30)
    (study.path.parent / "natural/30.png").write_bytes(b"no picture")
    rows: list[TrainingRows] = []

    class Stop(Exception):
        """Training would begin."""

    def work_of(*given: Any, **options: Any) -> Work:
        rows.append(next(x for x in given if isinstance(x, TrainingRows)))
        raise Stop

    monkeypatch.setattr(_training_data, "work_of", work_of)
    with pytest.raises(UserError, match=r"30\.png"):
        align(study, replace(CONFIG, reward=bright(study)))
    with pytest.raises(Stop):
        align(study, replace(CONFIG, reward=bright(study), leave_out_damaged=True))
    share = [x for i, x in enumerate(expected(greys)) if i != bad]
    assert rows[0].shares().tolist() == pytest.approx(share)


@pytest.mark.parametrize(
    ("offset", "says"),
    [
        ("0.5", "is -0.5 for a pre-training image"),
        ("images.flatten(1).mean(1) * says", "is 0 for every pre-training image"),
        ("says[:, None]", r"gave scores of shape \[8, 8\] for 8 images"),
        ("float('nan')", "is NaN or infinite for pre-training image 1;"),
    ],
)
def test_rewards_that_cannot_be_shares(study: Study, offset: str, says: str) -> None:
    Path(bright(study)).write_text(BRIGHTNESS.replace("OFFSET", offset))
    with pytest.raises(UserError, match=says):
        pretraining_rewards(study, bright(study), 8, Size(32, 32), CPU)


def test_a_killed_run_ends_the_same(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONFIG, reward=bright(study))
    whole = load_file(align(study, replace(config, name="whole")).weights / "unet" / WEIGHTS)
    with killed_at(monkeypatch, 4):
        align(study, replace(config, name="cut"))
    cut = load_file(align(study, replace(config, name="cut")).weights / "unet" / WEIGHTS)
    assert all(torch.equal(whole[k], cut[k]) for k in whole)
    sources = study.find_run("runs/align-cut").inputs["sources"]  # pyright: ignore
    assert any(key.startswith("reward") for key in sources)


def test_it_is_refused_where_no_pretraining_images_are_trained_on(study: Study) -> None:
    with pytest.raises(UserError, match="none are trained on; give --pretraining-weight"):
        align(study, replace(CONFIG, reward=bright(study), pretraining_weight=None))
    assert not list(study.runs("align"))
