"""Simulated rating: who judges what is fixed by seeds, and every vote is made once."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sayso.tinyworld.rating as stage
from sayso.base.errors import UserError
from sayso.base.types import Prompt, Sample, sample_id
from sayso.stages.new import NewConfig, new
from sayso.stages.prompts import PromptsConfig, write_prompts
from sayso.stages.rate import RateConfig, plan, rate
from sayso.study.checks import check_feedback
from sayso.study.study import Study
from sayso.tinyworld.reading import Verdict

BASE, TUNED = "base", "runs/align-rwr"


def draw(study: Study, model: str, per_prompt: int, red: int) -> None:
    """One image of plain red of the given strength for each prompt and seed."""
    samples, images = [], []
    for prompt in study.prompts("all"):
        for seed in range(per_prompt):
            key = sample_id(prompt.id, model, seed, study.info.sampler)
            samples.append(
                Sample(
                    key,
                    prompt.id,
                    model,
                    seed,
                    study.info.sampler,
                    study.image_path(key),
                    "latents/x",
                )
            )
            images.append(Image.new("RGB", (64, 64), (red, 0, 0)))
    study.add_samples(samples, images, {})


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """Bright images are true to every prompt, dark ones to none."""

    def judge(pictures: list[np.ndarray], asked: list[Prompt]) -> list[Verdict]:
        assert len(pictures) == len(asked)
        return [Verdict(bool(p.mean() > 40), 0.9, float(p.mean() / 85)) for p in pictures]

    monkeypatch.setattr(stage, "_load_judge", lambda: judge)
    study = new(tmp_path / "study", NewConfig())
    write_prompts(study, PromptsConfig(train=12, test=16, fidelity=0))
    draw(study, BASE, 4, red=50)
    draw(study, TUNED, 4, red=250)
    return study


def simulated(**options: object) -> RateConfig:
    return RateConfig(simulated=True, **options)  # type: ignore[arg-type]


def told(study: Study) -> list[tuple[str, str, str]]:
    return sorted((r.sample_id, r.rater, r.value) for r in study.feedback.ratings())


def test_every_train_image_once(study: Study):
    assert rate(study, simulated()) == 12 * 4
    votes = study.feedback.ratings(simulated=True)
    assert len({v.sample_id for v in votes}) == len(votes) == 48
    assert all("simulated" in v.rater and v.simulated for v in votes)
    train = {p.id for p in study.prompts("train")}
    drawn = {s.id: s.prompt_id for s in study.samples(BASE)}
    assert {drawn[v.sample_id] for v in votes} == train


def test_ratings_follow_the_judge(study: Study):
    rate(study, simulated(raters=3))
    rate(study, simulated(raters=3, model=TUNED))
    models = {s.id: s.model for s in study.samples()}
    votes = Counter((models[r.sample_id], r.value) for r in study.feedback.ratings())
    assert votes[BASE, "bad"] > 4 * votes[BASE, "good"]
    assert votes[TUNED, "good"] > 4 * votes[TUNED, "bad"]


def test_overlap_and_repeating(study: Study):
    assert rate(study, simulated(raters=5, overlap=1)) == 48
    few = set(told(study))
    assert rate(study, simulated(raters=5, overlap=1)) == 0
    assert rate(study, simulated(raters=5, overlap=3)) == 96
    assert few < set(told(study))
    per_image = Counter(r.sample_id for r in study.feedback.ratings())
    assert set(per_image.values()) == {3}
    assert len({r.rater for r in study.feedback.ratings()}) == 5


def test_interrupted_equals_uninterrupted(study: Study, monkeypatch: pytest.MonkeyPatch):
    rate(study, simulated(raters=3, overlap=2))
    whole = told(study)
    (study.path / "feedback.db").unlink()
    study = Study.open(study.path)
    rate(study, simulated(raters=3, overlap=2, per_prompt=1))
    monkeypatch.setattr(stage, "_BATCH", 7)
    rate(study, simulated(raters=3, overlap=2))
    assert told(study) == whole


def test_per_prompt_and_plan(study: Study):
    assert plan(study, simulated(per_prompt=2, raters=2, overlap=2)) == {"votes": 48}
    assert rate(study, simulated(per_prompt=2, raters=2, overlap=2)) == 48


def test_comparison_of_sets(study: Study):
    config = simulated(task="compare", right=TUNED, raters=9, overlap=9)
    assert plan(study, config) == {"votes": 16 * 2 * 9}
    assert rate(study, config) == 16 * 2 * 9
    assert rate(study, config) == 0
    votes = study.feedback.comparisons(simulated=True)
    winners = Counter(
        (v.question, {"left": v.left_model, "right": v.right_model, "tie": "tie"}[v.value])
        for v in votes
    )
    assert winners["alignment", TUNED] > 0.9 * 16 * 9
    assert winners["fidelity", TUNED] > 0.9 * 16 * 9
    lefts = Counter(v.left_model for v in votes)
    assert min(lefts.values()) > 0.35 * len(votes)
    models = {s.id: s.model for s in study.samples()}
    for vote in votes:
        assert {models[i] for i in vote.left_ids} == {vote.left_model}
        assert {models[i] for i in vote.right_ids} == {vote.right_model}
        assert len(vote.left_ids) == len(vote.right_ids) == 4


def test_comparison_named_the_other_way_round_is_the_same(study: Study):
    rate(study, simulated(task="compare", right=TUNED))
    assert rate(study, simulated(task="compare", left=TUNED, right=BASE)) == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"overlap": 2}, "overlap 2 with 1 raters"),
        ({"raters": 0}, "overlap 1 with 0 raters"),
        ({"careless": 2}, "careless 2 of 1 raters"),
        ({"per_prompt": -1}, "per_prompt -1"),
        ({"task": "compare"}, "--right"),
        ({"task": "compare", "right": "base"}, "two models"),
        ({"task": "compare", "right": TUNED, "set_size": 5}, "a set needs 5"),
        ({"model": "runs/align-nothing"}, "unknown run of align 'runs/align-nothing'"),
        ({"prompts": "fidelity"}, r"sayso generate \S+ --model base --prompts fidelity$"),
        ({"prompts": "train", "model": "base@best-of-4"}, "--best-of 4 --reward REWARD$"),
    ],
)
def test_refusals(study: Study, options: dict[str, object], says: str):
    with pytest.raises(UserError, match=says):
        rate(study, simulated(**options))
    assert not (study.path / "feedback.db").exists()


def test_the_command_that_draws_what_is_missing_names_the_prompts(tmp_path: Path):
    made = new(tmp_path / "study", NewConfig())
    write_prompts(made, PromptsConfig(train=4, test=4, fidelity=0))
    made.run("align", "rwr", {"model": "base", "aligner": "rwr"}).finish({})
    for prompts, more in ((None, " --prompts test"), ("train", "")):
        config = simulated(task="compare", right=TUNED, prompts=prompts)
        with pytest.raises(UserError, match=f"sayso generate .* --model base{more} --per-prompt 4"):
            rate(made, config)
    with pytest.raises(UserError, match="'runs/align-rwx': did you mean 'runs/align-rwr'"):
        rate(made, simulated(task="compare", right="runs/align-rwx"))


def test_through_the_app_is_for_simulated_raters(study: Study):
    with pytest.raises(UserError, match="add --simulated"):
        rate(study, RateConfig(through_app=True))


def test_careless_raters_do_not_look(study: Study):
    rate(study, simulated(raters=3, overlap=3, careless=1))
    votes = Counter((r.rater, r.value) for r in study.feedback.ratings())
    assert votes["simulated-3", "good"] > 0.6 * 48
    assert votes["simulated-1", "bad"] > 0.8 * 48


@pytest.mark.parametrize("task", [{}, {"task": "compare", "right": TUNED, "prompts": "train"}])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_damaged_image_stores_nothing(
    study: Study, monkeypatch: pytest.MonkeyPatch, task: dict[str, object], damage: str
):
    monkeypatch.setattr(stage, "_BATCH", 5)
    train = {p.id for p in study.prompts("train")}
    last = [s for s in study.samples(BASE) if s.prompt_id in train][-1]
    path = study.path / last.path
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:70])
    else:
        path.unlink()
    with pytest.raises(UserError, match=last.id):
        rate(study, simulated(**task))
    assert not (study.path / "feedback.db").exists()


def test_own_prompts_need_people(tmp_path: Path):
    study, file = new(tmp_path / "study", NewConfig()), tmp_path / "mine.txt"
    file.write_text("a dream of summer\n")
    write_prompts(study, PromptsConfig(file=str(file), fidelity=0))
    draw(study, BASE, 1, red=50)
    with pytest.raises(UserError, match="a dream of summer"):
        rate(study, simulated())


def test_ratings_of_images_that_are_gone(study: Study):
    rate(study, simulated())
    check_feedback(study)
    first = study.feedback.ratings()[0]
    path = study.path / study.image_path(first.sample_id)
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(UserError, match=r"a missing image.*png"):
        check_feedback(study)
    path.write_bytes(content)
    records = study.path / "samples.jsonl"
    lines = records.read_text().splitlines(keepends=True)
    records.write_text("".join(line for line in lines if first.sample_id not in line))
    with pytest.raises(UserError, match=first.sample_id):
        check_feedback(study)
