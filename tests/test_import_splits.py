"""Tables as they lie about: their names say the split, damaged rows are named, nothing vanishes."""

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_import import preference, scored, taken
from voted_images import voted_study

from sayso.base.errors import UserError
from sayso.formats.table_splits import file_splits
from sayso.stages.export import ExportConfig, export
from sayso.stages.import_ import ImportConfig, plan
from sayso.study.info import StudyInfo
from sayso.study.study import Study

TYPES = {
    "caption": pa.string(), "jpg_0": pa.binary(), "jpg_1": pa.binary(), "label_0": pa.float64(),
    "label_1": pa.float64(), "user_id": pa.int64(), "model_0": pa.string(), "model_1": pa.string(),
    "has_label": pa.bool_(), "created_at": pa.timestamp("us"),
}  # fmt: skip


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study.create(tmp_path / "study", StudyInfo("study"))


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({n: pa.array([r[n] for r in rows], t) for n, t in TYPES.items()}), path)
    return path


def hub(folder: Path, names: tuple[str, ...]) -> Path:
    """Tables of one prompt each, as a public data set lies on a hub."""
    for i, name in enumerate(names):
        write(folder / name, [preference(f"prompt of {name}", 2 * i, 2 * i + 1, 1.0, i)])
    return folder


def splits(study: Study) -> dict[str, str]:
    return {p.text.removeprefix("prompt of "): p.split for p in study.prompts()}


# which split


