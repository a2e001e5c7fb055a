"""Pre-training images from folders, shards, parquet files and datasets: one surface."""

import os
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import datasets
import fsspec
import pyarrow.parquet as pq
import pytest
import torch
from disks import small_disk
from natural import (
    DAMAGED,
    KINDS,
    N,
    natural_study,
    png,
    table,
    write_jsonl,
    write_parquet,
    write_saved,
    write_tars,
)
from PIL import Image

from sayso.base.errors import UserError
from sayso.base.types import Size
from sayso.cli.commands import _disk_trouble
from sayso.data.pretraining_images import Damaged, open_pretraining
from sayso.data.pretraining_images._decoding import decoded
from sayso.data.pretraining_images.filters import all_hold, parse_filter
from sayso.data.pretraining_latents import encoded_pretraining
from sayso.families._loading import load_policy
from sayso.stages._forecast import _pretraining
from sayso.stages.new import NewConfig, new
from sayso.study.study import Study

CPU = torch.device("cpu")
SIZE = Size(16, 16)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def of_kind(folder: Path, kind: str, damaged: tuple[int, ...] = (), **options: str) -> Study:
    return natural_study(folder, KINDS[kind](folder / "natural", damaged), **options)


def number(caption: str) -> int:
    return int(caption.split()[1])


# what is there


def test_every_kind_has_the_same_pictures(tmp_path: Path, kind: str) -> None:
    images = open_pretraining(of_kind(tmp_path, kind), SIZE)
    captions, heldout = images.train_captions(99), images.heldout_captions(99)
    assert {number(c) for c in (*captions, *heldout)} == set(range(N))
    assert 0 < len(heldout) < 12
    for caption, image in zip(captions, images.train_images(0, 99), strict=True):
        assert (image.size, image.getpixel((8, 8))) == (SIZE, (number(caption), 0, 0))
    for caption, image in zip(heldout, images.heldout_images(99), strict=True):
        assert image.getpixel((8, 8)) == (number(caption), 0, 0)
    some = list(images.train_pictures([(1, 3), (7, 8)]))
    assert [i.getpixel((8, 8))[0] for i in some] == [number(captions[i]) for i in (1, 2, 7)]


def test_n_and_one_begin_with_n_and_only_packs_that_are_needed_are_looked_through(
    tmp_path: Path, kind: str
) -> None:
    study = of_kind(tmp_path, kind)
    few = open_pretraining(study).train_captions(5)
    assert open_pretraining(study).train_captions(33)[:5] == few
    assert open_pretraining(study).train_count(5) == 5
    if kind == "tars":
        study = natural_study(tmp_path / "again", study.info.pretraining)
        open_pretraining(study).train_captions(5)
        assert len(list((study.cache / "pretraining/index").iterdir())) == 1


def test_what_a_shard_holds_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = of_kind(tmp_path, "tars")
    first = open_pretraining(study).train_captions(99)
    monkeypatch.setattr(tarfile, "open", lambda *_, **__: pytest.fail("it is looked through again"))
    assert open_pretraining(study).train_captions(99) == first


def test_a_filter_takes_some_and_counts_the_others(tmp_path: Path, kind: str) -> None:
    study = of_kind(tmp_path, kind, filter="aesthetic >= 6 and aesthetic < 9.25")
    images = open_pretraining(study)
    captions = [*images.train_captions(99), *images.heldout_captions(99)]
    assert {number(c) for c in captions} == set(range(24, 37))
    assert images.about() == "27 not aesthetic >= 6 and aesthetic < 9.25"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"filter": "beauty >= 6"}, "no column 'beauty'; its columns are .*aesthetic"),
        ({"caption": "alt"}, "alt.*its columns are .*aesthetic"),
    ],
)
def test_a_column_that_is_not_there_is_said_with_those_that_are(
    tmp_path: Path, kind: str, options: dict[str, str], message: str
) -> None:
    study = of_kind(tmp_path, kind, **options)
    with pytest.raises(UserError, match=message):
        open_pretraining(study).train_captions(99)


@pytest.mark.parametrize("kind", ["tars", "parquet", "saved"])
def test_an_image_column_that_is_not_there(tmp_path: Path, kind: str) -> None:
    study = of_kind(tmp_path, kind, image="jpg")
    with pytest.raises(UserError, match=r"no column 'jpg'; its columns are .*aesthetic"):
        open_pretraining(study).train_captions(99)


