"""Judges: one's own file from outside the package, the options of each, and who judged is told."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import synthetic as syn
import torch

from sayso.base.errors import UserError
from sayso.base.plugins import plugin_names
from sayso.base.types import Rating, digest
from sayso.cli import commands as cli
from sayso.cli.options import parse
from sayso.judges import load_judge
from sayso.judges.people import People
from sayso.judges.reward import RewardJudge
from sayso.reporting import words
from sayso.reporting.report_data import ReportData
from sayso.stages.evaluate import EvaluateConfig, evaluate
from sayso.study.study import Study

OWN = '''
"""True where the picture is bright."""

from dataclasses import dataclass

from sayso import Judge, Verdict


@dataclass
class Bright(Judge):
    """Looks at all pixels alike."""

    least: float = 0.5
    """Mean from which a picture is bright."""

    def verdicts(self, images, prompts):
        means = images.mean(dim=(1, 2, 3)).tolist()
        return [Verdict(m >= self.least, abs(m - self.least), f"mean {m:.2f}") for m in means]
'''
CONFIG = EvaluateConfig(model=syn.ALIGNED, reward="", name="own")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    study, true_images = syn.make_study(tmp_path_factory.mktemp("judges") / "study", 2, 8, 2)
    syn.add_ratings(study, true_images, simulated=False, which="test")
    syn.add_runs(study)
    return study.path


@pytest.fixture
def study(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A copy that a test may change; no CLIP is asked."""
    study = Study.open(Path(shutil.copytree(made, tmp_path / "study")))
    reward = tmp_path / "brightness.py"
    reward.write_text(syn.REWARD_FILE)
    from sayso.stages import _scoring as scoring

    load = scoring.load_reward
    monkeypatch.setattr(
        scoring, "load_reward", lambda s, name, device: load(s, str(reward), device)
    )
    return study


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "bright.py"
    path.write_text(OWN)
    return path


def lines_of(path: Path) -> dict[str, dict[str, object]]:
    return {row["id"]: row for row in map(json.loads, path.read_text().splitlines())}


def test_a_file_of_twenty_lines_judges_from_the_command_line(study: Study, own: Path) -> None:
    assert len(OWN.strip().splitlines()) <= 20
    cli.run([
        "evaluate", str(study.path), "--model", syn.ALIGNED, "--reward", "", "--name", "own",
        "--judge", str(own), "--least", "0.3",
    ])  # fmt: skip
    run = study.find_run("evaluate-own")
    assert run.config["options"] == {"least": 0.3}
    assert run.config["judge"] == str(own.resolve())
    assert run.result["judged"] == "judged by Bright"
    found = lines_of(run.path / "scores.jsonl")
    for sample in study.samples("base")[-8:]:
        mean = np.asarray(study.image(sample)).mean() / 255
        row = found[sample.id]
        assert row["true"] is bool(mean >= 0.3)
        assert row["certainty"] == pytest.approx(abs(mean - 0.3), abs=1e-6)
        assert row["why"] == f"mean {mean:.2f}"
    shares = run.result["alignment"]["base"]["all"]
    drawn = [row["true"] for row in found.values() if row["model"] == "base"]
    assert shares["value"] == pytest.approx(np.mean(drawn))


def test_a_changed_file_is_another_judge(study: Study, own: Path) -> None:
    config = replace(CONFIG, judge=str(own))
    first = evaluate(study, config)
    assert evaluate(study, config).result == first.result
    assert ReportData(study).evaluate_run is not None
    own.write_text(OWN.replace("mean(dim", "amax(dim"))
    with pytest.raises(UserError, match="earlier model, reward or judge"):
        evaluate(study, config)
    assert ReportData(study).evaluate_run is None
    assert str(own.resolve()) in ReportData(study).missing["evaluate"]
    again = evaluate(study, replace(config, name=""))
    assert again.result["alignment"] != first.result["alignment"]


