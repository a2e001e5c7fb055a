"""Models and rewards that were made anew under their old names: nothing of the old ones is used."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import synthetic as syn

from sayso.base.errors import UserError
from sayso.base.files import read_lines
from sayso.base.hashes import weight_hashes
from sayso.base.types import Prompt, Sampler, Size
from sayso.reporting.report_data import ReportData
from sayso.reporting.summary import summarise
from sayso.stages import _scoring as scoring
from sayso.stages.agreement import AgreementConfig, agreement
from sayso.stages.evaluate import EvaluateConfig, evaluate, plan
from sayso.stages.rate import RateConfig, rate
from sayso.stages.report import ReportConfig, report
from sayso.study.generations import Generations
from sayso.study.identity import base_identity, model_identity
from sayso.study.study import Study
from sayso.tinyworld import paths
from sayso.votes.standings import standings
from sayso.web.work.tasks import TaskOptions, draft, task_identity

CONFIG = EvaluateConfig(model=syn.ALIGNED, judge="none", reward="")
OTHER = Sampler(num_inference_steps=3, guidance_scale=7.0, image_size=Size(64, 64))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study whose pictures of the tuned model record its identity, evaluated and reported."""
    study, truth = syn.make_study(tmp_path_factory.mktemp("made") / "study", test=8)
    syn.add_runs(study)
    write_weights(study, b"one")
    drop(study, syn.ALIGNED)
    add_aligned(study, truth)
    syn.add_ratings(study, truth, simulated=False, which="test")
    syn.add_comparisons(study, truth, raters=2)
    evaluate(study, CONFIG)
    return study.path


@pytest.fixture
def study(made: Path, tmp_path: Path) -> Study:
    return Study.open(Path(shutil.copytree(made, tmp_path / "study")))


def write_weights(study: Study, content: bytes, run: str = "align-rwr") -> None:
    folder = study.path / "runs" / run / "weights"
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(content)


def drop(study: Study, model: str) -> None:
    path = study.path / "samples.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows if r["model"] != model))


def add_aligned(study: Study, truth: syn.Truth | None = None, **options: object) -> None:
    identity = model_identity(study, syn.ALIGNED)
    truth = truth or syn.Truth({})
    syn.add_images(study, truth, syn.ALIGNED, study.prompts("test"), 4, identity, **options)


def ids_of(study: Study) -> set[str]:
    return {s.id for s in study.samples(syn.ALIGNED)}


# a run of align made anew


def test_images_of_an_earlier_run_are_left_out(study: Study) -> None:
    old = ids_of(study)
    assert len(old) == 32
    write_weights(study, b"two")
    assert study.samples(syn.ALIGNED) == []
    assert old <= {s.id for s in study.samples()}
    add_aligned(study)
    assert len(ids_of(study)) == 32
    assert not ids_of(study) & old
    assert Generations(study).notes([syn.ALIGNED]) == [
        "32 images of an earlier runs/align-rwr are left out"
    ]
    write_weights(study, b"one")
    assert ids_of(study) == old


def test_an_evaluation_never_sees_an_earlier_run(study: Study) -> None:
    old = ids_of(study)
    write_weights(study, b"two")
    with pytest.raises(UserError, match="no images of runs/align-rwr"):
        evaluate(study, CONFIG)
    add_aligned(study)
    run = evaluate(study, CONFIG)
    assert run.name.startswith("runs/evaluate-align-rwr-")
    scored = {row["id"] for row in read_lines(run.path / "scores.jsonl")}
    assert not scored & old
    assert ids_of(study) <= scored
    result = run.result
    assert {(c["first"], c["second"]) for c in result["comparisons"]} == {(syn.BEST, syn.BASE)}
    assert {m["model"] for t in result["bradley_terry"] for m in t["models"]} == {
        syn.BASE, syn.BEST
    }  # fmt: skip
    # two pairs with the tuned model, 8 prompts, 2 questions, 2 raters
    assert result["comparisons_left_out"] == {"images of earlier models": 64}
    assert evaluate(study, CONFIG).name == run.name
    with pytest.raises(UserError, match="belongs to an earlier model"):
        evaluate(study, replace(CONFIG, name="align-rwr"))


def test_a_report_never_tells_of_an_earlier_run(study: Study) -> None:
    assert summarise(ReportData(study))["alignment"]["aligned"]["all"] is not None
    write_weights(study, b"two")
    summary = summarise(ReportData(study))
    assert summary["alignment"]["aligned"]["all"] is None
    assert summary["comparison"]["win"] is None
    assert "runs/evaluate-align-rwr measured an earlier runs/align-rwr" in str(summary["missing"])
    with pytest.raises(UserError, match="measured an earlier runs/align-rwr"):
        report(study, ReportConfig(evaluation="evaluate-align-rwr"))
    old = ids_of(study)
    add_aligned(study)
    run = evaluate(study, CONFIG)
    assert ReportData(study).evaluate_run.name == run.name  # type: ignore[union-attr]
    counts = ReportData(study).images
    assert counts[syn.ALIGNED] == 32
    assert counts[next(name for name in counts if "earlier" in name)] == 32
    assert not old & {row["id"] for row in ReportData(study).scores}


