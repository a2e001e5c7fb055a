"""Others' tables become studies that `fit` can use; what is wrong with them is said first."""

import io
import sqlite3
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import run_sayso
from PIL import Image
from voted_images import a_rating, images_of, voted_study

from sayso.base.errors import UserError
from sayso.base.types import Comparison
from sayso.feedback.derived_ratings import ratings_from_comparisons
from sayso.feedback.store import Recorded
from sayso.stages import align
from sayso.stages.export import ExportConfig, export
from sayso.stages.fit import FitConfig, collect
from sayso.stages.import_ import ImportConfig, import_table
from sayso.stages.prompts import PromptsConfig, write_prompts
from sayso.study.checks import check_feedback
from sayso.study.info import StudyInfo
from sayso.study.study import Study

WHEN = datetime(2023, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)


def picture(seed: int, size: tuple[int, int] = (20, 12), form: str = "JPEG") -> bytes:
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def preference(caption: str, left: int, right: int, label: float, user: int | None, **more: Any):
    return {
        "caption": caption, "jpg_0": picture(left), "jpg_1": picture(right), "label_0": label,
        "label_1": 1 - label, "user_id": user, "model_0": "sd-2.1", "model_1": "xl@beta",
        "has_label": True, "created_at": WHEN.replace(tzinfo=None), **more,
    }  # fmt: skip


PREFERENCES = [
    preference("ein Hund, „rot“\n🐕", 0, 1, 1.0, 7),
    preference("ein Hund, „rot“\n🐕", 0, 2, 0.0, 7),
    preference("ein Hund, „rot“\n🐕", 0, 1, 0.0, 8),
    preference("a cat", 3, 4, 0.5, 7),
    preference("a cat", 5, 4, 1.0, None),
]


def table(path: Path, rows: list[dict[str, Any]], types: Mapping[str, Any] = {}) -> Path:
    made = pa.Table.from_pylist(rows)
    for name, kind in types.items():
        i = made.schema.get_field_index(name)
        made = made.set_column(i, name, made[name].cast(kind))
    pq.write_table(made, path)
    return path


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study.create(tmp_path / "study", StudyInfo("study"))


def taken(study: Study, path: Path, form: str = "pickapic", **more: Any) -> dict[str, Any]:
    return import_table(study, ImportConfig(str(path), form, **more)).result


def content(study: Study) -> dict[str, bytes]:
    return {
        str(p.relative_to(study.path)): p.read_bytes()
        for p in study.path.rglob("*")
        if p.is_file() and "feedback.db" not in p.name and p.name != "env.json"
    }


# pickapic


def test_pickapic_becomes_comparisons_of_single_images(study: Study, tmp_path: Path):
    result = taken(study, table(tmp_path / "t.parquet", PREFERENCES))
    votes = study.feedback.comparisons(simulated=False)
    assert [v.value for v in votes] == ["left", "right", "right", "tie", "left"]
    raters = ["pickapic-7", "pickapic-7", "pickapic-8", "pickapic-7", "pickapic"]
    assert [v.rater for v in votes] == raters
    assert {v.answered_at for v in votes} == {WHEN.timestamp()}
    texts = {p.id: p.text for p in study.prompts("train")}
    assert [texts[v.prompt_id] for v in votes] == [r["caption"] for r in PREFERENCES]
    samples = {s.id: s for s in study.samples()}
    assert {s.model for s in samples.values()} == {"imported/sd-2.1", "imported/xl at beta"}
    for row, vote in zip(PREFERENCES, votes, strict=True):
        for side, ids in (("jpg_0", vote.left_ids), ("jpg_1", vote.right_ids)):
            with Image.open(io.BytesIO(row[side])) as image:
                wanted = image.convert("RGB").tobytes()
            [own] = ids
            assert study.image(samples[own]).tobytes() == wanted
            assert Path(samples[own].path).suffix == ".png"
    assert result["comparisons"] == 5
    assert result["images"] == len(samples) == 6


