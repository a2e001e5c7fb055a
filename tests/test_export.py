"""Exports equal the store, whole or not at all, and load with the programs they are for."""

import errno
import hashlib
import io
import json
import os
import re
import sqlite3
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import run_sayso
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_cli import HEAVY, loaded_after
from voted_images import BASE, PROMPTS, TUNED, a_rating, images_of, voted_study

import sayso.formats.export_data
from sayso.base.errors import UserError
from sayso.base.plugins import plugin_names
from sayso.cli import commands as cli
from sayso.formats.snapshot import nanoseconds, seconds
from sayso.stages.export import ExportConfig, export
from sayso.study.study import Study

os.environ["HF_HUB_OFFLINE"] = "1"
FORMATS = plugin_names("export")
TEXTS = {p.id: p.text for p in PROMPTS}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """One study for the tests that only read it."""
    return voted_study(tmp_path_factory.mktemp("voted") / "study")


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """A study that a test may damage."""
    return voted_study(tmp_path / "study")


@pytest.fixture
def hub(tmp_path: Path) -> Any:
    """`datasets.load_dataset` with a cache of its own."""
    import datasets

    datasets.disable_progress_bars()
    return lambda *a, **k: datasets.load_dataset(*a, cache_dir=str(tmp_path / "cache"), **k)


def written(study: Study, out: Path, form: str, **more: Any) -> Path:
    return export(study, ExportConfig(format=form, out=str(out), **more))


def rows(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist()


def pixels(content: bytes) -> bytes:
    with Image.open(io.BytesIO(content)) as image:
        return image.convert("RGB").tobytes()


def true_pixels(study: Study, sample_id: str) -> bytes:
    [sample] = [s for s in study.samples() if s.id == sample_id]
    return study.image(sample).tobytes()


# every format


@pytest.mark.parametrize("form", FORMATS)
def test_manifest_holds_counts_and_checksums(shared: Study, tmp_path: Path, form: str):
    out = written(shared, tmp_path / form, form)
    manifest = json.loads((out / "manifest.json").read_text())
    there = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    assert set(manifest["files"]) == there - {"manifest.json"}
    for name, facts in manifest["files"].items():
        content = (out / name).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        assert facts == {"bytes": len(content), "sha256": digest}
    people = [*shared.feedback.stream(simulated=False)]
    assert manifest["counts"]["votes"] == len(people) == 24
    assert manifest["counts"]["live"] == sum(found.live for found in people) == 23
    assert manifest["counts"]["raters"] == 3
    assert manifest["counts"]["attention"] == 1
    assert manifest["raters"] == "people"
    assert sum(manifest["rows"].values()) > 0


@pytest.mark.parametrize("form", FORMATS)
def test_nobody_is_named(shared: Study, tmp_path: Path, form: str):
    out = written(shared, tmp_path / form, form)
    content = b"".join(p.read_bytes() for p in out.rglob("*") if p.is_file())
    if form == "sayso":
        content += json.dumps(rows(out / "votes.parquet"), default=str).encode()
    for secret in ("ann", "Zoë", "s-secret", "simulated-1"):
        assert not re.search(rb"\b%s\b" % secret.encode(), content), secret


@pytest.mark.parametrize("form", FORMATS)
def test_repeating_gives_the_same_bytes(study: Study, tmp_path: Path, form: str):
    first = written(study, tmp_path / "a", form)
    again = written(study, tmp_path / "b", form)
    written(study, tmp_path / "a", form)
    assert (first / "manifest.json").read_bytes() == (again / "manifest.json").read_bytes()


@pytest.mark.parametrize("form", FORMATS)
def test_missing_image_is_an_error(study: Study, tmp_path: Path, form: str, capsys: Any):
    gone = study.samples()[1]
    (study.path / gone.path).unlink()
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as stop:
        cli.main(["export", str(study.path), "--format", form, "--out", str(out)])
    assert stop.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert gone.path in line
    assert [p.name for p in tmp_path.iterdir()] == ["study"]


@pytest.mark.parametrize("form", FORMATS)
def test_card_has_a_header_and_the_columns(shared: Study, tmp_path: Path, form: str):
    yaml = pytest.importorskip("yaml")
    out = written(shared, tmp_path / form, form, license="cc-by-4.0")
    _, header, body = (out / "README.md").read_text().split("---\n", 2)
    read = yaml.safe_load(header)
    assert read["license"] == "cc-by-4.0"
    assert read["task_categories"] == ["text-to-image"]
    assert "people" in body
    assert "alignment" in body


@pytest.mark.parametrize("form", FORMATS)
def test_card_lets_the_folder_load_as_it_is(shared: Study, tmp_path: Path, form: str, hub: Any):
    out = written(shared, tmp_path / form, form)
    counts = json.loads((out / "manifest.json").read_text())["rows"]
    if form == "sayso":
        assert {n: len(hub(str(out), n)["train"]) for n in counts} == counts
    else:
        assert {name: len(split) for name, split in hub(str(out)).items()} == counts


def test_every_format_is_documented():
    page = (Path(__file__).parent.parent / "docs" / "exports.md").read_text()
    for form in FORMATS:
        assert f"| `{form}` |" in page, form
    for form in plugin_names("import"):
        assert f"### Import of `{form}`" in page, form


# whole or not at all


def test_disk_full_leaves_nothing(study: Study, tmp_path: Path, monkeypatch, capsys):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sayso.formats.export_data.ExportData, "picture", full)
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as stop:
        cli.main(["export", str(study.path), "--format", "kto", "--out", str(out)])
    assert stop.value.code == 2
    assert "disk is full" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["study"]


