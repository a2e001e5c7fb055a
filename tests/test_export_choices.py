"""What each export says of ties, of "both good" and "both bad", and of skipped comparisons."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from voted_images import TUNED, a_rating, comparison, images_of, voted_study

from sayso.base.errors import UserError
from sayso.base.types import Comparison
from sayso.stages.export import ExportConfig, export
from sayso.stages.import_ import ImportConfig, import_table
from sayso.study.info import StudyInfo
from sayso.study.study import Study

SKIPPED = {"reason": "an image is broken", "task": "t1"}


def votes(study: Study) -> list[Comparison]:
    """One of each choice on the same two images, a skip of a whole set, and a set compared."""
    first, second = images_of(study, "p0")[:2]
    base, tuned = images_of(study, "q0"), images_of(study, "q0", TUNED)
    choices = ["left", "right", "tie", "both_good", "both_bad", "skip", "left"]
    return [
        *(
            comparison(
                study, f"v-{rater}", "p0", [first], [second], value, rater=f"r{rater}",
                shown=SKIPPED if value == "skip" else {"task": "t1"},
            )
            for rater, value in enumerate(choices)
        ),
        comparison(study, "set", "q0", base, tuned, "both_bad"),
        comparison(study, "set-skip", "q0", base, tuned, "skip", rater="r1"),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Shared, not to be changed."""
    study = voted_study(tmp_path_factory.mktemp("voted") / "study", votes=False)
    study.feedback.add_comparisons(votes(study))
    return study


def written(study: Study, out: Path, form: str, **more: Any) -> tuple[Path, dict[str, int]]:
    """The export's folder, and what it says that it left out."""
    folder = export(study, ExportConfig(format=form, out=str(out), **more))
    return folder, json.loads((folder / "manifest.json").read_text())["left_out"]


def rows(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist()


NO_PAIRS = {"comparisons_of_sets": 1, "skipped_comparisons": 2}


def test_ours_keeps_every_choice_and_why_it_was_skipped(study: Study, tmp_path: Path) -> None:
    out, left_out = written(study, tmp_path / "out", "sayso")
    found = {r["vote_id"]: (r["value"], r["skip_reason"]) for r in rows(out / "votes.parquet")}
    assert found == {
        "v-0": ("left", None), "v-1": ("right", None), "v-2": ("tie", None),
        "v-3": ("both_good", None), "v-4": ("both_bad", None),
        "v-5": ("skip", "an image is broken"), "v-6": ("left", None),
        "set": ("both_bad", None), "set-skip": ("skip", None),
    }  # fmt: skip
    assert left_out == {}


def test_ours_brings_every_choice_back(study: Study, tmp_path: Path) -> None:
    out, _ = written(study, tmp_path / "out", "sayso")
    other = Study.create(tmp_path / "other", StudyInfo("other", 3, "tinyworld"))
    import_table(other, ImportConfig(str(out), "sayso"))
    theirs = {v.id: (v.value, v.shown) for v in study.feedback.comparisons(False)}
    assert {v.id: (v.value, v.shown) for v in other.feedback.comparisons(False)} == theirs
    assert len(theirs) == 9


def test_pickapic_has_one_kind_of_tie_and_no_skip(study: Study, tmp_path: Path) -> None:
    out, left_out = written(study, tmp_path / "out", "pickapic")
    first, second = images_of(study, "p0")[:2]
    assert [
        (r["best_image_uid"], r["label_0"], r["label_1"])
        for r in rows(out / "data" / "train-00000-of-00001.parquet")
    ] == [(first, 1, 0), (second, 0, 1), *[("tie", 0.5, 0.5)] * 3, (first, 1, 0)]
    assert left_out == NO_PAIRS


def test_hpdv2_leaves_out_every_tie_and_skip(study: Study, tmp_path: Path) -> None:
    out, left_out = written(study, tmp_path / "out", "hpdv2")
    train = json.loads((out / "train.json").read_text())
    assert [row["human_preference"] for row in train] == [[1, 0], [0, 1], [1, 0]]
    assert left_out == {**NO_PAIRS, "ties": 3}


def test_hpdv3_counts_ties_and_skips_for_neither_side(study: Study, tmp_path: Path) -> None:
    out, left_out = written(study, tmp_path / "out", "hpdv3")
    [row] = json.loads((out / "train.json").read_text())
    first, _ = images_of(study, "p0")[:2]
    assert (row["path1"], row["choice_dist"]) == (f"images/{first}.png", [2, 1])
    assert left_out == {**NO_PAIRS, "ties": 3}


@pytest.mark.parametrize("form", ["imagerewarddb", "imagefolder", "webdataset", "kto"])
def test_formats_of_ratings_say_nothing_of_comparisons(form: str, tmp_path: Path) -> None:
    """A tie or a skip of two images is no rating of either."""
    study = voted_study(tmp_path / "study", votes=False)
    study.feedback.add_ratings([a_rating(images_of(study, "p1")[0], "ann", "good")])
    alone, _ = written(study, tmp_path / "alone", form)
    study.feedback.add_comparisons(votes(study))
    both, left_out = written(study, tmp_path / "both", form)
    tables = [p for p in alone.rglob("*") if p.is_file() and p.name[0].islower()]
    tables = [p.relative_to(alone) for p in tables if p.name != "manifest.json"]
    assert tables
    assert all((both / p).read_bytes() == (alone / p).read_bytes() for p in tables)
    assert left_out == {}


@pytest.mark.parametrize("form", ["pickapic", "hpdv2", "hpdv3"])
def test_where_all_were_skipped_it_says_so(form: str, tmp_path: Path) -> None:
    study = voted_study(tmp_path / "study", votes=False)
    study.feedback.add_comparisons([v for v in votes(study) if v.value == "skip"])
    with pytest.raises(UserError, match=r"no comparison .* decided \(2 skipped comparisons\)"):
        written(study, tmp_path / "out", form, pairs="comparisons")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["hpdv2", "hpdv3"])
def test_where_all_are_ties_nothing_is_written(form: str, tmp_path: Path) -> None:
    study = voted_study(tmp_path / "study", votes=False)
    study.feedback.add_comparisons([v for v in votes(study) if v.value.startswith("both")])
    with pytest.raises(UserError, match=r"can hold none of the 3 votes .*'ties': 2"):
        written(study, tmp_path / "out", form)
    assert not (tmp_path / "out").exists()


def test_the_card_says_what_raters_could_choose(study: Study, tmp_path: Path) -> None:
    out, _ = written(study, tmp_path / "out", "pickapic")
    card = " ".join((out / "README.md").read_text().split())
    assert "left, right, tie (or, if the task offers them, both good or both bad" in card
    assert "| skipped_comparisons | 2 |" in card