def test_ratings_follow_from_comparisons(study: Study, tmp_path: Path):
    taken(study, table(tmp_path / "t.parquet", PREFERENCES))
    votes = study.feedback.comparisons()
    [dog, loser], winner = [*votes[0].left_ids, *votes[0].right_ids], votes[1].right_ids[0]
    values = {(r.sample_id, r.rater): r.value for r in study.feedback.ratings(simulated=False)}
    assert values[dog, "pickapic-7"] == "skip", "won once, lost once"
    assert values[loser, "pickapic-7"] == "bad"
    assert values[winner, "pickapic-7"] == "good"
    assert values[dog, "pickapic-8"] == "bad"
    assert values[loser, "pickapic-8"] == "good"
    labels = study.feedback.counts(simulated=False)
    assert (labels[loser].good, labels[loser].bad) == (1, 1)


def test_fit_reads_what_was_imported(study: Study, tmp_path: Path):
    taken(study, table(tmp_path / "t.parquet", PREFERENCES))
    check_feedback(study)
    data = collect(study, FitConfig())
    assert not data.simulated
    assert sorted(data.labels) == [0.0, 0.0, 0.5, 1.0, 1.0]
    assert {p.split for p in data.prompts} == {"train"}


@pytest.mark.slow
def test_a_reward_is_trained_on_an_import(tmp_path: Path):
    """The whole way through the command line, on the tiny world's CLIP."""
    study = tmp_path / "study"
    captions = ["a red dog", "two blue cups", "a green apple"]
    rows = [preference(c, 9 * i, 9 * i + 1, float(i % 2), 1) for i, c in enumerate(captions)]
    rows.append(preference("word " * 200, 50, 51, 1.0, 1))
    path = table(tmp_path / "t.parquet", rows)
    assert run_sayso("new", study).returncode == 0
    done = run_sayso("import", study, path, "--long-prompts", "leave-out")
    assert done.returncode == 0, done.stderr
    done = run_sayso("fit", study)
    assert done.returncode == 0, done.stderr
    assert Study.open(study).find_run("fit-clip_head").result["n"]["images"] == 6


def test_repeating_changes_nothing(study: Study, tmp_path: Path):
    path = table(tmp_path / "t.parquet", PREFERENCES)
    taken(study, path)
    before, votes = content(study), list(study.feedback.stream(simulated=False))
    taken(study, path)
    taken(study, path, name="again")
    after = content(study)
    assert {k: v for k, v in after.items() if "import-again" not in k} == before
    assert list(study.feedback.stream(simulated=False)) == votes


def test_interrupted_import_goes_on(study: Study, tmp_path: Path, monkeypatch):
    path = table(tmp_path / "t.parquet", PREFERENCES)
    other = Study.create(tmp_path / "other", StudyInfo("study"))
    taken(other, path)
    monkeypatch.setattr("sayso.stages.import_.BATCH", 2)
    real, calls = study.feedback.add_comparisons, []

    def stop_at_second(votes: Any) -> int:
        calls.append(votes)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(votes)

    monkeypatch.setattr(study.feedback, "add_comparisons", stop_at_second)
    with pytest.raises(KeyboardInterrupt):
        taken(study, path)
    taken(study, path)
    assert content(study).keys() == content(other).keys()
    stored = [list(s.feedback.stream(simulated=False)) for s in (study, other)]
    assert stored[0] == stored[1]


def test_second_table_with_the_same_rater_supersedes_ratings(study: Study, tmp_path: Path):
    taken(study, table(tmp_path / "a.parquet", PREFERENCES[:1]))
    [first] = [r for r in study.feedback.ratings() if r.value == "good"]
    taken(study, table(tmp_path / "b.parquet", PREFERENCES[1:2]))
    [now] = [r for r in study.feedback.ratings() if r.sample_id == first.sample_id]
    assert (now.value, now.supersedes) == ("skip", first.id)


def test_comparisons_alone_when_asked(study: Study, tmp_path: Path):
    taken(study, table(tmp_path / "t.parquet", PREFERENCES), comparisons_only=True)
    assert study.feedback.ratings() == []
    assert len(study.feedback.comparisons()) == 5