def test_damaged_image_is_an_error(study: Study, tmp_path: Path):
    path = study.path / study.samples()[0].path
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match="damaged"):
        written(study, tmp_path / "out", "sayso")
    assert not (tmp_path / "out").exists()


def test_other_output_is_refused_and_kept(study: Study, tmp_path: Path):
    out = written(study, tmp_path / "out", "kto")
    before = (out / "manifest.json").read_bytes()
    study.feedback.add_ratings([a_rating(images_of(study, "p2")[2], "dee", "bad")])
    with pytest.raises(UserError, match="differs"):
        written(study, out, "kto")
    assert (out / "manifest.json").read_bytes() == before
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="not an export"):
        written(study, notes, "kto")
    assert (notes / "mine.txt").read_text() == "keep"
    with pytest.raises(UserError, match="is a file"):
        written(study, notes / "mine.txt", "kto")


def test_a_file_changed_in_the_export_is_not_lost(study: Study, tmp_path: Path):
    out = written(study, tmp_path / "out", "kto")
    (out / "README.md").write_text("my own words")
    with pytest.raises(UserError, match="differs"):
        written(study, out, "kto")
    assert (out / "README.md").read_text() == "my own words"


def test_what_a_killed_export_left_is_removed(study: Study, tmp_path: Path):
    dead, alive = (tmp_path / f".out.{pid}.tmp" for pid in (2**31 - 1, os.getppid()))
    dead.mkdir()
    alive.mkdir()
    written(study, tmp_path / "out", "kto")
    assert not dead.exists()
    assert alive.exists()


def test_a_retraction_leaves_no_label(study: Study, tmp_path: Path):
    with sqlite3.connect(study.path / "feedback.db") as db:
        db.execute("UPDATE ratings SET value = 'retracted' WHERE id = 'v-second'")
    db.close()
    out = written(study, tmp_path / "out", "sayso")
    labels = {r["sample_id"] for r in rows(out / "labels.parquet")}
    assert images_of(study, "p0")[3] not in labels
    live = {r["vote_id"]: r["live"] for r in rows(out / "votes.parquet")}
    assert not live["v-first"]
    assert "v-second" not in live, "to take a vote back is no vote"


def test_the_prompt_of_a_vote_is_the_one_shown(study: Study, tmp_path: Path):
    shown = {"attention": "bad", "prompt_id": "q1", "prompt": "one owl", "session": None}
    study.feedback.add_ratings(
        [a_rating(images_of(study, "p2")[3], "ann", "bad", id="a", shown=shown)]
    )
    out = written(study, tmp_path / "out", "sayso")
    [row] = [r for r in rows(out / "votes.parquet") if r["vote_id"] == "a"]
    assert (row["prompt_id"], row["prompt"]) == ("q1", TEXTS["q1"])
    assert (row["attention"], row["session"]) == (True, None)