def test_an_evaluation_made_before_judges_had_identities_is_finished(study: Study) -> None:
    """Its own name must still mean it, and its judge was called "none"."""
    config = replace(CONFIG, name="", judge="none")
    run = evaluate(study, config)
    environment = json.loads((run.path / "env.json").read_text())
    result = json.loads((run.path / "result.json").read_text())
    known = {k: v for k, v in result["identities"].items() if not k.startswith("judge")}
    environment["identity"] = digest(known)
    (run.path / "env.json").write_text(json.dumps(environment))
    result |= {"identities": known, "judge": "ratings of people"}
    (run.path / "result.json").write_text(json.dumps(result))
    assert evaluate(study, config).name == run.name
    assert ReportData(study).evaluate_run is not None


def test_the_report_names_the_judge(study: Study, own: Path) -> None:
    evaluate(study, replace(CONFIG, judge=str(own)))
    assert "judged by Bright" in words.lead(ReportData(study))
    evaluate(study, replace(CONFIG, judge="tinyworld", name="world"))
    lead, limits = words.lead(ReportData(study)), words.limits(ReportData(study))
    assert "read by the tiny world's judge" in lead
    assert any("gets a few in a hundred wrong" in line for line in limits)


def test_labels_of_simulated_raters_are_held_against_a_judge_of_ones_own(
    study: Study, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = study.samples("base")[:6]
    study.feedback.add_ratings([
        Rating(f"s{i}{r}", s.id, f"simulated-{r}", "alignment", "good", True, 0.0, 1.0)
        for i, s in enumerate(samples)
        for r in range(2)
    ])  # fmt: skip
    options = ["--raters", "simulated", "--resamples", "0", "--judge", str(own), "--least", "0.3"]
    cli.run(["agreement", str(study.path), *options])
    [run] = study.runs("agreement")
    name = str(own.resolve())
    bright = [np.asarray(study.image(s)).mean() / 255 >= 0.3 for s in samples]
    assert run.result["labels"]["truth"][name]["majority"]["accuracy"] == np.mean(bright)
    assert run.result["labels"]["truths"] == {name: "the truth as judged by Bright"}
    assert "Against the truth as judged by Bright" in capsys.readouterr().err


# people


def ratings(study: Study, *values: str) -> list[Rating]:
    sample = study.samples("base")[-1]
    return [
        Rating(f"v{i}", sample.id, f"person-{i}{v}", "alignment", v, False, 0.0, 1.0)  # type: ignore[arg-type]
        for i, v in enumerate(values)
    ]


@pytest.fixture
def unrated(tmp_path: Path) -> Study:
    return syn.make_study(tmp_path / "unrated", 2, 2, 2)[0]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], None),
        (["skip"], None),
        (["good", "bad"], None),
        (["good", "good", "bad", "skip"], (True, 2 / 3, "2 of 3 said good")),
        (["bad", "bad", "bad", "good"], (False, 3 / 4, "1 of 4 said good")),
    ],
)
def test_what_peoples_ratings_come_to(
    unrated: Study, values: list[str], expected: tuple[bool, float, str] | None
) -> None:
    unrated.feedback.add_ratings(ratings(unrated, *values))
    last = unrated.samples("base")[-1]
    [verdict] = People().judge_samples(unrated, [last], unrated.prompts()[-1:])
    if expected is None:
        assert verdict is None
    else:
        assert verdict is not None
        assert (verdict.true, verdict.why) == (expected[0], expected[2])
        assert verdict.certainty == pytest.approx(expected[1])


def test_a_reviewers_decision_stands_above_the_ratings(unrated: Study) -> None:
    decision = replace(ratings(unrated, "bad")[0], id="d", shown={"adjudication": True})
    unrated.feedback.add_ratings([*ratings(unrated, "good", "good"), decision])
    [verdict] = People().judge_samples(
        unrated, unrated.samples("base")[-1:], unrated.prompts()[-1:]
    )
    assert verdict == (False, 1.0, "2 of 2 said good, a reviewer decided")


def test_simulated_raters_are_not_people(unrated: Study) -> None:
    [vote] = ratings(unrated, "good")
    unrated.feedback.add_ratings([replace(vote, rater="simulated-1", simulated=True)])
    assert People().judge_samples(
        unrated, unrated.samples("base")[-1:], unrated.prompts()[-1:]
    ) == [None]


