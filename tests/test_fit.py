"""Stage `fit`: what it learns from, what it measures, what it refuses, and that it repeats."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from clips import WIDTH, colour_study, rate_all, tiny_clip, truth
from safetensors.torch import load_file

from sayso.base import files
from sayso.base.errors import UserError
from sayso.rewards import load_reward
from sayso.rewards.clip_head import ClipHead
from sayso.stages.fit import FitConfig, collect, fit, hold_out, plan
from sayso.study.study import Study

QUICK = {"hidden_width": 32, "max_epochs": 3}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("clip") / "clip")


@pytest.fixture
def study(tmp_path: Path, clip: Path) -> Study:
    return colour_study(tmp_path / "study", clip, train=12, per_prompt=4)


# what it learns


def test_learns_colours_and_says_how_well(tmp_path: Path, clip: Path) -> None:
    study = colour_study(tmp_path / "study", clip, train=40, per_prompt=8)
    rate_all(study)
    head = ClipHead(hidden_width=128, max_epochs=60, patience=60, learning_rate=2e-3, batch_size=32)
    run = fit(study, FitConfig(heldout_fraction=0.2), head)
    result = run.result
    assert result["train"]["auc"] > 0.95
    assert result["heldout"]["auc"] > 0.75
    assert result["heldout"]["brier"] < 0.25 < 0.5 < result["heldout"]["accuracy"]
    assert result["raters"] == "simulated"
    assert result["prompt_classification"] is True
    assert result["parameters"] == (2 * WIDTH + 1) * 128 + 129 * 128 + 129
    assert sum(row["n"] for row in result["heldout"]["calibration"]) == result["heldout"]["n"]
    history = run.history()
    assert len(history) == result["epochs"]
    errors = [row["heldout_squared_error"] for row in history]
    assert min(errors) == errors[result["best_epoch"] - 1]
    # the kept weights are those of the best epoch, not of the last
    assert result["heldout"]["brier"] == pytest.approx(min(errors), abs=1e-5)
    assert history[-1]["prompt_classification_loss"] < history[0]["prompt_classification_loss"]


def test_counts_every_kind_of_rating(study: Study) -> None:
    samples = study.samples()
    rate_all(study, lambda s: "skip" if s.seed == 3 else truth(s))
    rate_all(study, which="test", rater="tester")
    rate_all(study, simulated=False, rater="anna", value=lambda s: "good")
    result = fit(study, FitConfig(raters="simulated"), ClipHead(**QUICK)).result
    assert result["raters"] == "simulated"
    n = result["n"]
    assert (n["good"], n["bad"], n["skip"], n["ratings"]) == (24, 12, 12, 48)
    assert (n["images"], n["prompts"]) == (36, 12)
    assert n["images_of_test_prompts_ignored"] == len(samples) - 48
    assert n["prompts_heldout"] == round(0.15 * 12)
    assert n["images_heldout"] == 3 * n["prompts_heldout"]
    assert result["heldout"]["n"] + result["train"]["n"] == 36


def test_people_count_alone_once_there_are_any(study: Study) -> None:
    rate_all(study)
    assert collect(study, FitConfig()).simulated
    rate_all(study, simulated=False, rater="anna", value=lambda s: "good" if s.seed else "bad")
    data = collect(study, FitConfig())
    assert not data.simulated
    assert data.labels == [float(s.seed > 0) for s in data.samples]
    assert collect(study, FitConfig(raters="simulated")).simulated


def test_several_raters_make_soft_labels(study: Study) -> None:
    for rater in ("r1", "r2", "r3"):
        votes = {"r1": "good", "r2": "bad", "r3": "skip"}
        rate_all(study, lambda s, v=votes[rater]: v if s.seed else truth(s), rater=rater)
    data = collect(study, FitConfig())
    assert data.labels == [0.5 if s.seed else 1.0 for s in data.samples]
    result = fit(study, FitConfig(), ClipHead(**QUICK)).result
    # images on which the raters are split count for calibration, not for accuracy
    assert result["heldout"]["n_good"] == result["heldout"]["n"] // 4
    assert result["heldout"]["auc"] is None


def test_free_text_prompts_are_learned_by_squared_error_alone(study: Study) -> None:
    rows = files.read_lines(study.path / "prompts.jsonl")
    for row in rows:
        row["slots"] = {}
    (study.path / "prompts.jsonl").unlink()
    files.append_lines(study.path / "prompts.jsonl", rows)
    rate_all(study)
    run = fit(study, FitConfig(), ClipHead(**QUICK))
    assert run.result["prompt_classification"] is False
    assert all("prompt_classification_loss" not in row for row in run.history())


# no leak between the sides


def test_holds_out_whole_prompts() -> None:
    ids = [f"p{i // 5}" for i in range(100)]
    held = hold_out(ids, [float(i % 2) for i in range(100)], 0.25, seed=0)
    by_prompt = {p: {h for q, h in zip(ids, held, strict=True) if p == q} for p in ids}
    assert all(len(sides) == 1 for sides in by_prompt.values())
    assert sum(held) == 25
    assert held == hold_out(ids, [float(i % 2) for i in range(100)], 0.25, seed=0)
    assert held != hold_out(ids, [float(i % 2) for i in range(100)], 0.25, seed=1)


@pytest.mark.parametrize("seed", range(6))
def test_the_only_prompt_with_good_images_is_learned_from(seed: int) -> None:
    ids, labels = ["a", "a", "b", "b", "c", "c"], [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    held = hold_out(ids, labels, 0.34, seed)
    assert held[0] is False
    assert sum(held) == 2


def test_one_prompt_cannot_be_held_out() -> None:
    with pytest.raises(UserError, match="cover 1 prompts, so none can be held out"):
        hold_out(["a", "a"], [0.0, 1.0], 0.5, seed=0)


def test_heldout_rows_teach_nothing(tmp_path: Path, clip: Path) -> None:
    """Other ratings on held-out prompts leave the weights of a fixed number of epochs unchanged."""
    heads = []
    for name in ("one", "two"):
        study = colour_study(tmp_path / name, clip, train=12, per_prompt=4)
        rate_all(study)
        data = collect(study, FitConfig())
        held = hold_out([p.id for p in data.prompts], data.labels, 0.3, study.info.seed)
        if name == "two":
            data = data._replace(
                labels=[1 - t if h else t for t, h in zip(data.labels, held, strict=True)]
            )
        head = ClipHead(hidden_width=32, max_epochs=1)
        _fit_rows(study, head, data, held)
        heads.append(head.head.state_dict())
    assert all(torch.equal(heads[0][k], heads[1][k]) for k in heads[0])


def _fit_rows(study: Study, head: ClipHead, data, held: list[bool]) -> None:
    from sayso.rewards import RatedSamples

    head.prepare(study, "cpu")
    run = study.run("fit", "rows", {})
    head.fit(study, RatedSamples(data.samples, data.prompts, data.labels, held), run)


# repeating


def weights(study: Study, name: str = "fit-clip_head") -> dict[str, torch.Tensor]:
    return load_file(study.find_run(name).weights / "model.safetensors")


def test_same_seed_same_weights_even_after_a_crash(
    tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, crashed = (colour_study(tmp_path / n, clip, train=12, per_prompt=4) for n in "ab")
    for study in (whole, crashed):
        rate_all(study)
    fit(whole, FitConfig(), ClipHead(**QUICK))
    with monkeypatch.context() as patch:
        patch.setattr("sayso.rewards.clip_head.save_file", _crash)
        with pytest.raises(KeyboardInterrupt):
            fit(crashed, FitConfig(), ClipHead(**QUICK))
    assert not crashed.find_run("fit-clip_head").weights.exists()
    fit(crashed, FitConfig(), ClipHead(**QUICK))
    first, second = weights(whole), weights(crashed)
    assert all(torch.equal(first[key], second[key]) for key in first)


def _crash(*_: object) -> None:
    raise KeyboardInterrupt


def test_repeating_a_finished_fit_does_nothing(study: Study) -> None:
    rate_all(study)
    run = fit(study, FitConfig(), ClipHead(**QUICK))
    before = (run.path / "result.json").stat().st_mtime_ns
    assert fit(study, FitConfig(), ClipHead(**QUICK)).finished
    assert (run.path / "result.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="with other options"):
        fit(study, FitConfig(), ClipHead(**QUICK, temperature=1.0))


def test_run_keeps_every_option(study: Study) -> None:
    rate_all(study)
    head = ClipHead(**QUICK, joining="interaction")
    run = fit(study, FitConfig(name="x"), head)
    assert run.name == "runs/fit-x"
    assert run.config == {**asdict(FitConfig(name="x")), "options": asdict(head)}
    loaded = load_reward(study, "runs/fit-x")
    assert loaded == head


def test_plan_counts_without_running(study: Study) -> None:
    rate_all(study)
    sizes = plan(study, FitConfig())
    assert sizes["n"]["images"] == 48
    assert not list(study.path.glob("runs/fit-*"))


# refusals


@pytest.mark.parametrize(
    ("only", "missing"), [("good", "and 0 bad"), ("bad", " 0 good"), ("skip", " 0 good and 0 bad")]
)
def test_ratings_of_one_kind(study: Study, only: str, missing: str) -> None:
    rate_all(study, lambda _: only)
    with pytest.raises(UserError, match=missing):
        fit(study, FitConfig(), ClipHead(**QUICK))
    assert not list(study.path.glob("runs/fit-*"))


def test_no_ratings_at_all(study: Study) -> None:
    with pytest.raises(UserError, match="0 good and 0 bad"):
        fit(study)


def test_rating_for_an_image_that_is_gone(study: Study) -> None:
    rate_all(study)
    (study.path / study.samples()[0].path).unlink()
    with pytest.raises(UserError, match="missing"):
        fit(study, FitConfig(), ClipHead(**QUICK))
    assert not list(study.path.glob("runs/fit-*"))


@pytest.mark.parametrize(
    ("option", "value"), [("heldout_fraction", 0.0), ("heldout_fraction", 1.0), ("raters", "cats")]
)
def test_options_out_of_range(study: Study, option: str, value: object) -> None:
    rate_all(study)
    config = FitConfig()
    object.__setattr__(config, option, value)
    with pytest.raises(UserError, match=option):
        fit(study, config)


def test_nan_loss_stops_with_its_step(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    rate_all(study)
    calls = []

    def spoiled(score: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return (score - target) ** 2 * (np.nan if len(calls) == 3 else 1.0)

    monkeypatch.setattr("sayso.rewards.clip_head.squared_error", spoiled)
    head = ClipHead(hidden_width=32, max_epochs=3, batch_size=8)
    with pytest.raises(UserError, match="loss is NaN or infinite at step 3"):
        fit(study, FitConfig(), head)
    run = study.find_run("fit-clip_head")
    assert not run.finished
    assert not run.weights.exists()