def test_the_store_is_read_in_chunks(shared: Study, monkeypatch):
    everything = list(shared.feedback.stream(simulated=False))
    monkeypatch.setattr("sayso.feedback.store._STREAM_CHUNK", 2)
    assert list(shared.feedback.stream(simulated=False)) == everything
    live = [found.vote for found in everything if found.live]
    assert live == [*shared.feedback.ratings(False), *shared.feedback.comparisons(False)]
    assert [found.vote.id for found in everything if not found.live] == ["v-first"]


def test_vote_on_a_lost_record_is_an_error(study: Study, tmp_path: Path):
    study.feedback.add_ratings([a_rating("nobody-knows", "ann")])
    with pytest.raises(UserError, match="no record"):
        written(study, tmp_path / "out", "sayso")


def test_empty_store_and_unknown_format(tmp_path: Path):
    study = voted_study(tmp_path / "study", votes=False)
    with pytest.raises(UserError, match="no votes by anybody"):
        written(study, tmp_path / "out", "sayso")
    with pytest.raises(UserError, match="did you mean 'pickapic'"):
        written(study, tmp_path / "out", "pickpic")


def test_without_pyarrow_one_line_says_what_to_install(study: Study, monkeypatch):
    monkeypatch.setattr("sayso.base.extras.find_spec", lambda name: None)
    with pytest.raises(UserError, match=re.escape("sayso[export]")):
        export(study, ExportConfig())


def test_tables_need_no_torch_and_the_stages_no_pyarrow():
    stages = "import sayso.stages.export, sayso.stages.import_"
    assert not loaded_after(stages) & {*HEAVY, "pyarrow", "PIL"}
    modules = [f"sayso.formats.exports.{name}" for name in FORMATS]
    modules += [f"sayso.formats.imports.{name}" for name in plugin_names("import")]
    assert not loaded_after(f"{stages}, {', '.join(modules)}") & set(HEAVY)


def test_people_and_programs_are_never_mixed(shared: Study, tmp_path: Path):
    people = rows(written(shared, tmp_path / "p", "sayso") / "votes.parquet")
    programs = rows(written(shared, tmp_path / "s", "sayso", raters="simulated") / "votes.parquet")
    assert {v["simulated"] for v in people} == {False}
    assert {v["simulated"] for v in programs} == {True}
    assert len(programs) == 1


def test_user_file_is_a_format_too(shared: Study, tmp_path: Path):
    (tmp_path / "mine.py").write_text(
        "from sayso.formats.exports import ExportFormat\n"
        "class Mine(ExportFormat):\n"
        "    summary, columns, configs = 'Mine.', {}, {}\n"
        "    def write(self, data, folder):\n"
        "        n = sum(1 for _ in data.rated())\n"
        "        (folder / 'n.txt').write_text(str(n))\n"
        "        return {'train': n}\n"
    )
    out = written(shared, tmp_path / "out", str(tmp_path / "mine.py"))
    assert (out / "n.txt").read_text() == "9"


def test_default_folder_is_in_the_study(study: Study):
    done = run_sayso("export", study.path, "--format", "hpdv3")
    assert done.returncode == 0, done.stderr
    assert (study.path / "exports" / "hpdv3" / "manifest.json").is_file()
    assert (study.path / "export.key").stat().st_mode & 0o777 == 0o600


# ours