def test_own_ratings_are_left_alone():
    vote = Comparison(
        "c", "p", ("a",), ("b",), "m", "m", "ann", "alignment", "left", False, 0.0, 1.0,
        {"imported_from": "pickapic"},
    )  # fmt: skip
    own = a_rating("b", "ann", "good")
    [made] = ratings_from_comparisons([Recorded(own), Recorded(vote)])
    assert (made.sample_id, made.value) == ("a", "good")
    seen_here = Comparison(**{f: getattr(vote, f) for f in vote.__slots__} | {"shown": {}})
    assert ratings_from_comparisons([Recorded(seen_here)]) == []
    assert ratings_from_comparisons([Recorded(vote, live=False)]) == []


def test_rows_that_cannot_be_used_are_counted(study: Study, tmp_path: Path):
    rows = [
        *PREFERENCES,
        preference("a cat", 3, 4, 0.0, 9, has_label=False),
        preference("a cat", 3, 3, 1.0, 9, model_1="sd-2.1"),
        PREFERENCES[0] | {"label_0": 0.0, "label_1": 1.0},
    ]
    result = taken(study, table(tmp_path / "t.parquet", rows))
    assert result["left_out"] == {
        "repeated votes of a rater on the same images": 1,
        "rows with the same image twice": 1,
        "rows without a label": 1,
    }
    assert len(study.feedback.comparisons()) == 5


def test_our_own_pickapic_export_comes_back(tmp_path: Path, study: Study):
    source = voted_study(tmp_path / "source")
    out = export(source, ExportConfig(format="pickapic", out=str(tmp_path / "out")))
    taken(study, out / "data" / "train-00000-of-00001.parquet")
    votes = study.feedback.comparisons()
    assert [v.value for v in votes] == ["left", "right", "right", "tie"]
    texts = {p.id: p.text for p in study.prompts()}
    wanted = {p.id: p.text for p in source.prompts()}
    assert [texts[v.prompt_id] for v in votes] == [wanted[p] for p in ("p0", "p0", "p0", "p1")]


def test_prompts_of_the_study_keep_their_split(tmp_path: Path):
    study = voted_study(tmp_path / "study", votes=False)
    taken(study, table(tmp_path / "t.parquet", [preference("one bird", 0, 1, 1.0, 1)]))
    [vote] = study.feedback.comparisons()
    assert vote.prompt_id == "q0"
    assert len(study.prompts()) == 5


def test_prompts_stage_can_be_repeated_after_an_import(study: Study, tmp_path: Path):
    (tmp_path / "mine.txt").write_text("a bus\na train\n")
    config = PromptsConfig(file=str(tmp_path / "mine.txt"), fidelity=0)
    write_prompts(study, config)
    taken(study, table(tmp_path / "t.parquet", PREFERENCES))
    write_prompts(study, config)
    assert len(study.prompts()) == 4


# imagerewarddb


def scored(prompt: str, seed: int, **ratings: int | None) -> dict[str, Any]:
    return {
        "image": {"bytes": picture(seed, form="WEBP"), "path": f"{seed}.webp"},
        "prompt_id": "x-1", "prompt": prompt, "classification": "People",
        "image_amount_in_total": 4, "rank": 1, "overall_rating": 4,
        "image_text_alignment_rating": 4, "fidelity_rating": None, **ratings,
    }  # fmt: skip


SCORES = [
    scored("a man", 0, image_text_alignment_rating=7, fidelity_rating=1),
    scored("a man", 1, image_text_alignment_rating=5, overall_rating=2),
    scored("a man", 2, image_text_alignment_rating=4),
    scored("a man", 3, image_text_alignment_rating=3, fidelity_rating=6, overall_rating=6),
]
SMALL = dict.fromkeys(("rank", "overall_rating", "fidelity_rating"), pa.int8())


