"""The benchmark of ratings and alignment, on a study of 40 images."""

import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ratings
from ratings import METHODS, Ground, Method, Point, Sizes, curve, prepared

from sayso.base.errors import UserError
from sayso.base.types import digest
from sayso.cli.options import parse
from sayso.stages.align import AlignConfig
from sayso.study.study import Study

SMALL = "--batch-size 8 --pretraining-images 16 --pretraining-fraction 0.5"
WAYS = [
    replace(METHODS["ours"], fit="--max-epochs 2", align=f"--draw reward {SMALL}"),
    replace(METHODS["paper-rated"], fit="--max-epochs 2", align=f"--no-unrated {SMALL}"),
]
NUMBERS, SIZES = (12, 24), Sizes(prompts=10, train_images=4, test=4, fidelity=0, steps=2)


def state(folder: Path) -> dict[str, tuple[int, str]]:
    """What every file of a folder was changed at and holds."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(p): (p.stat().st_mtime_ns, digest(p.read_bytes().hex())) for p in files}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study whose making was stopped once, between drawing and rating."""
    path, plain = tmp_path_factory.mktemp("source") / "a study", ratings.run_line

    def stopped(line: str) -> Any:
        if line.startswith("rate "):
            raise KeyboardInterrupt
        return plain(line)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ratings, "run_line", stopped)
        with pytest.raises(KeyboardInterrupt):
            ratings.made(path, SIZES)
    assert not path.exists()
    ratings.made(path, SIZES)
    return path


