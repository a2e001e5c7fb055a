"""Evaluation: the numbers by hand on invented images, and the stage on a synthetic study."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import synthetic as syn
import torch

from sayso.base.errors import UserError
from sayso.base.types import Comparison, Prompt
from sayso.data import features
from sayso.metrics import evaluation
from sayso.metrics import quality as metrics
from sayso.metrics.evaluation import Scored
from sayso.stages import _scoring as scoring
from sayso.stages.evaluate import EvaluateConfig, evaluate, plan
from sayso.study.run import Run
from sayso.study.study import Study
from sayso.votes.side_by_side import side_by_side


def row(i: int, true: bool | None, model: str = "base", **more: object) -> Scored:
    """Image i: two images a prompt, prompts in turn seen and unseen."""
    split = "seen" if i // 2 % 2 == 0 else "unseen"
    return Scored(f"{model}{i}", model, f"p{i // 2}", i, split, "count", true, **more)  # type: ignore[arg-type]


# the numbers


def test_shares_by_group_count_what_is_judged() -> None:
    rows = [row(i, i % 4 == 0) for i in range(16)] + [row(16, None)]
    found = evaluation.shares(rows)
    assert found["all"]["value"] == 4 / 16
    assert found["all"]["n"] == 16
    assert found["seen"]["n"] + found["unseen"]["n"] == 16
    assert found["count/seen"] == found["seen"]
    assert found["all"]["low"] < 0.25 < found["all"]["high"]
    assert "colour" not in found


def test_shares_without_verdicts_say_why() -> None:
    assert "no image has a verdict" in evaluation.shares([row(0, None)])["skipped"]


def test_pairs_need_the_same_prompt_and_seed() -> None:
    base = [row(i, True) for i in range(8)]
    aligned = [row(i, True, "runs/a") for i in (5, 2, 99)]
    left, right = evaluation.pair_up(base, aligned)
    assert [r.seed for r in left] == [2, 5]
    assert [r.id for r in right] == ["runs/a2", "runs/a5"]


def test_change_counts_fixed_and_broken_images() -> None:
    before = [False] * 12 + [True] * 4
    after = [True] * 9 + [False] * 3 + [True] * 3 + [False]
    base = [row(i, t) for i, t in enumerate(before)]
    aligned = [row(i, t, "runs/a") for i, t in enumerate(after)]
    found = evaluation.paired(base, aligned)["all"]
    assert (found["fixed"], found["broken"]) == (9, 1)
    assert (found["stayed_true"], found["stayed_false"]) == (3, 3)
    # the prompts changed by 2 2 2 2 1 0 0 −1, in all by 8; of the 64 ways to sign the six that
    # changed, 3 reach 8: every 2 positive, and the 1s not both negative
    assert found["p_value"] == pytest.approx(2 * 3 / 64)
    assert found["difference"]["value"] == pytest.approx(8 / 16)
    assert found["difference"]["low"] < 0.5 < found["difference"]["high"]
    assert found["n_prompts"] == 8


def test_reward_quality_by_hand() -> None:
    rewards = [0.9, 0.2, 0.8, 0.6, 0.3, 0.7]
    truth = [True, False, True, False, False, True]
    rows = [
        replace(row(i, m), reward=r, clip=1 - r)
        for i, (m, r) in enumerate(zip(truth, rewards, strict=True))
    ]
    found = evaluation.reward_quality(rows, calibrated=True)["all"]
    assert found["auc"] == 1.0
    assert found["clip_auc"] == 0.0
    assert found["accuracy"] == pytest.approx(5 / 6)
    assert found["pair_accuracy"] == 1.0
    assert found["n_pairs"] == 3
    expected = np.mean([(m - r) ** 2 for m, r in zip(truth, rewards, strict=True)])
    assert found["brier"] == pytest.approx(expected)


def test_reward_quality_says_what_it_lacks() -> None:
    rows = [replace(row(i, True), reward=0.5, clip=0.1) for i in range(4)]
    found = evaluation.reward_quality(rows, calibrated=False)["all"]
    assert "needs both kinds" in found["auc"]["skipped"]
    assert "not a probability" in found["calibration"]["skipped"]
    assert "skipped" in found["pair_accuracy"]
    assert "skipped" in evaluation.reward_quality([row(0, True)], calibrated=True)


@pytest.mark.parametrize(("after_true", "suspect"), [(0.0, True), (1.0, False)])
def test_reward_that_rises_while_truth_falls_is_suspect(after_true: float, suspect: bool) -> None:
    base = [replace(row(i, i % 3 == 0), reward=0.4) for i in range(60)]
    aligned = [replace(row(i, bool(after_true), "runs/a"), reward=0.8) for i in range(60)]
    scores = {"base": evaluation.mean_scores(base), "aligned": evaluation.mean_scores(aligned)}
    found = evaluation.optimisation(scores, evaluation.paired(base, aligned))
    assert found["reward_gain"] == pytest.approx(0.4)
    assert found["suspect"] is suspect


def test_shares_say_how_many_images_and_prompts_of_each_part() -> None:
    """Prompts p0 … p7 in turn seen and unseen; the truth of the unseen ones are all true."""
    rows = [row(i, i // 2 % 2 == 1 or i % 8 == 0) for i in range(16)]
    found = evaluation.shares(rows)
    assert list(found) == ["count", "seen", "unseen", "all", "count/seen", "count/unseen"]
    assert {n: (s["value"], s["n"], s["n_prompts"]) for n, s in found.items()} == {
        "count": (10 / 16, 16, 8), "seen": (2 / 8, 8, 4), "unseen": (1.0, 8, 4),
        "all": (10 / 16, 16, 8), "count/seen": (2 / 8, 8, 4), "count/unseen": (1.0, 8, 4),
    }  # fmt: skip
    assert evaluation.shares([row(0, None)]) == {
        "skipped": "no image has a verdict: no judge, and no ratings of these images"
    }


def test_pairs_say_what_they_lack() -> None:
    base, aligned = [row(0, True), row(1, None)], [row(0, None, "runs/a"), row(1, True, "runs/a")]
    assert evaluation.paired(base, aligned) == {
        "skipped": "no prompt and seed has a verdict for both models"
    }
    with pytest.raises(ValueError, match="shorter"):
        evaluation.paired(base, aligned[:1])
    one = evaluation.paired(base[:1], [row(0, False, "runs/a")])["all"]
    assert one["difference"] == {"skipped": "1 prompt; an interval over prompts needs at least 2"}
    two = evaluation.paired([row(0, True), row(2, False)], [row(0, False), row(2, False)])["all"]
    assert two["difference"]["value"] == -0.5


def test_mean_scores_by_hand() -> None:
    rows = [replace(row(i, True), reward=r) for i, r in enumerate((0.2, 0.4, None))]
    assert evaluation.mean_scores(rows) == {
        "reward": {"mean": pytest.approx(0.3), "deviation": pytest.approx(0.1), "n": 2},
        "clip_score": {"skipped": "no scores"},
        "n": 3,
    }
    clip = evaluation.mean_scores([replace(row(0, None), clip=0.5)])["clip_score"]
    assert clip == {"mean": 0.5, "deviation": 0.0, "n": 1}


def test_reward_quality_of_seen_and_unseen_prompts_by_hand() -> None:
    truth = [True, False, True, True, False, True, False, False]
    rewards = [0.9, 0.2, 0.8, 0.6, 0.7, 0.3, 0.1, 0.55]
    clips = [0.3, 0.1, 0.2, 0.4, 0.5, 0.6, 0.7, 0.0]
    rows = [
        replace(row(i, m), reward=r, clip=c)
        for i, (m, r, c) in enumerate(zip(truth, rewards, clips, strict=True))
    ]
    found = evaluation.reward_quality([*rows, row(8, True)], calibrated=True)
    assert list(found) == ["seen", "unseen", "all"]
    seen, unseen = found["seen"], found["unseen"]
    table = seen.pop("calibration")
    # p0: 0.9 over 0.2, p2: 0.3 below 0.7; both rightly by CLIP
    assert seen == {
        "n": 4, "n_true": 2, "pair_accuracy": 1 / 2, "n_pairs": 2, "clip_pair_accuracy": 1.0,
        "auc": 3 / 4, "clip_auc": 3 / 4, "accuracy": 2 / 4,
        "brier": pytest.approx((0.01 + 0.04 + 0.49 + 0.49) / 4),
        "calibration_error": pytest.approx((0.1 + 0.2 + 0.7 + 0.7) / 4),
    }  # fmt: skip
    assert [line["n"] for line in table] == [0, 0, 1, 1, 0, 0, 0, 1, 0, 1]
    assert all(("label_low" in line) == bool(line["n"]) for line in table)
    lone = {"skipped": "no prompt has both a true and a false image"}
    assert (unseen["pair_accuracy"], unseen["clip_pair_accuracy"]) == (lone, lone)
    assert (unseen["n_pairs"], unseen["auc"], unseen["clip_auc"]) == (0, 1.0, 2 / 4)
    assert (found["all"]["n"], found["all"]["n_true"]) == (8, 4)
    assert evaluation.reward_quality([row(0, True)], calibrated=True) == {
        "skipped": "no image of the base model has both a reward and a verdict"
    }
    plain = evaluation.reward_quality(rows, calibrated=False)["all"]
    assert plain["calibration"] == {"skipped": "the reward is not a probability in [0, 1]"}


def test_calibration_has_limits_over_prompts() -> None:
    """Three prompts in the bin from 0.6: two of their four images are true."""
    rows = [replace(row(i, i % 2 == 0), reward=0.65, clip=0.1) for i in (0, 1, 2, 5)]
    rows.append(replace(row(6, True), reward=0.05, clip=0.1))
    table = evaluation.reward_quality(rows, calibrated=True)["all"]["calibration"]
    limits = metrics.share_over_prompts(np.array([1, 0, 1, 0]), ["p0", "p0", "p1", "p2"])
    expected = {"low": 0.6, "high": 0.7, "n": 4, "score": 0.65, "label": 0.5}
    expected |= {"label_low": limits.low, "label_high": limits.high}
    assert table[6] == pytest.approx(expected)
    # one prompt tells nothing of the others
    assert (table[0]["label_low"], table[0]["label_high"]) == (None, None)


def scores(base: float | None, aligned: float | None) -> dict[str, evaluation.Section]:
    return {
        role: {"reward": {"skipped": "no scores"} if mean is None else {"mean": mean}}
        for role, mean in (("base", base), ("aligned", aligned))
    }


def fall(high: float | None) -> evaluation.Section:
    return {"all": {"n": 8, "difference": {"value": -0.25, "low": -0.5, "high": high}}}


@pytest.mark.parametrize(
    ("before", "after", "high", "suspect"),
    [(0.4, 0.6, -0.1, True), (0.4, 0.4, -0.1, False), (0.4, 0.2, -0.1, False),
     (0.4, 0.6, 0.0, False), (0.4, 0.6, None, False)],
)  # fmt: skip
def test_only_a_sure_fall_of_truth_under_a_rising_reward_is_suspect(
    before: float, after: float, high: float | None, suspect: bool
) -> None:
    assert evaluation.optimisation(scores(before, after), fall(high)) == {
        "reward_gain": pytest.approx(after - before), "truth_gain": -0.25, "n": 8,
        "suspect": suspect,
    }  # fmt: skip


def test_reward_and_truth_of_both_models_are_needed() -> None:
    lacking = {"skipped": "needs a reward and a verdict on both models"}
    assert evaluation.optimisation(scores(0.4, None), fall(0.0)) == lacking
    assert evaluation.optimisation(scores(None, 0.4), fall(0.0)) == lacking
    assert evaluation.optimisation(scores(0.4, 0.5), {"skipped": "no pair"}) == lacking
    alone = {"all": {"n": 2, "difference": {"skipped": "1 prompt"}}}
    assert evaluation.optimisation(scores(0.4, 0.5), alone) == lacking


def vote(prompt: str, left: str, right: str, value: str, i: int, simulated: bool) -> Comparison:
    return Comparison(
        f"{prompt}{i}", prompt, ("a",), ("b",), left, right, f"r{i}", "alignment", value,
        simulated, 0.0, 0.0,
    )  # type: ignore[arg-type]  # fmt: skip


def test_sides_are_turned_to_the_tuned_model() -> None:
    """One prompt won by the tuned model from both sides, one lost, one with people undecided."""
    tuned = "runs/align-rwr"
    votes = [vote("p1", "base", tuned, "right", i, True) for i in range(2)]
    votes += [vote("p1", tuned, "base", "left", i, True) for i in range(2, 3)]
    votes += [vote("p2", tuned, "base", "right", i, True) for i in range(3)]
    votes += [
        vote("p1", tuned, "base", v, i, False) for i, v in enumerate(("left", "right", "tie"))
    ]
    votes += [
        vote("p9", tuned, "base", "left", 9, True),
        vote("p1", tuned, "other", "left", 8, True),
    ]
    people, programs = side_by_side(votes, ["base", tuned], ["p1", "p2"])
    assert (people["simulated"], programs["simulated"]) == (False, True)
    assert (programs["first"], programs["second"]) == (tuned, "base")
    assert programs["win"]["value"] == programs["lose"]["value"] == 0.5
    assert (programs["n_prompts"], programs["raters"], programs["votes"]) == (2, 3, 6)
    assert people["undecided"]["value"] == 1.0


def test_distances_refuse_too_few_images_for_the_features() -> None:
    rng = np.random.default_rng(0)
    few, many = rng.normal(size=(15, 8)), rng.normal(size=(16, 8))
    assert "needs at least 16" in features.distances(few, few, "kid")["frechet"]["skipped"]
    whole = features.distances(many, many, "kid")
    assert whole["frechet"] == pytest.approx(0, abs=1e-6)
    assert (whole["precision"], whole["recall"], whole["n"]) == (1.0, 1.0, 16)
    assert features.ratio({"frechet": 3.0}, {"frechet": 2.0}) == 1.5
    assert "skipped" in features.ratio({"frechet": {"skipped": ""}}, {"frechet": 2.0})


# the stage


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic study with people's ratings of the test images."""
    study, truth = syn.make_study(tmp_path_factory.mktemp("evaluate") / "study")
    syn.add_ratings(study, truth, simulated=False, which="test")
    syn.add_comparisons(study, truth)
    syn.add_runs(study)
    return study.path