def test_sayso_votes_equal_the_store(shared: Study, tmp_path: Path):
    out = written(shared, tmp_path / "out", "sayso")
    table = rows(out / "votes.parquet")
    stored = list(shared.feedback.stream(simulated=False))
    assert [row["vote_id"] for row in table] == [found.vote.id for found in stored]
    assert [row["value"] for row in table] == [found.vote.value for found in stored]
    assert [row["live"] for row in table] == [found.live for found in stored]
    assert {row["kind"] for row in table} == {"rating", "comparison"}
    by_id = {row["vote_id"]: row for row in table}
    first = by_id["v-first"]
    assert first["prompt"] == TEXTS["p0"]
    assert (first["task"], first["position"], first["latency_ms"]) == ("t1", 3, 1234.5)
    assert (first["gold"], first["attention"], first["overlap_target"]) == (False, None, 3)
    assert (first["app_version"], first["guideline_version"]) == ("0.2", "2")
    assert by_id["v-second"]["supersedes"] == "v-first"
    sets = by_id["c-set"]
    assert (sets["left_model"], sets["right_model"]) == (BASE, TUNED)
    assert sets["left_ids"] == images_of(shared, "q0")
    assert sets["item_ids"] == sets["left_ids"] + sets["right_ids"]
    raters: dict[str, set[str]] = {}
    for found, row in zip(stored, table, strict=True):
        raters.setdefault(found.vote.rater, set()).add(row["rater"])
    assert len(raters) == len(set.union(*raters.values())) == 3


def test_sayso_images_and_labels(shared: Study, tmp_path: Path):
    out = written(shared, tmp_path / "out", "sayso")
    images = {row["sample_id"]: row for row in rows(out / "images.parquet")}
    voted = {i for row in rows(out / "votes.parquet") for i in row["item_ids"]}
    assert set(images) == voted
    for sample in shared.samples():
        if sample.id in voted:
            row = images[sample.id]
            content = (shared.path / sample.path).read_bytes()
            assert row["image"]["bytes"] == content
            assert row["sha256"] == hashlib.sha256(content).hexdigest()
            assert row["prompt"] == TEXTS[sample.prompt_id]
            assert (row["model"], row["seed"], row["eta"]) == (sample.model, sample.seed, 0.25)
            assert (row["width"], row["height"]) == (16, 16)
    labels = {(r["sample_id"], r["question"]): r for r in rows(out / "labels.parquet")}
    p0, p2 = images_of(shared, "p0"), images_of(shared, "p2")
    kept = ("n_good", "n_bad", "n_skip", "p_good", "agreement")
    found = {i: tuple(labels[p0[i], "alignment"][k] for k in kept) for i in range(4)}
    assert found == {
        0: (2, 0, 0, 1.0, 1.0), 1: (0, 2, 0, 0.0, 1.0),
        2: (1, 1, 0, 0.5, 0.0), 3: (0, 1, 0, 0.0, None),
    }  # fmt: skip
    assert (p2[0], "alignment") not in labels, "attention items are no labels"
    assert labels[p0[0], "fidelity"]["n_bad"] == 1


def test_labels_equal_those_of_the_store(shared: Study, tmp_path: Path):
    out = written(shared, tmp_path / "out", "sayso")
    stored = shared.feedback.counts(simulated=False)
    for row in rows(out / "labels.parquet"):
        if row["question"] == "alignment":
            label = stored.pop(row["sample_id"])
            counts = (row["n_good"], row["n_bad"], row["n_skip"])
            assert counts == (label.good, label.bad, label.skip)
    assert not stored


def test_a_reviewers_decision_is_the_label(study: Study, tmp_path: Path):
    split = images_of(study, "p0")[2]
    decision = a_rating(split, "eve", "bad", shown={"adjudication": True})
    study.feedback.add_ratings([decision])
    out = written(study, tmp_path / "out", "sayso")
    row = {r["sample_id"]: r for r in rows(out / "labels.parquet") if r["question"] == "alignment"}
    assert {r["decided"] for i, r in row.items() if i != split} == {None}
    assert (row[split]["n_good"], row[split]["n_bad"], row[split]["agreement"]) == (1, 1, 0.0)
    assert (row[split]["decided"], row[split]["p_good"]) == ("bad", 0.0)
    assert study.feedback.counts(simulated=False)[split].value == "bad"
    votes = {r["vote_id"]: r["adjudication"] for r in rows(out / "votes.parquet")}
    assert [i for i, counted in votes.items() if counted] == [decision.id]
    loaded = rows(next((written(study, tmp_path / "kto", "kto")).rglob("*.parquet")))
    assert [r["label"] for r in loaded if r["image"]["bytes"] == study.image_bytes(
        next(s for s in study.samples() if s.id == split))] == [False]  # fmt: skip


