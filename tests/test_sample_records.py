"""Records of samples: several files that are read as one, and moved into one."""

import json
from pathlib import Path

import pytest
from studies import random_study

from sayso.base import files
from sayso.base.errors import UserError
from sayso.stages.generate import GenerateConfig, generate
from sayso.study.sample_records import gather, read_records, record_files, writers_file
from sayso.study.study import Study
from sayso.web.work import opening
from sayso.web.work.tasks import TaskOptions


@pytest.fixture
def drawn(tmp_path: Path) -> Study:
    study = random_study(tmp_path)
    generate(study, GenerateConfig(per_prompt=2, batch_size=2))
    return study


def split(study: Study, run: str = "generate-base-train") -> list[str]:
    """Move all but the first two records to the files of two processes; the ids in plan order."""
    path = study.path / "samples.jsonl"
    rows = files.read_lines(path)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    files.append_lines(writers_file(study.path, run, 1), rows[2:4])
    files.append_lines(writers_file(study.path, run, 0), rows[4:])
    return [row["id"] for row in rows]


def test_records_of_all_writers_are_read_once(drawn: Study) -> None:
    whole = drawn.samples()
    ids = split(drawn)
    assert {s.id: s for s in drawn.samples()} == {s.id: s for s in whole}
    # an append that was moved before its file was removed
    files.append_lines(
        drawn.path / "samples.jsonl",
        files.read_lines(writers_file(drawn.path, "generate-base-train", 1)),
    )
    assert len(drawn.samples()) == len(ids) == 6
    assert len(record_files(drawn.path)) == 3


def test_a_line_that_is_there_twice_counts_once(drawn: Study) -> None:
    """As after two commands that take in the same images at once."""
    for name, read in (("samples", drawn.samples), ("prompts", drawn.prompts)):
        path, whole = drawn.path / f"{name}.jsonl", read()
        first = files.read_lines(path)[0]
        files.append_lines(path, [dict(reversed(first.items()))])
        assert read() == whole
        files.append_lines(path, [{**first, "prompt_id": "q", "text": "another"}])
        line = len(whole) + 2
        says = rf"{path} line {line} repeats {name[:-1]} {first['id']} .*; delete the line"
        with pytest.raises(UserError, match=says):
            read()


def test_gathered_they_stand_in_the_order_of_the_plan(drawn: Study) -> None:
    whole = drawn.samples()
    ids = split(drawn)
    gather(drawn.path, "generate-base-train", {name: i for i, name in enumerate(ids)})
    assert drawn.samples() == whole
    assert record_files(drawn.path) == [drawn.path / "samples.jsonl"]
    assert not (drawn.path / "samples").exists()


def test_gathering_that_was_killed_is_repeated(
    drawn: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, ids = drawn.samples(), split(drawn)
    places = {name: i for i, name in enumerate(ids)}
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception):
            gather(drawn.path, "generate-base-train", places)
    assert drawn.samples() == whole
    gather(drawn.path, "generate-base-train", places)
    assert drawn.samples() == whole
    assert len((drawn.path / "samples.jsonl").read_text().splitlines()) == 6


def test_records_of_another_run_stay_where_they_are(drawn: Study) -> None:
    ids = split(drawn, "generate-other")
    gather(drawn.path, "generate-base-train", {name: i for i, name in enumerate(ids)})
    assert len(record_files(drawn.path)) == 3
    assert len(drawn.samples()) == 6


def test_records_that_are_moved_while_they_are_read_are_not_missed(
    drawn: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = split(drawn)
    read, places = files.read_lines, {name: i for i, name in enumerate(ids)}

    def moving(path: Path) -> list[files.JsonObject]:
        found = read(path)
        monkeypatch.setattr(files, "read_lines", read)
        gather(drawn.path, "generate-base-train", places)
        return found

    monkeypatch.setattr(files, "read_lines", moving)
    assert {row["id"] for _, row in read_records(drawn.path)} == set(ids)


def test_a_killed_launch_is_taken_up_by_one_process(drawn: Study) -> None:
    """Some records are with the processes, some lost; pictures are drawn for the lost ones only."""
    whole = drawn.samples()
    split(drawn)
    writers_file(drawn.path, "generate-base-train", 1).unlink()
    (drawn.path / "runs/generate-base-train/result.json").unlink()
    run = generate(drawn, GenerateConfig(per_prompt=2, batch_size=2))
    assert run.result["drawn"] == 2
    assert {s.id: s for s in drawn.samples()} == {s.id: s for s in whole}
    assert record_files(drawn.path) == [drawn.path / "samples.jsonl"]


def test_the_rating_app_sees_what_a_process_appends(drawn: Study) -> None:
    options = TaskOptions()
    before = opening._fingerprint(drawn, options)
    file = writers_file(drawn.path, "generate-base-train", 3)
    files.append_lines(file, files.read_lines(drawn.path / "samples.jsonl")[:1])
    assert opening._fingerprint(drawn, options) != before