@pytest.fixture
def study(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A copy that a test may change; its rewards are the pictures' brightness."""
    study = Study.open(Path(shutil.copytree(made, tmp_path / "study")))
    (tmp_path / "brightness.py").write_text(syn.REWARD_FILE)
    own = str(tmp_path / "brightness.py")
    load = scoring.load_reward
    monkeypatch.setattr(scoring, "load_reward", lambda s, name, device: load(s, own, device))
    return study


CONFIG = EvaluateConfig(model=syn.ALIGNED, judge="none", reward="clip_score")


def test_the_stage_measures_and_keeps_every_image(study: Study) -> None:
    run = evaluate(study, CONFIG)
    result = run.result
    lines = [json.loads(line) for line in (run.path / "scores.jsonl").read_text().splitlines()]
    assert run.name == "runs/evaluate-align-rwr"
    assert len(lines) == 3 * 16 * 4
    assert {line["model"] for line in lines} == set(result["models"].values())
    one = lines[5]
    pixels = np.asarray(study.image(next(s for s in study.samples() if s.id == one["id"])))
    assert one["reward"] == one["clip"] == pytest.approx(pixels.mean() / 255, abs=1e-5)
    judged = [x["true"] for x in lines if x["model"] == "base" and x["true"] is not None]
    assert result["alignment"]["base"]["all"]["value"] == pytest.approx(np.mean(judged))
    assert result["alignment"]["base"]["all"]["n"] == len(judged)
    assert len(result["comparisons"]) == 6
    assert all(c["n_prompts"] == 16 and c["simulated"] for c in result["comparisons"])
    assert "no fidelity prompts" in result["fidelity"]["skipped"]
    assert (result["judge"], result["judged"]) == ("people", "rated by people")


def test_repeating_gives_the_same_numbers(study: Study) -> None:
    one = evaluate(study, CONFIG)
    two = evaluate(study, replace(CONFIG, name="again"))
    assert {**one.result, "seconds": 0} == {**two.result, "seconds": 0}
    before = (one.path / "result.json").read_bytes()
    evaluate(study, CONFIG)
    assert (one.path / "result.json").read_bytes() == before


def test_only_seeds_of_both_models_are_compared(study: Study) -> None:
    """The base may have drawn more: its further images test the reward, not the alignment."""
    path = study.path / "samples.jsonl"
    lines = path.read_text().splitlines()
    tuned = [i for i, line in enumerate(lines) if '"runs/align-rwr"' in line]
    path.write_text("\n".join(line for i, line in enumerate(lines) if i not in tuned[::2]) + "\n")
    images = evaluate(study, CONFIG).result["images"]
    assert images == {"base": 32, "best_of_n": 64, "aligned": 32}


def test_plan_counts_the_images(study: Study) -> None:
    assert plan(study, CONFIG) == {
        "judge": "people", "prompts": 16, "images of base": 64,
        f"images of {syn.BEST}": 64, f"images of {syn.ALIGNED}": 64,
    }  # fmt: skip


def test_fidelity_compares_what_was_drawn_for_captions(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Features that are just a few mean colours: equal images have distance 0 to themselves."""
    from sayso.data.pretraining_images import open_pretraining

    images = open_pretraining(study)
    captions, natural = images.heldout_captions(8), list(images.heldout_images(8))
    prompts = [Prompt(f"f{i}", c, "fidelity", {}, "fidelity") for i, c in enumerate(captions)]
    study.write_prompts([*study.prompts(), *prompts])
    monkeypatch.setattr(syn, "_scene", lambda *_: None)
    for model in (syn.BASE, syn.ALIGNED):
        pictures = iter(natural if model == syn.BASE else natural[::-1])
        monkeypatch.setattr(syn, "render", lambda *_, p=pictures: np.asarray(next(p)))
        syn.add_images(study, syn.Truth({}), model, prompts, 1)
    space = features.FeatureSpace("colours", lambda x: x.mean(dim=(2, 3)), "kid")
    monkeypatch.setattr(features, "feature_space", lambda *_: space)
    drawn = {
        model: [s for s in study.samples(model) if s.prompt_id in {p.id for p in prompts}]
        for model in ("base", syn.ALIGNED)
    }
    found = features.fidelity(study, syn.ALIGNED, drawn, study.info.sampler)
    assert found["base"]["frechet"] == pytest.approx(0, abs=1e-6)
    assert (found["n"], found["dimensions"]) == (8, 3)
    assert found["pretraining"]["frechet"] > 1e-4
    assert found["base"]["precision"] == 1.0


def test_feature_space_stacks_pictures_in_order() -> None:
    from PIL import Image

    pictures = [Image.new("RGB", (4, 4), (i, 0, 0)) for i in range(130)]
    rows = features.FeatureSpace("red", lambda x: x.mean(dim=(2, 3)), "kid")(pictures)
    assert torch.allclose(torch.from_numpy(rows[:, 0] * 255), torch.arange(130.0), atol=1e-3)


# the user's mistakes


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "base"}, "not a tuned model"),
        ({"model": "runs/align-rwrr"}, "did you mean 'runs/align-rwr'"),
        ({"reward": "runs/fit-clip_heat"}, "did you mean 'runs/fit-clip_head'"),
        ({"best_of": "base@best-of-64"}, "no images of base@best-of-64"),
        ({"prompts": "fidelity"}, "no fidelity prompts"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(
    study: Study, change: dict[str, str], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        evaluate(study, replace(CONFIG, **change))
    assert not (study.path / "runs" / "evaluate-align-rwr").exists()


def test_a_judge_that_does_not_know_the_prompt_is_refused(study: Study) -> None:
    own = [replace(p, slots={"object": "zebra"}) for p in study.prompts()]
    study.write_prompts(own)
    with pytest.raises(UserError, match="does not understand"):
        evaluate(study, replace(CONFIG, judge="tinyworld"))
    assert plan(study, replace(CONFIG, judge="auto"))["judge"] != "tinyworld"


def test_an_unfinished_run_holds_no_result(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = next(s for s in study.samples(syn.ALIGNED))
    (study.path / sample.path).unlink()
    with pytest.raises(UserError, match="is missing"):
        evaluate(study, CONFIG)
    assert not Run(study.path / "runs" / "evaluate-align-rwr").finished