def test_images_load_as_images(shared: Study, tmp_path: Path, hub: Any):
    out = written(shared, tmp_path / "out", "sayso")
    files = {"train": str(out / "images.parquet")}
    loaded = hub("parquet", data_files=files, split="train")
    for row in loaded:
        assert row["image"].convert("RGB").tobytes() == true_pixels(shared, row["sample_id"])


@given(st.floats(1e9, 4e9))
def test_times_survive(moment: float):
    assert seconds(nanoseconds(moment)) == moment


# pairs


def test_pickapic_from_comparisons(shared: Study, tmp_path: Path, hub: Any):
    out = written(shared, tmp_path / "out", "pickapic")
    loaded = hub("parquet", data_dir=str(out))
    assert {name: len(split) for name, split in loaded.items()} == {"train": 4, "test": 1}
    train = list(loaded["train"])
    left, right = images_of(shared, "p0")[:2]
    assert [(r["image_0_uid"], r["label_0"], r["label_1"]) for r in train] == [
        (left, 1.0, 0.0), (right, 0.0, 1.0), (left, 0.0, 1.0),
        (images_of(shared, "p1")[0], 0.5, 0.5),
    ]  # fmt: skip
    assert [r["best_image_uid"] for r in train] == [left, left, right, "tie"]
    assert [r["num_example_per_prompt"] for r in train] == [3, 3, 3, 1]
    assert [r["caption"] for r in train] == [TEXTS["p0"]] * 3 + [TEXTS["p1"]]
    assert len({r["user_id"] for r in train[:3]}) == 3
    assert len({r["ranking_id"] for r in train}) == 4
    assert all(r["has_label"] and r["are_different"] for r in train)
    for row in train:
        for i in (0, 1):
            assert pixels(row[f"jpg_{i}"]) == true_pixels(shared, row[f"image_{i}_uid"])
    assert loaded["test"][0]["model_1"] == TUNED
    assert json.loads((out / "manifest.json").read_text())["left_out"] == {"comparisons_of_sets": 1}


def test_pickapic_has_exactly_the_columns_and_types(shared: Study, tmp_path: Path):
    out = written(shared, tmp_path / "out", "pickapic")
    schema = pq.read_schema(out / "data" / "train-00000-of-00001.parquet")
    assert {f.name: str(f.type) for f in schema} == {
        "caption": "string", "jpg_0": "binary", "jpg_1": "binary", "label_0": "double",
        "label_1": "double", "image_0_uid": "string", "image_1_uid": "string",
        "image_0_url": "string", "image_1_url": "string", "best_image_uid": "string",
        "model_0": "string", "model_1": "string", "ranking_id": "int64", "user_id": "int64",
        "are_different": "bool", "has_label": "bool", "created_at": "timestamp[ns]",
        "num_example_per_prompt": "int64",
    }  # fmt: skip


def test_pickapic_from_ratings_prefers_good_over_bad(shared: Study, tmp_path: Path):
    out = written(shared, tmp_path / "out", "pickapic", pairs="ratings")
    table = rows(out / "data" / "train-00000-of-00001.parquet")
    best = {(r["best_image_uid"], *sorted([r["image_0_uid"], r["image_1_uid"]])) for r in table}
    p0, p1 = images_of(shared, "p0"), images_of(shared, "p1")
    wanted = [(p0[0], p0[1]), (p0[0], p0[3]), (p1[0], p1[1]), (p1[0], p1[2])]
    assert best == {(good, *sorted([good, bad])) for good, bad in wanted}
    assert all(row["user_id"] is None for row in table)
    few = written(shared, tmp_path / "few", "pickapic", pairs="ratings", pairs_per_prompt=1)
    assert len(rows(few / "data" / "train-00000-of-00001.parquet")) == 2


def test_preferred_side_is_balanced():
    from sayso.base.types import Sample, Sampler
    from sayso.formats.pairs import from_ratings
    from sayso.votes.labels import RatingCounts

    ids = [f"s{i}" for i in range(60)]
    samples = {i: Sample(i, "p", BASE, 0, Sampler(), "", "") for i in ids}
    counts = {i: RatingCounts(int(n % 2), int(not n % 2)) for n, i in enumerate(ids)}
    values = [pair.value for pair in from_ratings(counts, samples, 0)]
    assert len(values) == 900
    # 4 standard deviations of 900 fair coins
    assert abs(values.count("left") - 450) < 60


