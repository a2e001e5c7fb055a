"""Pre-training images: two parts that never meet, in a fixed order."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from sayso.errors import UserError
from sayso.pretraining import open_pretraining
from sayso.stages.new import NewConfig, new
from sayso.study import Study


def folder_study(tmp_path: Path, n: int = 20) -> Study:
    folder = tmp_path / "natural"
    folder.mkdir()
    rows = [{"file_name": f"{i}.png", "text": f"picture {i}"} for i in range(n)]
    for i in range(n):
        Image.new("RGB", (40, 24), (i, 0, 0)).save(folder / f"{i}.png")
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return new(tmp_path / "study", NewConfig(pretraining=str(folder), image_size_px=16))


def tiny(tmp_path: Path, seed: int = 0) -> Study:
    return new(tmp_path / f"tiny-{seed}", NewConfig(seed=seed))


def test_tiny_world_repeats_and_grows(tmp_path: Path):
    first = open_pretraining(tiny(tmp_path))
    captions, images = first.train(6)
    again, more = open_pretraining(Study.open(tmp_path / "tiny-0")).train(9)
    assert again[:6] == captions
    assert [m.tobytes() for m in more[:6]] == [i.tobytes() for i in images]
    assert images[0].size == (64, 64)
    assert images[0].mode == "RGB"


def test_tiny_world_parts_and_seeds_differ(tmp_path: Path):
    source, other = open_pretraining(tiny(tmp_path)), open_pretraining(tiny(tmp_path, seed=1))
    pictures = [source.train(20)[1], source.heldout(20)[1], other.train(20)[1]]
    assert len({image.tobytes() for part in pictures for image in part}) == 60
    assert source.heldout_captions(20) == source.heldout(20)[0]


def test_tiny_world_captions_are_careless(tmp_path: Path):
    captions = open_pretraining(tiny(tmp_path)).heldout_captions(400)
    told = sum(c.split()[0] in ("one", "two", "three", "four", "five") for c in captions) / 400
    assert told < 0.9


def test_folder_parts_are_disjoint_and_whole(tmp_path: Path):
    source = open_pretraining(folder_study(tmp_path))
    train, heldout = source.train(99)[0], source.heldout(99)[0]
    assert (len(train), len(heldout)) == (18, 2)
    assert not set(train) & set(heldout)
    assert source.heldout_captions(99) == heldout
    assert source.train(3)[0] == train[:3]


def test_folder_images_are_square_and_belong_to_their_captions(tmp_path: Path):
    captions, images = open_pretraining(folder_study(tmp_path)).train(18)
    for caption, image in zip(captions, images, strict=True):
        assert image.size == (16, 16)
        assert image.getpixel((8, 8)) == (int(caption.split()[1]), 0, 0)


def test_order_of_the_file_does_not_matter(tmp_path: Path):
    study = folder_study(tmp_path)
    before = open_pretraining(study).heldout_captions(9)
    file = tmp_path / "natural" / "metadata.jsonl"
    file.write_text("".join(reversed(file.read_text().splitlines(keepends=True))))
    assert open_pretraining(study).heldout_captions(9) == before


def test_none(tmp_path: Path):
    study = tiny(tmp_path)
    study.info = replace(study.info, pretraining="")
    with pytest.raises(UserError, match="no pre-training images"):
        open_pretraining(study)


def test_missing_and_truncated_images_are_named(tmp_path: Path):
    study = folder_study(tmp_path, n=2)
    for i in range(2):
        file = tmp_path / "natural" / f"{i}.png"
        file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(UserError, match=r"natural/\d.png is damaged"):
        open_pretraining(study).train(1)
    for i in range(2):
        (tmp_path / "natural" / f"{i}.png").unlink()
    with pytest.raises(UserError, match=r"natural/\d.png is missing"):
        open_pretraining(study).train(1)


@pytest.mark.parametrize("line", ['{"file_name": "a.png"}', '{"file_name": "a.png", "text": 3}'])
def test_bad_metadata_is_named(tmp_path: Path, line: str):
    study = folder_study(tmp_path)
    (tmp_path / "natural" / "metadata.jsonl").write_text(f"{line}\n")
    with pytest.raises(UserError, match=r"metadata.jsonl line 1 needs"):
        open_pretraining(study)
    (tmp_path / "natural" / "metadata.jsonl").unlink()
    with pytest.raises(UserError, match=r"metadata.jsonl is missing"):
        open_pretraining(study)