def test_other_columns_may_be_named(tmp_path: Path) -> None:
    rows = table().rename_columns(["picture", "alt", "aesthetic"])
    pq.write_table(rows, tmp_path / "a.parquet")
    source = str(tmp_path / "*.parquet")
    with pytest.raises(
        UserError, match=r"no column of captions with a known name; .* picture, alt"
    ):
        open_pretraining(natural_study(tmp_path / "a", source)).train_captions(9)
    study = natural_study(tmp_path / "b", source, image="picture", caption="alt")
    assert number(open_pretraining(study).train_captions(1)[0]) < N
    assert next(open_pretraining(study).train_images(0, 1)).mode == "RGB"


def test_several_captions_of_a_row_are_all_taken_and_rows_without_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = table().drop_columns("text").to_pydict()
    rows["text"] = [[f"picture {i} a", f"picture {i} b"] for i in range(N - 3)] + [[], None, [" "]]
    data = datasets.Dataset.from_dict(rows)
    data.to_parquet(tmp_path / "a.parquet")
    study = natural_study(tmp_path, str(tmp_path / "a.parquet"))
    images = open_pretraining(study, SIZE)
    captions = images.train_captions(99)
    learned = {number(c) for c in captions}
    assert len(captions) == 2 * len(learned)
    assert [c.split()[2] for c in captions] == ["a"] * len(learned) + ["b"] * len(learned)
    assert [i.getpixel((8, 8))[0] for i in images.train_images(0, 99)] == list(
        map(number, captions)
    )
    assert {number(c) for c in images.heldout_captions(99)} == set(range(N - 3)) - learned
    assert images.about() == "3 without caption or image"
    encoded_pretraining(study, load_policy(study, "base", CPU), 2)
    assert "left out: 3 without caption or image" in capsys.readouterr().err


def test_splits(tmp_path: Path) -> None:
    for write in (write_parquet, write_saved):
        folder = tmp_path / write.__name__
        source = write(folder / "natural")
        study = natural_study(folder, source, split="test")
        images = open_pretraining(study)
        assert len([*images.train_captions(99), *images.heldout_captions(99)]) == 3
        study.info = replace(study.info, pretraining_split="valid")
        with pytest.raises(UserError, match=r"unknown split of .*choose one of test, train"):
            open_pretraining(study)
    study = natural_study(tmp_path / "t", write_tars(tmp_path / "tars"), split="train")
    with pytest.raises(UserError, match="has no splits"):
        open_pretraining(study)


# what they are known by


def test_identities_stand_for_contents(tmp_path: Path) -> None:
    study = of_kind(tmp_path, "tars")
    before = open_pretraining(study)
    whole, first, last = identities(study)
    assert identities(study) == [whole, first, last]
    before.size = Size(24, 16)  # pyright: ignore
    assert before.train_identity(99) != whole
    file = tmp_path / "natural/003.tar"
    file.write_bytes(file.read_bytes().replace(b"picture 35", b"picture 95"))
    now = identities(study)
    assert now[1] == first
    assert now[0] != whole
    assert now[2] != last


def identities(study: Study) -> list[str]:
    images = open_pretraining(study, SIZE)
    n = images.train_count(99)
    return [images.train_identity(99), images.images_identity(0, 4),
            images.images_identity(n - 4, n)]  # fmt: skip


def test_a_dataset_of_the_hub_stays_at_its_revision_and_needs_no_network_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = fsspec.filesystem("memory")
    with memory.open("/datasets/owner/name@1a2b/train.parquet", "wb") as file:
        pq.write_table(table(), file, row_group_size=6)
    asked = []

    def builder(name: str) -> SimpleNamespace:
        asked.append(name)
        files = {"train": ["memory://datasets/owner/name@1a2b/train.parquet"]}
        return SimpleNamespace(config=SimpleNamespace(data_files=files))

    monkeypatch.setattr(datasets, "load_dataset_builder", builder)
    study = natural_study(tmp_path, "owner/name", filter="aesthetic >= 1")
    images = open_pretraining(study, SIZE)
    captions = images.train_captions(99)
    assert [i.getpixel((8, 8))[0] for i in images.train_images(0, 99)] == list(
        map(number, captions)
    )
    assert "@1a2b" in images.row_identity(images.rows("train", 1)[0])  # pyright: ignore
    memory.rm("/datasets", recursive=True)
    assert open_pretraining(study, SIZE).train_captions(99) == captions
    assert open_pretraining(study, SIZE).train_identity(9) == images.train_identity(9)
    assert asked == ["owner/name"]


