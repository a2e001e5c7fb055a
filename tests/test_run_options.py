"""Which commands go on with a run that is there, and which are refused."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest

from sayso.base.errors import UserError
from sayso.base.types import Sampler
from sayso.cli import commands as cli
from sayso.stages.align import AlignConfig
from sayso.stages.generate import GenerateConfig
from sayso.study.info import StudyInfo
from sayso.study.run import Run
from sayso.study.study import Study


@dataclass(frozen=True)
class Config:
    portions: ClassVar = frozenset({"at_once"})
    may_grow: ClassVar = frozenset({"max_steps"})

    model: str = "base"
    at_once: int = 8
    max_steps: int = 10
    came_later: str | None = None
    sizes: list[int] = field(default_factory=lambda: [1, 2])


@dataclass(frozen=True)
class Plugin:
    weight: float = 0.5
    came_later: int = 3


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study.create(tmp_path / "study", StudyInfo("s", 7))


def begun(study: Study, *, without: tuple[str, ...] = (), **more: object) -> Run:
    """A run that an older version began: without some options, with others."""
    run = study.run("x", "", Config(), Plugin())
    config = run.config
    for name in without:
        config.pop(name, None)
        config["options"].pop(name, None)
    (run.path / "config.json").write_text(json.dumps(config | more))
    return run


def test_an_option_that_came_later_means_its_default(study: Study) -> None:
    begun(study, without=("came_later", "sizes"))
    run = study.run("x", "", Config(), Plugin())
    assert run.config["came_later"] is None
    assert run.config["options"] == {"weight": 0.5, "came_later": 3}


@pytest.mark.parametrize(
    ("config", "plugin", "differs"),
    [
        (Config(came_later="now"), Plugin(), r"\(came_later None → 'now'\)"),
        (Config(model="runs/align-x"), Plugin(), r"\(model 'base' → 'runs/align-x'\)"),
        (Config(sizes=[3]), Plugin(), r"\(sizes \[1, 2\] → \[3\]\)"),
        (Config(), Plugin(weight=0.1), r"\(options.weight 0.5 → 0.1\)"),
        (Config(), Plugin(came_later=4), r"\(options.came_later 3 → 4\)"),
    ],
)
def test_only_what_differs_is_refused_and_named(
    study: Study, config: Config, plugin: Plugin, differs: str
) -> None:
    begun(study, without=("came_later", "sizes"))
    with pytest.raises(UserError, match=differs):
        study.run("x", "", config, plugin)


def test_an_option_that_went_keeps_an_unfinished_run_from_going_on(study: Study) -> None:
    run = begun(study, went=True)
    with pytest.raises(UserError, match=r"options that this version does not have \(went True\)"):
        study.run("x", "", Config(), Plugin())
    run.finish({})
    assert study.run("x", "", Config(), Plugin()).finished


def test_portions_are_no_part_of_a_run(study: Study) -> None:
    begun(study)
    assert study.run("x", "", Config(at_once=1), Plugin()).config["at_once"] == 1
    assert "batch_size" in GenerateConfig.portions
    assert {"micro_batch_size", "gradient_checkpointing"} <= AlignConfig.portions


def test_more_steps_go_on_and_fewer_are_refused(study: Study) -> None:
    run = begun(study)
    assert study.run("x", "", Config(max_steps=20), Plugin()).config["max_steps"] == 20
    with pytest.raises(UserError, match="started with --max-steps 20, and 10 is less"):
        study.run("x", "", Config(max_steps=10), Plugin())
    run.finish({})
    with pytest.raises(UserError, match=r"finished with --max-steps 20 .* give --model runs/x"):
        study.run("x", "", Config(max_steps=30), Plugin())


def test_a_run_without_config_is_half_written_only_if_it_holds_something(study: Study) -> None:
    run = begun(study)
    (run.path / "config.json").unlink()
    assert study.run("x", "", Config(), Plugin()).config["model"] == "base"
    (run.path / "config.json").unlink()
    run.log(1, loss=0.5)
    with pytest.raises(UserError, match="is incomplete"):
        study.run("x", "", Config(), Plugin())


def info(study: Study) -> dict[str, object]:
    return json.loads((study.path / "study.json").read_text())


def test_study_json_without_later_fields_means_their_defaults(study: Study) -> None:
    row = info(study)
    for name in ("pretraining", "feedback_url", "sampler"):
        del row[name]
    (study.path / "study.json").write_text(json.dumps(row))
    opened = Study.open(study.path).info
    assert (opened.pretraining, opened.feedback_url) == ("tinyworld", "")
    assert opened.sampler == Sampler()
    (study.path / "study.json").write_text(json.dumps(row | {"sampler": {"eta": 0.5}}))
    assert Study.open(study.path).info.sampler == Sampler(eta=0.5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"colour": 1}, "study.json has unknown fields: colour"),
        ({"sampler": {"speed": 3}}, "study.json has unknown fields: speed"),
        ({"sampler": 3}, "is not a sampler"),
        ({"sampler": {"num_inference_steps": "6"}}, 'has num_inference_steps "6"; give a whole'),
        ({"sampler": {"guidance_scale": None}}, "has guidance_scale null; give a number"),
        ({"base_model": None}, "has base_model null; give text in quotes"),
        ({"held_out": "none"}, 'has held_out "none"; give first tenth or by name'),
        ({"seed": -1}, "study.json: seed -1 is not allowed; give 0 to"),
    ],
)
def test_study_json_that_was_edited_is_refused(
    study: Study, change: dict[str, object], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (study.path / "study.json").write_text(json.dumps(info(study) | change))
    with pytest.raises(SystemExit) as stop:
        cli.main(["report", str(study.path)])
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


def test_rows_with_unknown_fields_name_file_and_line(study: Study) -> None:
    row = {"id": "p", "text": "a dog", "category": "count", "slots": {}, "split": "train"}
    lines = [json.dumps(r) + "\n" for r in (row, row | {"id": "q", "hue": 1})]
    (study.path / "prompts.jsonl").write_text("".join(lines))
    with pytest.raises(UserError, match=r"prompts.jsonl line 2 has unknown fields: hue"):
        study.prompts()
    (study.path / "prompts.jsonl").write_text(json.dumps(row | {"slots": 7}) + "\n")
    with pytest.raises(UserError, match=r"prompts.jsonl line 1 has slots 7; give an object"):
        study.prompts()
    (study.path / "samples.jsonl").write_text('{"id": "s"}\n')
    with pytest.raises(UserError, match=r"samples.jsonl line 1"):
        study.samples()


def test_a_finished_run_whose_files_are_damaged_is_named(study: Study) -> None:
    run = begun(study)
    run.log(1, loss=0.5)
    run.weights.mkdir()
    (run.weights / "model.safetensors").write_bytes(b"x" * 300_000)
    run.finish({})
    assert study.run("x", "", Config(), Plugin()).finished
    for name in ("log.jsonl", "weights/model.safetensors"):
        whole = (run.path / name).read_bytes()
        for bad in (whole[:-1], bytes(len(whole)), None):
            (run.path / name).unlink()
            if bad is not None:
                (run.path / name).write_bytes(bad)
            with pytest.raises(UserError, match=f"finished, but its {name} is missing or damaged"):
                study.run("x", "", Config(), Plugin())
            (run.path / name).write_bytes(whole)