def test_imagerewarddb_becomes_ratings(study: Study, tmp_path: Path):
    taken(study, table(tmp_path / "t.parquet", SCORES, SMALL), "imagerewarddb")
    ratings = study.feedback.ratings(simulated=False)
    found = [(r.question, r.value) for r in ratings]
    assert found == [
        ("alignment", "good"), ("fidelity", "bad"), ("alignment", "good"), ("alignment", "skip"),
        ("alignment", "bad"), ("fidelity", "good"),
    ]  # fmt: skip
    assert {p.category for p in study.prompts()} == {"People"}
    assert sorted(collect(study, FitConfig()).labels) == [0.0, 1.0, 1.0]


def test_overall_rating_when_asked(study: Study, tmp_path: Path):
    path = table(tmp_path / "t.parquet", SCORES, SMALL)
    taken(study, path, "imagerewarddb", rating_column="overall_rating")
    alignment = [r.value for r in study.feedback.ratings() if r.question == "alignment"]
    assert alignment == ["skip", "bad", "skip", "good"]


def test_our_own_imagerewarddb_export_comes_back(tmp_path: Path, study: Study):
    source = voted_study(tmp_path / "source")
    out = export(source, ExportConfig(format="imagerewarddb", out=str(tmp_path / "out")))
    taken(study, out, "imagerewarddb")
    majority = {i: v.value for i, v in source.feedback.counts(False).items() if v.good + v.bad}
    by_pixels = {source.image(s).tobytes(): majority.get(s.id) for s in source.samples()}
    names = {s.id: by_pixels[study.image(s).tobytes()] for s in study.samples()}
    ratings = [r for r in study.feedback.ratings() if r.question == "alignment"]
    assert images_of(source, "p2")[0] not in majority
    assert len(ratings) == len(majority)
    assert all(names[r.sample_id] == r.value for r in ratings)


# ours


def plain(votes: list[Recorded]) -> list[dict[str, Any]]:
    """Votes without what becomes a pseudonym, in one form for both kinds."""
    rows = []
    for vote, live, _ in votes:
        row = {f: getattr(vote, f) for f in vote.__slots__} | {"live": live, "rater": ""}
        row["shown"] = {k: v for k, v in row["shown"].items() if k != "session"}
        rows.append(row)
    return rows


@pytest.mark.parametrize("kind", ["people", "simulated"])
def test_our_own_export_gives_an_equal_store(study: Study, tmp_path: Path, kind: Any):
    source = voted_study(tmp_path / "source")
    out = tmp_path / "out"
    export(source, ExportConfig(out=str(out), raters=kind))
    taken(study, out, "sayso")
    votes = [list(s.feedback.stream(kind == "simulated")) for s in (source, study)]
    votes[0] = [found for found in votes[0] if not found.vote.shown.get("attention")]
    assert plain(votes[0]) == plain(votes[1])
    pseudonyms = {a.vote.rater: b.vote.rater for a, b in zip(*votes, strict=True)}
    assert len(set(pseudonyms.values())) == len(pseudonyms)
    old = {s.id: s for s in source.samples()}
    for sample in study.samples():
        assert sample == old[sample.id]
        assert study.image(sample).tobytes() == source.image(sample).tobytes()
    texts = {p.id: p for p in source.prompts()}
    assert all(texts[p.id] == p for p in study.prompts())


def test_votes_taken_back_do_not_return(study: Study, tmp_path: Path):
    source = voted_study(tmp_path / "source")
    with sqlite3.connect(source.path / "feedback.db") as db:
        db.execute("UPDATE ratings SET value = 'retracted' WHERE id = 'v-second'")
    db.close()
    image = images_of(source, "p0")[3]
    third = a_rating(image, "ann", "good", id="v-third", supersedes="v-second")
    source.feedback.add_ratings([third])
    live = {v.id: live for v, live, _ in source.feedback.stream(False) if v.id.startswith("v-")}
    assert live == {"v-first": False, "v-third": True}
    out = export(source, ExportConfig(out=str(tmp_path / "out")))
    result = taken(study, out, "sayso")
    assert result["left_out"] == {"attention items": 1, "withdrawn votes": 1}
    [vote] = [r for r in study.feedback.ratings() if r.sample_id == image]
    assert (vote.id, vote.value, vote.supersedes) == ("v-third", "good", None)