def test_the_hub_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    study = natural_study(tmp_path, "nobody/nothing")
    with pytest.raises(UserError, match="'nobody/nothing': it cannot be found on the hub"):
        open_pretraining(study).train_captions(1)
    assert not (study.cache / "pretraining").exists()


# bad input


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nowhere", "there is no such folder; give a folder with metadata.jsonl"),
        ("natural/{000..004}.tar", r"there is no file .*004\.tar"),
        ("natural/*.parquet", r"no file matches .*natural/\*\.parquet"),
    ],
)
def test_what_new_refuses(
    tmp_path: Path, given: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tars(tmp_path / "natural")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        new(tmp_path / "study", NewConfig(pretraining=given))
    with pytest.raises(
        UserError, match="pretraining_filter 'nice' is not a condition; give a column"
    ):
        new(tmp_path / "study", NewConfig(pretraining_filter="nice"))
    with pytest.raises(UserError, match="--pretraining-filter is for images in files"):
        new(tmp_path / "study", NewConfig(pretraining_filter="aesthetic >= 6"))
    assert not (tmp_path / "study").exists()


def test_new_keeps_the_whole_path_and_the_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tars(tmp_path / "natural")
    monkeypatch.chdir(tmp_path)
    config = NewConfig(
        pretraining="natural/{000..003}.tar", pretraining_filter="aesthetic>=6",
        pretraining_caption="txt",
    )  # fmt: skip
    study = Study.open(new(tmp_path / "study", config).path)
    assert study.info.pretraining == str(tmp_path / "natural/{000..003}.tar")
    monkeypatch.chdir("/")
    assert open_pretraining(study).train_count(99) < 16
    assert new(tmp_path / "s", NewConfig(pretraining="o/n")).info.pretraining == "o/n"


def test_files_that_are_not_whole_are_named(tmp_path: Path) -> None:
    tars, parquet = (tmp_path / name for name in ("tars", "parquet"))
    write_tars(tars)
    write_parquet(parquet)
    for file, says in (
        (tars / "001.tar", "is damaged or not a tar file"),
        (parquet / "data/train-00000-of-00002.parquet", "is damaged or not a Parquet file"),
    ):
        content = file.read_bytes()
        file.write_bytes(content[: len(content) * 2 // 3])
        study = natural_study(tmp_path / f"{file.stem}-study", str(file))
        with pytest.raises(UserError, match=f"{file} {says}"):
            open_pretraining(study).train_captions(99)


def test_a_parquet_file_that_is_damaged_in_the_middle(tmp_path: Path) -> None:
    """As also where the network fails."""
    write_parquet(tmp_path / "parquet")
    file = tmp_path / "parquet/data/train-00001-of-00002.parquet"
    images = open_pretraining(natural_study(tmp_path, str(file)), SIZE)
    assert images.train_count(99) > 9
    start = pq.ParquetFile(file).metadata.row_group(2).column(0).data_page_offset
    with file.open("rb+") as content:
        content.seek(start)
        content.write(bytes(200))
    with pytest.raises(UserError, match=rf"{file} cannot be read from row 1\d on .* to resume"):
        list(images.train_images(0, 99))


def test_a_folder_without_metadata(tmp_path: Path) -> None:
    source = Path(write_jsonl(tmp_path / "natural"))
    (source / "metadata.jsonl").unlink()
    with pytest.raises(UserError, match=r"metadata\.jsonl is missing; write a line"):
        open_pretraining(natural_study(tmp_path, str(source)))


def test_a_filter_that_leaves_nothing(tmp_path: Path, kind: str) -> None:
    study = of_kind(tmp_path, kind, filter="aesthetic >= 600")
    with pytest.raises(UserError, match="40 not aesthetic >= 600"):
        open_pretraining(study).train_captions(9)


@pytest.mark.parametrize(
    ("text", "row", "holds"),
    [
        ("a >= 6", {"a": 6}, True),
        ("a >= 6", {"a": "6.5"}, True),
        ("a >= 6", {"a": None}, False),
        ("a >= 6", {}, False),
        ("a >= 6", {"a": float("nan")}, False),
        ("a != 6", {"a": 7}, True),
        ("a == cc-by", {"a": "cc-by"}, True),
        ("a != 'cc by'", {"a": "cc by"}, False),
        ("nsfw == false", {"nsfw": False}, True),
        ("a > 1 and b < 2", {"a": 2, "b": 2}, False),
        ("brand and name > 1", {"brand and name": 2}, False),
        ("", {}, True),
    ],
)
def test_filters(text: str, row: dict[str, object], holds: bool) -> None:
    if text.startswith("brand"):
        with pytest.raises(UserError, match="'brand' is not a condition"):
            parse_filter(text)
        return
    assert all_hold(parse_filter(text), row) == holds


# decoding


def test_processes_decode_as_one_does(tmp_path: Path) -> None:
    contents = [png(i) if i % 5 else DAMAGED for i in range(60)]
    alone, others = (list(decoded(contents, [SIZE], workers)) for workers in (0, 2))
    assert [p if isinstance(p, str) else p.tobytes() for p in alone] == [
        p if isinstance(p, str) else p.tobytes() for p in others
    ]
    assert [i for i, p in enumerate(others) if isinstance(p, str)] == list(range(0, 60, 5))


def test_pictures_are_read_a_little_ahead_only() -> None:
    taken = []

    def contents():
        for i in range(2000):
            taken.append(i)
            yield png(i % 200)

    pictures = decoded(contents(), [SIZE], 1)
    next(pictures)
    assert len(taken) < 100
    pictures.close()  # pyright: ignore


def test_a_killed_process_ends_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "sayso.data.pretraining_images._decoding._decode",
        lambda *_: os.kill(os.getpid(), signal.SIGKILL),
    )
    with pytest.raises(UserError, match=r"was killed.*fewer --workers than 2 to resume"):
        list(decoded([png(1)] * 20, [SIZE], 2))


# encoding


@pytest.mark.parametrize("workers", [0, 2])
def test_latents_of_shards_are_those_of_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr("sayso.data.pretraining_latents.IMAGES_A_SHARD", 8)
    studies = [of_kind(tmp_path / kind, kind) for kind in ("jsonl", "tars", "parquet")]
    found = []
    for study in studies:
        policy = load_policy(studies[0], "base", CPU)
        latents, captions = encoded_pretraining(study, policy, 99, workers=workers)
        rows = latents[torch.arange(len(captions))]
        found.append({number(c): row for c, row in zip(captions, rows, strict=True)})
    shared = set.intersection(*(set(rows) for rows in found))
    assert len(shared) > N / 2
    for i in shared:
        for other in found[1:]:
            torch.testing.assert_close(found[0][i], other[i], rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("kind", ["jsonl", "tars", "parquet"])
def test_damaged_pictures_are_counted_and_named_and_left_out_if_asked(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    monkeypatch.setattr("sayso.data.pretraining_latents.IMAGES_A_SHARD", 8)
    bad = tuple(range(0, N, 3))
    study = of_kind(tmp_path, kind, bad)
    images, policy = open_pretraining(study), load_policy(study, "base", CPU)
    captions = images.train_captions(99)
    lost = {number(c) for c in captions} & set(bad)
    message = (
        rf"{len(lost)} of {len(captions)} pre-training images are damaged \((.*damaged.txt) lists "
        r"them\), such as pre-training image .* cannot be read: .*; re.*--leave-out-damaged"
    )
    with pytest.raises(UserError, match=message):
        encoded_pretraining(study, policy, 99)
    listed = (study.cache / "pretraining/damaged.txt").read_text().splitlines()
    assert len(listed) == len(lost)
    assert all("pre-training image" in line for line in listed)

    def refuse(*_: object) -> None:
        pytest.fail("it is encoded again")

    monkeypatch.setattr(policy, "encode_images", refuse)
    latents, left = encoded_pretraining(study, policy, 99, leave_out_damaged=True)
    assert left == [c for c in captions if number(c) not in lost]
    assert len(latents) == len(left) == len(captions) - len(lost)
    assert latents[torch.arange(len(left))].abs().amax((1, 2, 3)).min() > 0
    said = " ".join(capsys.readouterr().err.split())
    assert f"{len(lost)} of {len(captions)} pre-training images are damaged" in said


def test_a_missing_picture_of_a_folder_can_be_left_out(tmp_path: Path) -> None:
    study = of_kind(tmp_path, "jsonl")
    captions = open_pretraining(study).train_captions(99)
    gone = tmp_path / f"natural/{number(captions[3]):02}.png"
    gone.unlink()
    policy = load_policy(study, "base", CPU)
    with pytest.raises(UserError, match=rf"{gone} is missing; restore it or delete its line"):
        encoded_pretraining(study, policy, 99)
    assert encoded_pretraining(study, policy, 99, leave_out_damaged=True)[1] == [
        *captions[:3], *captions[4:]
    ]  # fmt: skip
    Image.new("RGB", (40, 24), (3, 0, 0)).save(gone)
    assert encoded_pretraining(study, policy, 99)[1] == captions


def test_a_source_of_which_nothing_can_be_read_ends_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sayso.data.pretraining_latents.IMAGES_A_SHARD", 4)
    study = of_kind(tmp_path, "tars", tuple(range(N)))
    with pytest.raises(UserError, match=r"none of 4 pre-training images can be read; pre-training"):
        encoded_pretraining(study, load_policy(study, "base", CPU), 99, leave_out_damaged=True)


def test_an_autoencoder_in_another_format_has_its_own_latents(tmp_path: Path) -> None:
    study = of_kind(tmp_path, "tars")
    policy = load_policy(study, "base", CPU)
    encoded_pretraining(study, policy, 4)
    files = set((study.cache / "pretraining").glob("*.safetensors"))
    policy.vae.to(torch.bfloat16)  # pyright: ignore
    encoded_pretraining(study, policy, 4)
    assert len(set((study.cache / "pretraining").glob("*.safetensors")) - files) == 1


def test_damaged_heldout_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sayso.data.features import _heldout

    study = of_kind(tmp_path, "tars", tuple(range(0, N, 2)))
    every = list(open_pretraining(study, SIZE).heldout_pictures(99))
    bad = [p for p in every if isinstance(p, Damaged)]
    assert 0 < len(bad) < len(every)
    with pytest.raises(UserError, match=f"{len(bad)} of {len(every)} held-out images cannot"):
        _heldout(study, 99, SIZE, leave_out_damaged=False)
    assert len(_heldout(study, 99, SIZE, leave_out_damaged=True)) == len(every) - len(bad)
    assert "left out" in capsys.readouterr().err


def test_a_disk_that_is_full_in_the_middle_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sayso.data.pretraining_latents.IMAGES_A_SHARD", 8)
    study = of_kind(tmp_path, "jsonl")
    policy = load_policy(study, "base", CPU)
    shard = 8 * 2 * torch.Size(policy.latent_shape(study.info.sampler.image_size)).numel()
    with small_disk(tmp_path / "disk", f"{(2.6 * shard + 8192) // 1024:.0f}k") as disk:
        study.cache.symlink_to(disk)
        with pytest.raises(OSError, match="No space left") as full:
            encoded_pretraining(study, policy, 99)
        assert "the disk is full; free some space" in str(_disk_trouble(full.value))
        kept = {p: p.read_bytes() for p in (disk / "pretraining").iterdir()}
        assert 1 <= len(kept) <= 3
        assert all(p.suffix == ".safetensors" for p in kept), "a half-written file is left"
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        encoded, encode = [], policy.encode_images
        monkeypatch.setattr(
            policy, "encode_images", lambda batch: encoded.append(len(batch)) or encode(batch)
        )
        latents, captions = encoded_pretraining(study, policy, 99)
        assert len(latents) == len(captions) == sum(encoded) + 8 * len(kept)
        assert all(p.read_bytes() == content for p, content in kept.items())


WAITING = """
import multiprocessing
from sayso.base.types import Size
from sayso.data.pretraining_images._decoding import decoded

pictures = decoded(iter(lambda: b"", None), [Size(8, 8)], 2)
next(pictures)
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
while True:
    next(pictures)
"""


def test_decoders_end_with_the_process_that_began_them() -> None:
    parent = subprocess.Popen([sys.executable, "-c", WAITING], stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    decoders = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(decoders) == 2
    assert all(map(is_alive, decoders))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    end = time.monotonic() + 30
    while any(map(is_alive, decoders)):
        assert time.monotonic() < end, "they go on alone"
        time.sleep(0.05)


def is_alive(process: int) -> bool:
    """Whether it runs; a process that ended and whom nobody has asked about does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_dry_run_counts_them(tmp_path: Path) -> None:
    study = of_kind(tmp_path, "tars", filter="aesthetic >= 6")
    said, n = _pretraining(study, 99)
    assert n == open_pretraining(study).train_count(99) < 16
    assert said == {
        "pre-training images": f"{n} of {study.info.pretraining}; left out: 24 not aesthetic >= 6"
    }
    assert _pretraining(study, 5)[1] == 5