def test_a_report_shows_the_images_that_were_evaluated(study: Study) -> None:
    """And none of the same prompts that were drawn later."""
    before = report(study).read_text()
    study.write_prompts([*study.prompts(), Prompt("new", "a dog", "count", {}, "seen")])
    assert report(study).read_text().count("<img") == before.count("<img")


def test_statistics_of_comparisons_keep_two_runs_of_one_name_apart(study: Study) -> None:
    votes = study.feedback.comparisons()
    write_weights(study, b"two")
    labelled = list(Generations(study).labelled(votes))
    names = {m["model"] for t in standings(labelled) for m in t["models"]}
    earlier = next(name for name in names if "earlier" in name)
    assert names == {syn.BASE, syn.BEST, earlier}
    assert earlier.startswith("runs/align-rwr (earlier, ")
    sections = agreement(study, AgreementConfig(raters="simulated", resamples=0)).result["sections"]
    assert {tuple(s["models"]) for s in sections if s["task"] == "compare"} == {
        (earlier, syn.BASE), (earlier, syn.BEST), (syn.BEST, syn.BASE)
    }  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        TaskOptions(kind="compare", prompts="test", left=syn.BASE, right=syn.ALIGNED),
        TaskOptions(kind="rate", prompts="test", model=syn.ALIGNED),
    ],
)
def test_raters_are_never_asked_about_an_earlier_run(study: Study, options: TaskOptions) -> None:
    old, task = ids_of(study), task_identity(study, options)
    write_weights(study, b"two")
    with pytest.raises(UserError, match="generate"):
        draft(study, options)
    add_aligned(study)
    asked = {s.id for page in draft(study, options) for i in page for p in i.sets for s in p}
    assert ids_of(study) <= asked
    assert not asked & old
    assert task_identity(study, options) not in (task, options.identity)


def test_simulated_raters_are_never_asked_about_an_earlier_run(study: Study) -> None:
    old = ids_of(study)
    write_weights(study, b"two")
    config = RateConfig(simulated=True, model="align-rwr", prompts="test")
    with pytest.raises(UserError, match="no images of model 'runs/align-rwr'"):
        rate(study, config)
    add_aligned(study)
    rate(study, config)
    rated = {r.sample_id for r in study.feedback.ratings(simulated=True)}
    assert rated == ids_of(study)
    assert not rated & old


def test_a_task_of_before_identities_were_recorded_is_found_again(study: Study) -> None:
    options = TaskOptions(kind="compare", prompts="test", left=syn.BASE, right=syn.BEST)
    assert task_identity(study, options) == options.identity


def test_a_reward_made_anew_is_another_reward(
    study: Study, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "brightness.py").write_text(syn.REWARD_FILE)
    own, load = str(tmp_path / "brightness.py"), scoring.load_reward
    monkeypatch.setattr(scoring, "load_reward", lambda s, name, device: load(s, own, device))
    monkeypatch.setattr("sayso.rewards.reward_folders", lambda *_: [])
    write_weights(study, b"head", "fit-clip_head")
    config = replace(CONFIG, reward="./runs/fit-clip_head", name="r")
    evaluate(study, config)
    assert ReportData(study).evaluate_run.name == "runs/evaluate-r"  # type: ignore[union-attr]
    write_weights(study, b"another head", "fit-clip_head")
    assert ReportData(study).evaluate_run.name == "runs/evaluate-align-rwr"  # type: ignore[union-attr]
    with pytest.raises(UserError, match="belongs to an earlier model, reward or judge"):
        evaluate(study, config)


# of before identities were recorded


def note_draw(study: Study, model: str, folders: list[Path], **config: object) -> None:
    """A run of generate as a sayso without identities left it."""
    run = study.run("generate", "old", {"model": model, "best_of": 0, **config})
    run.add_environment({"loaded": [{"sha256": weight_hashes(folder)} for folder in folders]})
    run.finish({"drawn": 5})


def test_old_images_are_the_models_if_the_weights_noted_are_its(study: Study) -> None:
    generations = Generations(study)
    assert len(generations.of("base")) == 64
    assert "do not record" in generations.notes(["base"])[0]
    note_draw(study, "base", [paths().pipeline])
    generations = Generations(study)
    assert len(generations.of("base")) == 64
    assert generations.notes(["base"]) == []