def test_changed_export_is_refused(study: Study, tmp_path: Path):
    out = export(voted_study(tmp_path / "source"), ExportConfig(out=str(tmp_path / "out")))
    labels = out / "labels.parquet"
    labels.write_bytes(labels.read_bytes() + b"x")
    with pytest.raises(UserError, match=r"labels\.parquet is not what"):
        taken(study, out, "sayso")


def test_text_in_another_split_is_refused(tmp_path: Path, study: Study):
    out = export(voted_study(tmp_path / "source"), ExportConfig(out=str(tmp_path / "out")))
    taken(study, table(tmp_path / "t.parquet", [preference("one bird", 0, 1, 1.0, 1)]))
    with pytest.raises(UserError, match="'one bird' in split train, the table in seen"):
        taken(study, out, "sayso")


# refused before anything is written


def bad(**change: Any) -> list[dict[str, Any]]:
    return [*PREFERENCES[:2], PREFERENCES[2] | change]


REFUSED = {
    "unknown column": ([r | {"mood": 1} for r in PREFERENCES], "unknown column 'mood'"),
    "no caption": ([{k: v for k, v in PREFERENCES[0].items() if k != "caption"}], "no column 'cap"),
    "wrong type": ([r | {"label_0": "left"} for r in PREFERENCES], "'label_0' of type string"),
    "links": ([r | {"jpg_0": "a.jpg"} for r in PREFERENCES], "'jpg_0' of type string; give image"),
    "wrong label": (bad(label_0=0.7), r"row 3 has label_0 0\.7"),
    "labels disagree": (bad(label_0=1.0, label_1=1.0), "row 3 has label_0 1.0 and label_1 1.0"),
    "no label": (bad(label_0=None), "row 3 has label_0 None"),
    "corrupt image": (bad(jpg_1=picture(3)[:-200]), "row 3 has an image that cannot be read"),
    "no picture": (bad(jpg_1=b"hello"), "row 3 has an image that cannot be read"),
    "no image": (bad(jpg_1=None), "row 3 has no image"),
    "empty caption": (bad(caption="  "), "row 3 has no prompt"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_tables_change_nothing(study: Study, tmp_path: Path, case: str):
    rows, message = REFUSED[case]
    before = content(study)
    with pytest.raises(UserError, match=message) as error:
        taken(study, table(tmp_path / "t.parquet", rows))
    assert "\n" not in str(error.value)
    assert content(study) == before
    assert not (study.path / "feedback.db").exists()


def test_rating_out_of_range(study: Study, tmp_path: Path):
    rows = [*SCORES, scored("a man", 9, image_text_alignment_rating=8)]
    with pytest.raises(UserError, match="row 5 has image_text_alignment_rating 8"):
        taken(study, table(tmp_path / "t.parquet", rows), "imagerewarddb")
    assert study.samples() == []


def test_bad_paths_end_in_one_line(study: Study, tmp_path: Path):
    (tmp_path / "t.parquet").write_bytes(b"PAR1 no")
    for path in (tmp_path / "none.parquet", tmp_path / "t.parquet", study.path / "study.json"):
        done = run_sayso("import", study.path, path, "--format", "pickapic")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert path.name in done.stderr
    with pytest.raises(UserError, match="give the table"):
        import_table(study, ImportConfig())
    with pytest.raises(UserError, match="choose one of imagerewarddb, pickapic, sayso"):
        taken(study, tmp_path, "parquet")


def test_dry_run_counts_and_writes_nothing(study: Study, tmp_path: Path):
    path = table(tmp_path / "t.parquet", PREFERENCES)
    before = content(study)
    done = run_sayso("import", study.path, path, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "comparisons = 5" in done.stdout
    assert content(study) == before


def test_align_says_that_imported_images_have_no_latents(study: Study, tmp_path: Path):
    taken(study, table(tmp_path / "t.parquet", PREFERENCES))
    with pytest.raises(UserError, match="were imported and have no stored latents") as error:
        align.plan(study, align.AlignConfig(model="imported/sd-2.1"))
    assert "\n" not in str(error.value)
