"""Pre-training images: two parts that never meet, in a fixed order."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from sayso.base.errors import UserError
from sayso.base.types import Prompt, digest
from sayso.data.pretraining_images import (
    HELDOUT_SHARE,
    PretrainingSet,
    is_held_out,
    open_pretraining,
)
from sayso.data.pretraining_images.folder import Folder
from sayso.prompts.grammar import make_prompt
from sayso.stages.new import NewConfig, new
from sayso.stages.prompts import PromptsConfig, write_prompts
from sayso.study.study import Study


def folder_study(tmp_path: Path, n: int = 20) -> Study:
    folder = tmp_path / "natural"
    folder.mkdir()
    rows = [{"file_name": f"{i}.png", "text": f"picture {i}"} for i in range(n)]
    for i in range(n):
        Image.new("RGB", (40, 24), (i, 0, 0)).save(folder / f"{i}.png")
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return new(tmp_path / "study", NewConfig(pretraining=str(folder), image_size="16"))


def tiny(tmp_path: Path, seed: int = 0) -> Study:
    return new(tmp_path / f"tiny-{seed}", NewConfig(seed=seed))


def train(source: PretrainingSet, n: int) -> tuple[list[str], list[Image.Image]]:
    captions = source.train_captions(n)
    return captions, list(source.train_images(0, len(captions)))


def test_tiny_world_repeats_and_grows(tmp_path: Path):
    first = open_pretraining(tiny(tmp_path))
    captions, images = train(first, 6)
    again, more = train(open_pretraining(Study.open(tmp_path / "tiny-0")), 9)
    assert again[:6] == captions
    assert [m.tobytes() for m in more[:6]] == [i.tobytes() for i in images]
    assert images[0].size == (64, 64)
    assert images[0].mode == "RGB"


def test_tiny_world_parts_and_seeds_differ(tmp_path: Path):
    source, other = open_pretraining(tiny(tmp_path)), open_pretraining(tiny(tmp_path, seed=1))
    pictures = [train(source, 20)[1], list(source.heldout_images(20)), train(other, 20)[1]]
    assert len({image.tobytes() for part in pictures for image in part}) == 60


def test_tiny_world_captions_are_careless(tmp_path: Path):
    captions = open_pretraining(tiny(tmp_path)).heldout_captions(400)
    told = sum(c.split()[0] in ("one", "two", "three", "four", "five") for c in captions) / 400
    assert told < 0.9


def test_folder_parts_are_disjoint_and_whole(tmp_path: Path):
    source = open_pretraining(folder_study(tmp_path))
    learned, heldout = source.train_captions(99), source.heldout_captions(99)
    assert len(learned) + len(heldout) == 20
    assert 0 < len(heldout) < 8
    assert not set(learned) & set(heldout)
    assert len(list(source.heldout_images(99))) == len(heldout)
    assert source.train_captions(3) == learned[:3]


def test_folder_images_are_square_and_belong_to_their_captions(tmp_path: Path):
    captions, images = train(open_pretraining(folder_study(tmp_path)), 18)
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
    with pytest.raises(UserError, match=r"natural/\d.png cannot be read"):
        train(open_pretraining(study), 1)
    for i in range(2):
        (tmp_path / "natural" / f"{i}.png").unlink()
    with pytest.raises(UserError, match=r"natural/\d.png is missing"):
        train(open_pretraining(study), 1)


@pytest.mark.parametrize("line", ['{"file_name": "a.png"}', '{"file_name": "a.png", "text": 3}'])
def test_bad_metadata_is_named(tmp_path: Path, line: str):
    study = folder_study(tmp_path)
    (tmp_path / "natural" / "metadata.jsonl").write_text(f"{line}\n")
    with pytest.raises(UserError, match=r"metadata.jsonl line 1 needs"):
        open_pretraining(study)
    (tmp_path / "natural" / "metadata.jsonl").unlink()
    with pytest.raises(UserError, match=r"metadata.jsonl is missing"):
        open_pretraining(study)


def metadata(tmp_path: Path) -> Path:
    return tmp_path / "natural" / "metadata.jsonl"


def parts(study: Study) -> dict[str, set[str]]:
    """The captions of each part; no picture is read."""
    source = open_pretraining(study)
    assert isinstance(source, Folder)
    return {part: {row.text for row in source.rows(part, 0)} for part in ("train", "heldout")}


def test_a_tenth_is_held_out_by_each_picture_s_own_name():
    names = [f"{i:06}.jpg" for i in range(20_000)]
    share = sum(map(is_held_out, names)) / len(names)
    assert share == pytest.approx(HELDOUT_SHARE, abs=0.01)


def test_no_line_moves_a_picture_between_the_parts(tmp_path: Path):
    """Deleted and added one by one: whoever stays, stays where it was."""
    study = folder_study(tmp_path, n=60)
    before, lines = parts(study), metadata(tmp_path).read_text().splitlines(keepends=True)
    assert len(before["heldout"]) >= 3
    for i, line in enumerate(lines):
        text = json.loads(line)["text"]
        metadata(tmp_path).write_text("".join(lines[:i] + lines[i + 1 :]))
        assert parts(study) == {part: texts - {text} for part, texts in before.items()}
    more = [json.dumps({"file_name": f"new-{i}.png", "text": f"new {i}"}) + "\n" for i in range(50)]
    metadata(tmp_path).write_text("".join(more + lines))
    after = parts(study)
    assert all(texts <= after[part] for part, texts in before.items())


def test_every_caption_of_a_picture_is_kept_on_one_side(tmp_path: Path):
    study = folder_study(tmp_path, n=30)
    rows = [
        {"file_name": f"{i}.png", "text": f"picture {i} in words {k}"}
        for k in range(5)
        for i in range(30)
    ]
    metadata(tmp_path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = open_pretraining(study)
    captions, images = train(source, 999)
    learned = {int(c.split()[1]) for c in captions}
    assert len(captions) == len(set(captions)) == 5 * len(learned)
    assert all(
        int(c.split()[1]) == i.getpixel((8, 8))[0] for c, i in zip(captions, images, strict=True)
    )
    assert len({c.split()[1] for c in captions[: len(learned)]}) == len(learned), (
        "all pictures first"
    )
    heldout = source.heldout_captions(999)
    numbers = {int(c.split()[1]) for c in heldout}
    assert len(heldout) == len(numbers), "a held-out picture counts once"
    assert learned | numbers == set(range(30))
    assert not learned & numbers


def earlier_rule(names: list[str]) -> list[str]:
    """Held out before: the first tenth of all names in the order of their hashes."""
    return sorted(names, key=digest)[: max(1, round(len(names) / 10))]


def as_before(study: Study) -> Study:
    """The study as a version without the field wrote it."""
    row = json.loads((study.path / "study.json").read_text())
    del row["held_out"]
    (study.path / "study.json").write_text(json.dumps(row))
    return Study.open(study.path)


def with_fidelity(study: Study, texts: list[str]) -> Study:
    study.write_prompts([Prompt("t", "a dog", "c", {}, "train")] + [
        make_prompt(t, "fidelity", "fidelity", n=i + 1) for i, t in enumerate(texts)
    ])  # fmt: skip
    return study


def test_a_study_with_fidelity_prompts_of_before_keeps_its_parts(tmp_path: Path):
    n = next(
        n for n in range(20, 90)
        if len(earlier_rule([f"{i}.png" for i in range(n)]))
        > sum(is_held_out(f"{i}.png") for i in range(n))
    )  # fmt: skip
    study = folder_study(tmp_path, n)
    held = [f"picture {name[:-4]}" for name in earlier_rule([f"{i}.png" for i in range(n)])]
    by_name = parts(study)
    assert by_name["heldout"] < set(held)
    old = as_before(study)
    # with no prompts, with few and with all: the first captions are those of both rules
    for texts in ([], held[:1], held):
        with_fidelity(old, texts)
        assert parts(old)["heldout"] == set(held)
        assert not parts(old)["train"] & set(held)
    # captions of neither rule
    with_fidelity(old, [*held, "no picture has this"])
    assert parts(old) == by_name


def test_a_new_study_holds_out_by_name_with_few_prompts_too(tmp_path: Path):
    study = folder_study(tmp_path, n=100)
    before = parts(study)
    assert len(before["heldout"]) == 9
    assert len(earlier_rule([f"{i}.png" for i in range(100)])) == 10
    with_fidelity(study, open_pretraining(study).heldout_captions(1))
    assert parts(Study.open(study.path)) == before


def test_another_rule_in_study_json_is_refused(tmp_path: Path):
    file = tiny(tmp_path).path / "study.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"held_out": "by chance"}))
    with pytest.raises(
        UserError, match=r'study\.json has held_out "by chance"; give first tenth or'
    ):
        Study.open(file.parent)


def test_captions_that_changed_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    study = folder_study(tmp_path, n=60)
    with_fidelity(study, open_pretraining(study).heldout_captions(3))
    capsys.readouterr()
    open_pretraining(study)
    assert capsys.readouterr().err == ""
    lines = metadata(tmp_path).read_text().splitlines(keepends=True)
    gone = next(p.text for p in study.prompts("fidelity"))
    metadata(tmp_path).write_text("".join(t for t in lines if f'"{gone}"' not in t))
    open_pretraining(study)
    assert "has changed since" in " ".join(capsys.readouterr().err.split())


def test_a_folder_that_holds_nothing_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    study = folder_study(tmp_path, n=2)
    assert parts(study)["heldout"] == set()
    own = tmp_path / "p.txt"
    own.write_text("a dog\n")
    with pytest.raises(UserError, match=r"none of the images .* is held out"):
        write_prompts(study, PromptsConfig(file=str(own), fidelity=4))
    write_prompts(study, PromptsConfig(file=str(own)))
    assert "0 fidelity prompts, one for each" in capsys.readouterr().err
