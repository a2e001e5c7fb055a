"""HPS and ImageReward equal their architectures, written out in their authors' names."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import published
import pytest
import torch
from own_blip import AuthorsImageReward
from own_clip import MEAN, STD, OpenClip
from PIL import Image
from torch import Tensor
from transformers import BertTokenizer, CLIPTokenizer

from sayso.base.errors import UserError
from sayso.data.clip import to_pixels
from sayso.rewards import Reward, load_reward
from sayso.rewards.hps import Hps
from sayso.rewards.image_reward import ImageReward
from sayso.study.info import StudyInfo
from sayso.study.study import Study

TEXTS = ["a dog", "two cats on red", "sea"]
LONG = ["a red cat and " * 9 + text for text in TEXTS]
BICUBIC = Image.Resampling.BICUBIC
SIZES = [(16, 16), (32, 32), (44, 20), (20, 50)]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """An empty study; shared, not to be changed."""
    return Study.create(tmp_path_factory.mktemp("parity") / "study", StudyInfo("s"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("published")


@pytest.fixture(scope="module")
def hps(study: Study, files: Path) -> Reward:
    return load_reward(study, published.add(study, "hps", files))


@pytest.fixture(scope="module")
def image_reward(study: Study, files: Path) -> Reward:
    return load_reward(study, published.add(study, "image_reward", files))


def pictures(width: int, height: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    coarse = [rng.integers(0, 256, (5, 7, 3), dtype=np.uint8) for _ in TEXTS]
    return [Image.fromarray(c).resize((width, height), BICUBIC) for c in coarse]


def stacked(images: list[Image.Image]) -> Tensor:
    return torch.stack([to_pixels(image) for image in images])


@pytest.mark.parametrize("texts", [TEXTS, LONG], ids=["short", "long"])
@pytest.mark.parametrize("size", SIZES)
def test_hps_is_the_cosine_of_its_open_clip(
    hps: Reward, files: Path, size: tuple[int, int], texts: list[str]
) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(files / "words-of-hps")
    model = OpenClip(len(json.loads((files / "words-of-hps" / "vocab.json").read_text())))
    model.load_state_dict(torch.load(files / "hps.pt")["state_dict"])
    most = len(model.positional_embedding)
    rows = [tokenizer(text, truncation=True, max_length=most)["input_ids"] for text in texts]
    tokens = torch.tensor([row + [0] * (most - len(row)) for row in rows])
    images = pictures(*size)
    with torch.no_grad():
        expected = model.score(images, tokens)
    assert expected.std() > 1e-3
    torch.testing.assert_close(hps.score(stacked(images), texts), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("texts", [TEXTS, LONG], ids=["short", "long"])
@pytest.mark.parametrize("size", SIZES)
def test_image_reward_is_its_authors_network(
    image_reward: Reward, files: Path, size: tuple[int, int], texts: list[str]
) -> None:
    model = AuthorsImageReward(len(published.BERT_WORDS) + 2)
    model.load_state_dict(torch.load(files / "ImageReward.pt"), strict=False)
    tokenizer = BertTokenizer.from_pretrained(files / "words-of-image-reward")
    read = tokenizer(
        texts, padding="max_length", truncation=True, max_length=35, return_tensors="pt"
    )
    images = pictures(*size)
    seen = image_reward._preprocessing(stacked(images))
    with torch.no_grad():
        expected = model.score(seen, read.input_ids, read.attention_mask)
    assert expected.std() > 1e-3
    found = image_reward.score(stacked(images), texts)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [(32, 32), (45, 21), (20, 50), (300, 200), (201, 333)])
def test_image_reward_sees_what_pillow_would_make(
    image_reward: Reward, size: tuple[int, int]
) -> None:
    """Levels of 255 are the same, but for one in a hundred that is the next one."""
    images, short = pictures(*size), min(size)
    small = [i.resize((size[0] * 32 // short, size[1] * 32 // short), BICUBIC) for i in images]
    corners = [((i.width - 32) // 2, (i.height - 32) // 2) for i in small]
    square = [i.crop((x, y, x + 32, y + 32)) for i, (x, y) in zip(small, corners, strict=True)]
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    found = image_reward._preprocessing(stacked(images)) * std + mean
    apart = ((found - stacked(square)) * 255).abs()
    assert apart.max() < 1.01
    assert (apart > 0.01).float().mean() < 0.015


def test_padding_of_a_prompt_does_not_count_and_its_words_do(image_reward: Reward) -> None:
    image = stacked(pictures(32, 32))[:1]
    alone = image_reward.score(image, ["a dog"])
    assert not torch.isclose(alone, image_reward.score(image, ["a dot"]), atol=1e-5)


# a wrong map must fail

Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def without(name: str) -> Change:
    return lambda tensors: {k: v for k, v in tensors.items() if not k.startswith(name)}


def renamed(old: str, new: str) -> Change:
    return lambda tensors: {k.replace(old, new): v for k, v in tensors.items()}


WRONG = [
    ("hps", without("visual.proj"), "lacks .*visual.proj"),
    ("hps", without("transformer.resblocks.0.attn.in_proj_bias"), "lacks .*self_attn"),
    ("hps", without("visual.transformer.resblocks.1"), "lacks .*vision_model.encoder.layers.1"),
    ("hps", renamed("ln_pre", "ln_before"), "lacks .*visual.ln_pre.* does not know .*ln_before"),
    ("hps", renamed("mlp.c_proj", "mlp.out"), "does not know .*resblocks.0.mlp.out"),
    ("hps", lambda t: t | {"extra": torch.zeros(2)}, "does not know .*extra"),
    ("hps", lambda t: t | {"text_projection": torch.zeros(9, 9)}, "wrong shape.*text_projection"),
    ("hps", renamed("visual.", "module.visual."), "begin with 'module.'"),
    ("hps", lambda t: t | {"visual.proj": t["visual.proj"] * float("nan")}, "NaN or infinite"),
    ("image_reward", without("blip.visual_encoder.cls_token"), "lacks .*class_embedding"),
    ("image_reward", without("mlp.layers.6"), "lacks .*mlp.layers.6"),
    ("image_reward", without("blip.text_encoder.encoder.layer.1.cross"), "lacks .*crossattention"),
    ("image_reward", without("blip.visual_encoder.blocks.1"), "lacks .*vision.encoder.layers.1"),
    ("image_reward", renamed("attn.qkv", "attn.kqv"), "does not know .*attn.kqv"),
    ("image_reward", renamed("blip.", "model.blip."), "lacks .* does not know .*model.blip"),
    ("image_reward", lambda t: t | {"blip.itm_head": torch.zeros(2)}, "does not know .*itm_head"),
    ("image_reward", lambda t: t | {"mlp.layers.7.bias": torch.full((1,), torch.inf)}, "infinite"),
]


@pytest.mark.parametrize(("name", "change", "said"), WRONG, ids=[f"{n}: {s}" for n, _, s in WRONG])
def test_weights_that_are_not_the_authors_are_refused(
    files: Path, tmp_path: Path, hps: Reward, image_reward: Reward,
    name: str, change: Change, said: str,
) -> None:  # fmt: skip
    reward = hps if name == "hps" else image_reward
    published_file = files / {"hps": "hps.pt", "image_reward": "ImageReward.pt"}[name]
    found = torch.load(published_file)
    torch.save(change(found.get("state_dict", found)), tmp_path / "weights.pt")
    parts = {"weights": tmp_path / "weights.pt", "tokenizer": files / f"words-of-{name}"}
    with pytest.raises(UserError) as refused:
        reward.convert(parts, tmp_path)
    assert re.search(said, str(refused.value)), refused.value
    assert str(tmp_path / "weights.pt") in str(refused.value)


@pytest.mark.parametrize("kind", [Hps, ImageReward])
def test_options_out_of_range_are_refused(kind: type[Reward], files: Path) -> None:
    with pytest.raises(UserError, match="text_layers 0 is too small"):
        kind(text_layers=0)
    file = {Hps: "hps.pt", ImageReward: "ImageReward.pt"}[kind]
    odd = kind(vision_heads=7, vision_layers=2, text_heads=2, text_layers=1)
    with pytest.raises(UserError, match="vision_heads 7 does not divide the 24 numbers"):
        odd.convert({"weights": files / file, "tokenizer": files}, files / "unused")


def test_each_version_of_hps_is_published_in_its_own_file() -> None:
    files = [Hps(version=version).places()["weights"] for version in ("2.0", "2.1")]
    assert len(set(files)) == 2
    reward = Hps()
    reward.version = "3"  # as from a file of options
    with pytest.raises(UserError, match=r"version '3'; choose 2.0 or 2.1"):
        reward.__post_init__()