def test_labels_of_people_are_an_option(study: Study) -> None:
    with pytest.raises(UserError, match="dawid-skene compares raters"):
        evaluate(study, replace(CONFIG, judge="people"), People(labels="dawid-skene"))
    assert not (study.path / "runs" / "evaluate-own").exists()


# a reward with a threshold


@pytest.fixture
def brightness(tmp_path: Path) -> str:
    path = tmp_path / "brightness.py"
    path.write_text(syn.REWARD_FILE)
    return str(path)


def test_a_reward_judges_by_its_threshold(study: Study, brightness: str) -> None:
    judge = RewardJudge(judge_reward=brightness, threshold=0.3)
    found = evaluate(study, replace(CONFIG, judge="reward"), judge)
    for row in lines_of(found.path / "scores.jsonl").values():
        # the tests' CLIP similarity is the brightness too
        assert row["true"] is (row["clip"] >= 0.3)  # type: ignore[operator]
        reach = 0.7 if row["true"] else 0.3
        assert row["certainty"] == pytest.approx(abs(row["clip"] - 0.3) / reach, abs=1e-5)  # type: ignore[operator]
    assert found.result["judged"].startswith("scored 0.3 or more by brightness.py")
    assert "has that reward's errors" in found.result["caveat"]


def test_a_reward_that_gives_no_verdict_is_named(study: Study, brightness: str) -> None:
    path, judge = Path(brightness), RewardJudge(judge_reward=brightness)
    path.write_text(path.read_text() + "\n    score = lambda self, images, prompts: images\n")
    judge.prepare(study)
    prompts = study.prompts("train")[:2]
    with pytest.raises(UserError, match=r"gave scores of shape \[2, 3, 8, 8\] for 2 images"):
        judge.verdicts(torch.zeros(2, 3, 8, 8), prompts)


def test_the_reward_may_be_called_by_any_of_its_names(study: Study, made: Path) -> None:
    judge = RewardJudge("clip_head.py/../fit-clip_head").canonical
    with pytest.raises(UserError, match="is not a run of"):
        judge(study)
    named = [RewardJudge(n).canonical(study) for n in ("fit-clip_head", "runs/fit-clip_head")]
    assert named == [RewardJudge("runs/fit-clip_head")] * 2


@pytest.mark.parametrize(
    ("judge", "said"),
    [
        (lambda _: RewardJudge(), "give --judge-reward"),
        (lambda own: RewardJudge(own, threshold=1.5), "scores from 0 to 1"),
        (lambda _: RewardJudge("clip_scor"), "'clip_scor': did you mean 'clip_score'"),
    ],
)
def test_a_reward_that_cannot_judge_is_refused_before_a_run_is_made(
    study: Study, brightness: str, judge: Callable[[str], RewardJudge], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        evaluate(study, replace(CONFIG, judge="reward"), judge(brightness))
    assert not (study.path / "runs" / "evaluate-own").exists()


# the user's mistakes


def test_a_judge_under_anothers_name_is_refused(study: Study) -> None:
    with pytest.raises(UserError, match="is a RewardJudge, but the config names people"):
        evaluate(study, replace(CONFIG, judge="people"), RewardJudge("clip_score"))
    with pytest.raises(UserError, match="is a People, but the config names tinyworld"):
        evaluate(study, replace(CONFIG, judge="auto"), People())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("@dataclass\n", ""), "is not a dataclass"),
        (("least: float = 0.5", "least: float"), "option least .* has no default"),
        (("least", "model"), "has an option model, but the command has one"),
        (("class Bright", "class _Bright"), "defines 0 public subclasses of Judge"),
    ],
)
def test_a_file_that_is_no_judge_is_refused_in_one_line(
    own: Path, change: tuple[str, str], said: str
) -> None:
    own.write_text(OWN.replace(*change))
    with pytest.raises(UserError, match=said):
        parse("evaluate", EvaluateConfig, "judge", ["study", "--judge", str(own)])


def test_unknown_judges_are_named_with_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'people'"):
        load_judge("peopel")


def test_every_judge_is_documented() -> None:
    page = (Path(__file__).parent.parent / "docs" / "judges.md").read_text()
    assert {f"## {name}" for name in plugin_names("judge")} <= set(page.splitlines())