def test_hpdv2(shared: Study, tmp_path: Path):
    out = written(shared, tmp_path / "out", "hpdv2")
    train = json.loads((out / "train.json").read_text())
    left, right = images_of(shared, "p0")[:2]
    assert [set(row) for row in train] == [{"prompt", "file_path", "human_preference"}] * 3
    assert [row["human_preference"] for row in train] == [[1, 0], [0, 1], [0, 1]]
    assert [row["file_path"][0] for row in train] == [f"{i}.png" for i in (left, right, left)]
    for name in train[0]["file_path"]:
        content = (out / "train" / name).read_bytes()
        assert pixels(content) == true_pixels(shared, name.removesuffix(".png"))
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["left_out"] == {"comparisons_of_sets": 1, "ties": 1}
    assert len(json.loads((out / "test.json").read_text())) == 1


def test_hpdv3(shared: Study, tmp_path: Path):
    out = written(shared, tmp_path / "out", "hpdv3")
    left, right = images_of(shared, "p0")[:2]
    assert json.loads((out / "train.json").read_text()) == [{
        "prompt": TEXTS["p0"], "path1": f"images/{left}.png", "path2": f"images/{right}.png",
        "choice_dist": [2, 1], "model1": "tinyworld", "model2": "tinyworld",
    }]  # fmt: skip
    assert (out / "images" / f"{right}.png").is_file()
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["left_out"] == {"comparisons_of_sets": 1, "ties": 1, "undecided_pairs": 1}


def test_question_without_pairs_says_so(shared: Study, tmp_path: Path):
    options = {"question": "fidelity", "pairs": "comparisons"}
    with pytest.raises(UserError, match="no comparison of two single images"):
        written(shared, tmp_path / "out", "pickapic", **options)


# ratings


def test_imagerewarddb(shared: Study, tmp_path: Path, hub: Any):
    out = written(shared, tmp_path / "out", "imagerewarddb")
    schema = pq.read_schema(out / "data" / "train-00000-of-00001.parquet")
    types = {f.name: str(f.type) for f in schema if f.name != "image"}
    assert types == {
        "prompt_id": "string", "prompt": "string", "classification": "string",
        "image_amount_in_total": "int8", "rank": "int8", "overall_rating": "int8",
        "image_text_alignment_rating": "int8", "fidelity_rating": "int8",
    }  # fmt: skip
    loaded = hub("parquet", data_dir=str(out))
    train = [row for row in loaded["train"] if row["prompt_id"] == "p0"]
    p0 = images_of(shared, "p0")
    found = [row["image"].convert("RGB").tobytes() for row in train]
    assert found == [true_pixels(shared, i) for i in p0]
    kept = ("image_text_alignment_rating", "fidelity_rating", "overall_rating", "rank")
    assert [tuple(row[k] for k in kept) for row in train] == [
        (7, 1, 4, 1), (1, 7, 4, 1), (4, None, 4, 1), (1, None, 1, 4),
    ]  # fmt: skip
    assert {row["image_amount_in_total"] for row in train} == {4}


def test_more_images_than_imagerewarddb_counts(tmp_path: Path):
    from voted_images import add_images

    study = voted_study(tmp_path / "study", votes=False)
    add_images(study, replace(PROMPTS[2], id="p2"), "other", n=128)
    study.feedback.add_ratings([a_rating(i, "ann") for i in images_of(study, "p2", "other")])
    with pytest.raises(UserError, match="128 rated images"):
        written(study, tmp_path / "out", "imagerewarddb")