NAMES = {
    "train-00000-of-00001.parquet": "train", "validation-00000-of-00001.parquet": "seen",
    "test-00000-of-00001.parquet": "seen", "test_unique-00000.parquet": "seen",
    "valid.parquet": "seen", "my.val.parquet": "seen", "pick-train.parquet": "train",
    "train/0000.parquet": "train", "test/0000.parquet": "seen", "Validation/0.parquet": "seen",
    "dev/latest.parquet": "seen",
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_name_says_the_split(tmp_path: Path, name: str):
    root, table = tmp_path / "data", tmp_path / "data" / name
    assert file_splits(root, [table], None) == {table: NAMES[name]}
    assert file_splits(table, [table], None) == {table: NAMES[name]}
    assert file_splits(root, [table], "train") == {table: "train"}, "what is asked comes first"


def test_names_that_say_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("latest.parquet", "contest.parquet", "mine-0000.parquet"):
        assert file_splits(Path(name), [Path(name)], None) == {Path(name): "train"}
    table = Path("test_of_mine", "a.parquet")
    assert file_splits(Path("test_of_mine"), [table], None) == {table: "train"}


def test_names_that_leave_a_doubt_are_refused(tmp_path: Path):
    both = [tmp_path / "test-a.parquet", tmp_path / "b.parquet"]
    with pytest.raises(
        UserError, match=r"test-a.parquet gives a split, that of .*b.parquet gives no"
    ):
        file_splits(tmp_path, both, None)
    torn = tmp_path / "train-test.parquet"
    with pytest.raises(UserError, match="gives two splits; give --split"):
        file_splits(torn, [torn], None)


def test_files_of_one_folder_keep_their_splits(study: Study, tmp_path: Path, capsys):
    names = tuple(f"{s}-00000-of-00001.parquet" for s in ("train", "validation", "test"))
    result = taken(study, hub(tmp_path / "data", names))
    assert splits(study) == {names[0]: "train", names[1]: "seen", names[2]: "seen"}
    assert result["splits"] == {
        "train": {"prompts": 1, "images": 2, "votes": 1},
        "seen": {"prompts": 2, "images": 4, "votes": 2},
    }
    said = " ".join(capsys.readouterr().err.split())
    assert "train-00000-of-00001.parquet: 1 row, to train" in said
    assert "validation-00000-of-00001.parquet: 1 row, to test prompts (seen)" in said
    assert "seen: 2 prompts, 4 images, 2 votes" in said


def test_one_split_for_all_when_asked(study: Study, tmp_path: Path):
    names = ("train-0.parquet", "test-0.parquet")
    taken(study, hub(tmp_path / "data", names), split="train")
    assert set(splits(study).values()) == {"train"}


def test_a_prompt_in_tables_of_two_splits(study: Study, tmp_path: Path, capsys):
    for name in ("train-0.parquet", "test-0.parquet"):
        write(tmp_path / "data" / name, [preference("a dog", 1, 2, 1.0, len(name))])
    with pytest.raises(UserError, match=r"tables of two splits share 1 prompt, such as 'a dog'"):
        taken(study, tmp_path / "data")
    assert not study.has_prompts
    for name in ("train-0.parquet", "test-0.parquet"):
        taken(study, tmp_path / "data" / name)
    assert [p.split for p in study.prompts()] == ["train"]
    said = " ".join(capsys.readouterr().err.split())
    assert "which stays: 1 prompt" in said


@pytest.mark.parametrize("form", ["pickapic", "imagerewarddb", "sayso"])
def test_our_own_export_keeps_its_splits(study: Study, tmp_path: Path, form: str):
    source = voted_study(tmp_path / "source")
    out = export(source, ExportConfig(format=form, out=str(tmp_path / "out")))
    taken(study, out, form)
    before = {p.text: p.split for p in source.prompts()}
    for prompt in study.prompts():
        assert (prompt.split == "train") == (before[prompt.text] == "train"), prompt
    assert {p.split for p in study.prompts()} == {"train", "seen"}


# votes and rows that would vanish


def test_every_anonymous_vote_counts(study: Study, tmp_path: Path):
    labels = (1, 0, 1, 1, 0, 1, 1, 1, 0)
    rows = [preference("a red dog", 1, 2, float(label), None) for label in labels]
    path = write(tmp_path / "t.parquet", rows)
    result = taken(study, path)
    votes = study.feedback.comparisons()
    assert [v.value for v in votes] == ["left" if label else "right" for label in labels]
    assert len({v.rater for v in votes}) == 9
    assert (result["comparisons"], result["left_out"]) == (9, {})
    counts = sorted((label.good, label.bad) for label in study.feedback.counts(False).values())
    assert counts == [(3, 6), (6, 3)]
    taken(study, path, name="again")
    assert len(study.feedback.comparisons()) == 9


def test_what_is_left_out_is_said(study: Study, tmp_path: Path, capsys):
    rows = [preference("a dog", 1, 2, 1.0, 7), preference("a dog", 1, 2, 0.0, 7)]
    taken(study, write(tmp_path / "t.parquet", rows))
    said = " ".join(capsys.readouterr().err.split())
    assert "left out: 1 repeated vote of a rater on the same images" in said


def test_unlabelled_rows_may_lack_picture_and_caption(study: Study, tmp_path: Path):
    nothing = {"label_0": None, "label_1": None, "has_label": False}
    rows = [
        preference("a", 1, 2, 1.0, 1),
        preference("b", 1, 2, 1.0, 1) | nothing | {"jpg_1": None},
        preference("c", 1, 2, 1.0, 1) | nothing | {"caption": None},
        preference("d", 1, 2, 1.0, 1) | nothing | {"jpg_0": b"", "has_label": None},
    ]
    result = taken(study, write(tmp_path / "t.parquet", rows))
    assert (result["comparisons"], result["left_out"]) == (1, {"rows without a label": 3})


def test_unrated_rows_may_lack_their_picture(study: Study, tmp_path: Path):
    silent = {"image_text_alignment_rating": None, "overall_rating": None, "image": None}
    rows = [scored("a man", 1, image_text_alignment_rating=7), scored("b", 2) | silent]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    result = taken(study, tmp_path / "t.parquet", "imagerewarddb")
    assert (result["ratings"], result["left_out"]) == (1, {"rows without a rating": 1})


# damaged rows


def damaged(path: Path) -> Path:
    rows = [preference(f"p {i}", 2 * i, 2 * i + 1, 1.0, i) for i in range(20)]
    for i in (4, 9, 14):
        rows[i]["jpg_1"] = b""
    rows[15]["caption"] = None
    rows[17]["label_0"] = 0.3
    rows[19]["jpg_0"] = rows[19]["jpg_0"][:300]
    return write(path, rows)


def test_all_damaged_rows_are_named_at_once(study: Study, tmp_path: Path):
    path = damaged(tmp_path / "t.parquet")
    with pytest.raises(UserError) as error:
        taken(study, path)
    said = str(error.value)
    assert "t.parquet has 6 damaged rows: " in said
    assert all(f"row {n} has no image" in said for n in (5, 10, 15))
    assert "; …" in said
    assert "row 16" not in said
    assert "--damaged leave-out" in said
    assert not study.has_prompts
    assert not list(study.path.glob("runs/*"))


def test_damaged_rows_are_left_out_and_listed(study: Study, tmp_path: Path, capsys):
    path = damaged(tmp_path / "t.parquet")
    config = ImportConfig(str(path), damaged="leave-out")
    assert plan(study, config)["left_out"] == {"damaged rows": 6}
    result = taken(study, path, damaged="leave-out")
    assert (result["comparisons"], result["left_out"]) == (14, {"damaged rows": 6})
    rows = Counter(text.partition(" has ")[0].rpartition(" ")[2] for text in result["damaged"])
    assert sorted(rows, key=int) == ["5", "10", "15", "16", "18", "20"]
    assert "left out: 6 damaged rows" in capsys.readouterr().err
    assert len(study.samples()) == 28


def test_an_empty_table(study: Study, tmp_path: Path):
    with pytest.raises(UserError, match="has no rows; nothing was imported"):
        taken(study, write(tmp_path / "t.parquet", []))
    (tmp_path / "none.parquet").write_bytes(b"")
    with pytest.raises(UserError, match="is damaged or not a Parquet file"):
        taken(study, tmp_path / "none.parquet")
    assert not list(study.path.glob("runs/*"))