@pytest.fixture(scope="module")
def played(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The curve in a folder, made in two parts as two processes make it."""
    work, before = tmp_path_factory.mktemp("ratings"), state(source)
    ground = prepared(source, work, SIZES, 0)
    first = curve(ground, work, SIZES, NUMBERS, WAYS[:1], WAYS)
    results = curve(ground, work, SIZES, NUMBERS, WAYS[1:], WAYS)
    points = [Point(ground, work, way, n, SIZES.steps) for way in WAYS for n in NUMBERS]
    return {"work": work, "ground": ground, "first": first, "results": results, "points": points,
            "before": before}  # fmt: skip


def test_each_study_has_all_images_and_its_share_of_the_ratings(
    played: dict[str, Any], source: Path
) -> None:
    whole, work = Study.open(source), played["work"]
    values = {r.id: r.value for r in whole.feedback.ratings(simulated=True)}
    known: dict[int, dict[str, str]] = {}
    for point in played["points"]:
        study = Study.open(work / point.name)
        own = {r.id: r.value for r in study.feedback.ratings(simulated=True)}
        assert len(own) == point.n
        assert own.items() <= values.items()
        assert known.setdefault(point.n, own) == own
        assert {s.id for s in whole.samples("base")} < {s.id for s in study.samples("base")}
    assert known[12].items() < known[24].items()


def test_the_study_is_only_read_and_its_images_are_not_copied(
    played: dict[str, Any], source: Path
) -> None:
    assert state(source) == played["before"]
    image = Study.open(source).samples("base")[0]
    copy = played["work"] / played["points"][0].name
    for name in (image.path, image.latents):
        assert (copy / name).samefile(source / name)


def test_rows_are_what_the_evaluation_found(played: dict[str, Any]) -> None:
    assert [r["ratings"] for r in played["first"]["rows"]] == [12, 24]
    rows = played["results"]["rows"]
    assert [(r["method"], r["ratings"]) for r in rows] == [
        ("ours", 12), ("ours", 24), ("paper-rated", 12), ("paper-rated", 24),
    ]  # fmt: skip
    for row in rows:
        study = Study.open(played["work"] / row["study"])
        result = study.find_run("evaluate-align-rwr").result
        votes = next(c for c in result["comparisons"] if c["question"] == "fidelity")
        assert row["net"]["fidelity"]["value"] == pytest.approx(votes["net"])
        assert row["net"]["fidelity"]["win"] == votes["win"]["value"]
        assert row["truth"] == result["alignment"]["aligned"]
        assert row["fitted_to"]["ratings"] == row["ratings"]
        assert row["base"] == rows[0]["base"]
        assert row["commit"]


def test_results_are_written_as_json_table_and_picture(played: dict[str, Any]) -> None:
    work, results = played["work"], played["results"]
    assert json.loads((work / "ratings.json").read_text()) == json.loads(json.dumps(results))
    lines = (work / "ratings.md").read_text().splitlines()
    assert len(lines) == 2 + 1 + 4
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| 0", "| 12", "| 12", "| 24", "| 24"]
    share = results["rows"][0]["truth"]["all"]["value"]
    assert f"{100 * share:.0f} % (" in lines[3]
    assert (work / "ratings.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_finished_is_kept_and_what_is_lost_is_made_again(
    played: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    work, ground, lost = played["work"], played["ground"], played["points"][0]
    row = lost.row.read_text()
    runs = state(work / lost.name / "runs")
    lines: list[str] = []
    plain = ratings.run_line

    def run(line: str) -> Any:
        lines.append(line)
        return plain(line)

    monkeypatch.setattr(ratings, "run_line", run)
    assert curve(ground, work, SIZES, NUMBERS, WAYS, WAYS) == played["results"]
    assert lines == []
    lost.row.unlink()
    assert curve(ground, work, SIZES, NUMBERS, WAYS, WAYS) == played["results"]
    assert [line.split()[0] for line in lines] == ["fit", "align", "generate", "rate", "evaluate"]
    assert lost.row.read_text() == row
    # the runs were finished and are the same files
    assert state(work / lost.name / "runs") == runs


def with_other_ratings(ground: Ground) -> Ground:
    first, *others = ground.ratings
    other = replace(first, value="bad" if first.value == "good" else "good")
    return replace(ground, ratings=[other, *others])


@pytest.mark.parametrize("change", [
    lambda p: replace(p, n=13),
    lambda p: replace(p, steps=3),
    lambda p: replace(p, method=replace(p.method, fit="--max-epochs 3")),
    lambda p: replace(p, method=replace(p.method, align=SMALL)),
    lambda p: replace(p, ground=replace(p.ground, identity="other")),
    lambda p: replace(p, ground=with_other_ratings(p.ground)),
])  # fmt: skip
def test_what_decides_a_point_is_in_its_name(
    played: dict[str, Any], change: Callable[[Point], Point]
) -> None:
    point = played["points"][0]
    assert change(point).name != point.name
    assert replace(point).name == point.name


def test_a_pool_of_test_images_changes_nothing(
    played: dict[str, Any], source: Path, tmp_path: Path
) -> None:
    study = Study.open(Path(shutil.copytree(source, tmp_path / "study")))
    ratings.run_line(f"generate '{study.path}' --prompts test --per-prompt 6")
    assert len(study.samples("base")) == 40 + 4 * 6
    ground = prepared(study.path, tmp_path / "work", SIZES, 0)
    assert len(ground.study.samples("base")) == 40 + 4 * 4
    assert ground.identity == played["ground"].identity


def test_another_seed_draws_other_ratings(source: Path) -> None:
    study = Study.open(source)
    first, again, other = (ratings.ratings_of(study, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert {r.id for r in first} == {r.id for r in other}
    assert {r.id for r in first[:12]} != {r.id for r in other[:12]}


def test_a_study_that_is_not_there_is_made_whole_or_not_at_all(source: Path) -> None:
    study = Study.open(source)
    assert len(study.samples("base")) == len(ratings.ratings_of(study, 0)) == 40
    assert [path.name for path in source.parent.iterdir()] == ["a study"]


def test_a_study_without_ratings_or_with_too_few_is_refused(
    played: dict[str, Any], source: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="41 ratings asked for, but there are 40"):
        curve(played["ground"], played["work"], SIZES, [24, 41], WAYS, WAYS)
    unrated = Path(shutil.copytree(source, tmp_path / "unrated"))
    (unrated / "feedback.db").unlink()
    with pytest.raises(UserError, match=r"nobody has rated .* sayso rate"):
        prepared(unrated, tmp_path / "work", SIZES, 0)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_this_version_takes_the_options_of_every_method(method: Method) -> None:
    parsed = parse("align", AlignConfig, "aligner", ["s", *shlex.split(method.align)])
    config = parsed.config.for_aligner(parsed.options.defaults)
    config.check()
    assert config.pretraining_fraction == 0.5
    assert parsed.options.unrated is (method.name != "paper-rated")


@pytest.mark.parametrize(("option", "value", "said"), [
    ("--only", "ours,papers", "'papers' is unknown"),
    ("--ratings", "0,5", "0 ratings are too few"),
    ("--ratings", "many", "invalid numbers value"),
])  # fmt: skip
def test_bad_options_are_refused(
    option: str, value: str, said: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("sys.argv", ["ratings.py", "study", "work", option, value])
    with pytest.raises(SystemExit):
        ratings.main()
    assert said in capsys.readouterr().err