def test_old_images_are_not_the_models_if_other_weights_are_noted(study: Study) -> None:
    note_draw(study, "base", [study.path / "runs" / "align-rwr" / "weights"])
    assert study.samples("base") == []
    assert Generations(study).notes(["base"]) == ["64 images of an earlier base are left out"]


def test_old_images_are_not_those_of_a_run_that_records_its_identity(study: Study) -> None:
    drop(study, syn.ALIGNED)
    syn.add_images(study, syn.Truth({}), syn.ALIGNED, study.prompts("test"), 1)
    assert len(study.samples(syn.ALIGNED)) == 8
    path = study.path / "runs" / "align-rwr" / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "identity": "x"}))
    assert study.samples(syn.ALIGNED) == []


def test_old_selections_by_two_rewards_are_nobodys(study: Study) -> None:
    assert len(study.samples(syn.BEST)) == 32
    for name, reward in (("a", "runs/fit-clip_head"), ("b", "clip_score")):
        options = {"model": "base", "best_of": 16, "per_prompt": 4, "reward": reward}
        study.run("generate", name, options).finish({"drawn": 0})
    assert study.samples(syn.BEST) == []


def test_without_the_weights_the_newest_images_are_the_models(study: Study) -> None:
    """On a rater's machine that has none of the models."""
    old = ids_of(study)
    shutil.rmtree(study.path / "runs" / "align-rwr" / "weights")
    assert ids_of(study) == old
    syn.add_images(study, syn.Truth({}), syn.ALIGNED, study.prompts("test"), 1, "b" * 16)
    assert len(ids_of(study)) == 8
    assert not ids_of(study) & old


def test_names_of_before_there_was_one_form_are_read_as_that_form(study: Study) -> None:
    path = study.path / "samples.jsonl"
    path.write_text(path.read_text().replace('"runs/align-rwr"', '"align-rwr"'))
    assert len(ids_of(study)) == 32


# one sampler


def add_fidelity(study: Study, model: str, identity: str, sampler: Sampler) -> None:
    prompts = study.prompts("fidelity")
    if not prompts:
        prompt = replace(study.prompts("test")[0], id="f", split="fidelity")
        study.write_prompts([*study.prompts(), prompt])
        prompts = [prompt]
    syn.add_images(study, syn.Truth({}), model, prompts, 1, identity, sampler)


def test_fidelity_of_two_samplers_is_refused(study: Study) -> None:
    add_fidelity(study, "base", base_identity(study), syn.SAMPLER)
    assert plan(study, CONFIG)["prompts"] == 8
    add_fidelity(study, "base", base_identity(study), OTHER)
    with pytest.raises(UserError, match=r"base for fidelity prompts .* 2 different samplers"):
        evaluate(study, replace(CONFIG, name="again"))
    assert not (study.path / "runs" / "evaluate-again").exists()


def test_fidelity_of_another_sampler_than_the_test_is_refused(study: Study) -> None:
    add_fidelity(study, "base", base_identity(study), OTHER)
    with pytest.raises(UserError, match=r"and of base for fidelity prompts .* generate them"):
        evaluate(study, replace(CONFIG, name="again"))


def test_a_selection_of_another_sampler_is_refused(study: Study) -> None:
    drop(study, syn.BEST)
    syn.add_images(study, syn.Truth({}), syn.BEST, study.prompts("test"), 1, sampler=OTHER)
    with pytest.raises(UserError, match="base for test prompts and of base@best-of-16"):
        evaluate(study, replace(CONFIG, name="again"))


def test_comparisons_of_another_sampler_are_left_out(study: Study) -> None:
    vote = study.feedback.comparisons()[0]
    syn.add_images(study, syn.Truth({}), "base@best-1-of-2-by-x", study.prompts("test"), 1,
                   "c" * 16, OTHER)  # fmt: skip
    other = study.samples("base@best-1-of-2-by-x")[0]
    made = replace(vote, id="odd", left_ids=(other.id,), left_model=other.model,
                   prompt_id=other.prompt_id)  # fmt: skip
    study.feedback.add_comparisons([made])
    result = evaluate(study, replace(CONFIG, name="again", best_of=syn.BEST)).result
    assert result["comparisons_left_out"] == {"images generated with another sampler": 1}
    assert result["sampler"] == json.loads(json.dumps(asdict(syn.SAMPLER)))


def test_two_selections_of_the_largest_n_have_to_be_chosen_between(study: Study) -> None:
    name = "base@best-1-of-16-by-x"
    syn.add_images(study, syn.Truth({}), name, study.prompts("test"), 1, "d" * 16)
    with pytest.raises(UserError, match=f"there are {name} and {syn.BEST}; choose one"):
        evaluate(study, replace(CONFIG, name="again"))
    result = evaluate(study, replace(CONFIG, name="again", best_of=name)).result
    assert result["models"]["best_of_n"] == name