def test_kto(shared: Study, tmp_path: Path, hub: Any):
    out = written(shared, tmp_path / "out", "kto")
    loaded = hub("parquet", data_dir=str(out))["train"]
    assert loaded.column_names == ["prompt", "image", "label"]
    p0, p1 = images_of(shared, "p0"), images_of(shared, "p1")
    wanted = [(p0[0], True), (p0[1], False), (p0[3], False), (p1[0], True), (p1[1], False)]
    wanted.append((p1[2], False))
    assert [(r["image"].convert("RGB").tobytes(), r["label"]) for r in loaded] == [
        (true_pixels(shared, i), label) for i, label in wanted
    ]


# image folders


def test_imagefolder_loads(shared: Study, tmp_path: Path, hub: Any):
    out = written(shared, tmp_path / "out", "imagefolder")
    loaded = hub("imagefolder", data_dir=str(out))
    assert {name: len(split) for name, split in loaded.items()} == {"train": 7, "test": 2}
    for row in loaded["train"]:
        assert row["image"].convert("RGB").tobytes() == true_pixels(shared, row["sample_id"])
        assert row["text"] == TEXTS[row["prompt_id"]]
    shares = {row["sample_id"]: row["p_good"] for row in loaded["train"]}
    assert [shares[i] for i in images_of(shared, "p0")] == [1.0, 0.0, 0.5, 0.0]


@pytest.mark.parametrize("folder", ["", "train"])
def test_fine_tuning_script_reads_image_and_text(
    shared: Study, tmp_path: Path, hub: Any, folder: str
):
    """The call and the columns of diffusers' train_text_to_image.py with --train_data_dir."""
    out = written(shared, tmp_path / "out", "imagefolder", keep="good") / folder
    dataset = hub("imagefolder", data_files={"train": os.path.join(out, "**")})  # noqa: PTH118
    names = dataset["train"].column_names
    assert names[:2] == ["image", "text"]
    good = [images_of(shared, "p0")[0], images_of(shared, "p1")[0]]
    good += [] if folder else [images_of(shared, "q0")[0]]
    wanted = sorted((true_pixels(shared, i), i) for i in good)
    batch = dataset["train"].with_transform(lambda examples: {
        "pixels": [image.convert("RGB").tobytes() for image in examples["image"]],
        "captions": [str(caption) for caption in examples["text"]],
    })  # fmt: skip
    assert sorted(row["pixels"] for row in batch) == [p for p, _ in wanted]
    assert {row["captions"] for row in batch} <= set(TEXTS.values())


def test_jpeg_when_asked(shared: Study, tmp_path: Path):
    out = written(shared, tmp_path / "out", "imagefolder", image_format="jpg")
    names = {p.suffix for p in (out / "train").iterdir()}
    assert names == {".jpg", ".jsonl"}
    with Image.open(next((out / "train").glob("*.jpg"))) as image:
        assert image.format == "JPEG"


def test_webdataset_loads(shared: Study, tmp_path: Path, hub: Any):
    import webdataset

    out = written(shared, tmp_path / "out", "webdataset")
    with (out / "train-000000.tar").open("rb") as tar:
        stream = webdataset.WebDataset(f"pipe:cat {tar.name}", shardshuffle=False)
        items = list(stream.decode("pil").to_tuple("png", "txt", "json"))
    assert len(items) == 7
    for image, text, about in items:
        assert image.convert("RGB").tobytes() == true_pixels(shared, about["sample_id"])
        assert text == about["prompt"] == TEXTS[about["prompt_id"]]
    loaded = hub("webdataset", data_dir=str(out))
    assert {name: len(split) for name, split in loaded.items()} == {"train": 7, "test": 2}
    assert [row["txt"] for row in loaded["train"]] == [text for _, text, _ in items]


def test_webdataset_names_and_shards(shared: Study, tmp_path: Path, monkeypatch):
    import sayso.formats.exports.webdataset

    monkeypatch.setattr(sayso.formats.exports.webdataset, "SHARD_BYTES", 1000)
    out = written(shared, tmp_path / "out", "webdataset")
    names = [n for shard in sorted(out.glob("train-*.tar")) for n in members(shard)]
    assert names == [f"{i:06}.{e}" for i in range(7) for e in ("png", "txt", "json")]
    assert len(list(out.glob("train-*.tar"))) > 1


def members(path: Path) -> Iterator[str]:
    with tarfile.open(path) as tar:
        yield from tar.getnames()
