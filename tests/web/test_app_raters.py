"""Simulated raters in the rating app, over real HTTP: what they find, and that they can go on."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sayso.base.errors import UserError
from sayso.base.types import Prompt, Sample, sample_id
from sayso.cli.demo import DemoConfig, commands
from sayso.prompts.grammar import load_grammar, make_prompts, share_out
from sayso.stages.agreement import AgreementConfig, agreement
from sayso.stages.new import NewConfig, new
from sayso.stages.rate import RateConfig, plan, rate
from sayso.stages.report import report
from sayso.study.study import Study
from sayso.tinyworld import app_raters
from sayso.tinyworld.render import render
from sayso.tinyworld.scenes import Scene, random_scene
from sayso.votes.counted import is_for, is_right
from sayso.web.serving import prepare
from sayso.web.work import people
from sayso.web.work.tasks import TaskOptions

TUNED = "runs/align-rwr"


def drawn_study(path: Path, prompts: int, per_prompt: int, models: tuple[str, ...] = ("base",),
                seed: int = 0) -> Study:  # fmt: skip
    """Pictures drawn by the renderer: a third of the base's are true, all of others."""
    study = new(path, NewConfig(seed=seed))
    grammar = load_grammar("tinyworld")
    study.write_prompts(make_prompts(grammar, share_out(grammar, prompts, 0, 0), seed))
    rng = np.random.default_rng(seed)
    for model in models:
        samples, images = [], []
        for prompt in study.prompts():
            for k in range(per_prompt):
                key = sample_id(prompt.id, model, k, study.info.sampler)
                path_of = study.image_path(key)
                samples.append(Sample(key, prompt.id, model, k, study.info.sampler, path_of, ""))
                true = model != "base" or bool(rng.random() < 1 / 3)
                images.append(Image.fromarray(render(scene_of(prompt, true, rng), rng)))
        study.add_samples(samples, images)
    return study


def scene_of(prompt: Prompt, true: bool, rng: np.random.Generator) -> Scene:
    """A scene of which the prompt is true, or false in one of the things it asks for."""
    scene = replace(random_scene(rng), **prompt.slots)
    if true:
        return scene
    wrong = str(rng.choice(list(prompt.slots)))
    while getattr(scene, wrong) == prompt.slots[wrong]:
        scene = replace(scene, **{wrong: getattr(random_scene(rng), wrong)})
    return scene


def through_app(**options: object) -> RateConfig:
    return RateConfig(simulated=True, through_app=True, **options)  # type: ignore[arg-type]


def told(study: Study) -> list[tuple[str, str, str, str]]:
    """Who said what; an attention check is told apart by its prompt."""
    return sorted(
        (r.sample_id, str(r.shown["prompt"]), r.rater, r.value) for r in study.feedback.ratings()
    )


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six prompts with four pictures of two models each; copied by the tests that vote."""
    path = tmp_path_factory.mktemp("drawn") / "study"
    drawn_study(path, prompts=6, per_prompt=4, models=("base", TUNED))
    return path


@pytest.fixture
def study(drawn: Path, tmp_path: Path) -> Study:
    return Study.open(Path(shutil.copytree(drawn, tmp_path / "study")))


# the whole loop of ratings


@pytest.mark.slow
def test_agreement_finds_the_careless_one_and_weighs_its_votes(tmp_path: Path) -> None:
    """20 raters, overlap 3, one careless: for two fifths of the images one of three did not look.

    Who does not look is fast, so an eighth of all votes are the careless one's. There the majority
    is wrong whenever one of the other two errs; Dawid–Skene labels know whom to believe. With 640
    images the expected difference of squared errors is near three times its standard deviation.
    """
    study = drawn_study(tmp_path / "study", prompts=80, per_prompt=8)
    config = through_app(raters=20, overlap=3, careless=1, attention_share=0.05)
    added = rate(study, config)
    votes = study.feedback.ratings(simulated=True)
    assert not study.feedback.ratings(simulated=False)
    checks = [vote for vote in votes if is_for(vote, "check")]
    on_work = [vote for vote in votes if is_for(vote, "vote")]
    assert (len(on_work), len(on_work) + len(checks)) == (1920, added)
    assert set(Counter(vote.sample_id for vote in on_work).values()) == {3}
    assert not any(vote.shown["surplus"] for vote in votes)
    assert len({vote.shown["session"] for vote in votes}) == len({v.rater for v in votes}) == 20

    result = agreement(study, AgreementConfig(resamples=199)).result
    assert result["careless"] == ["simulated-20"]
    truth = result["labels"]["truth"]["tinyworld"]
    majority, estimate = truth["majority"], truth["dawid-skene"]
    assert majority["n"] == estimate["n"] > 630
    assert estimate["squared_error"] < majority["squared_error"]
    gain = estimate["against_majority"]
    assert gain["value"] == pytest.approx(estimate["squared_error"] - majority["squared_error"])
    assert gain["low"] < gain["value"] < gain["high"]

    html = report(study).read_text()
    assert 'Flagged as careless: <strong><bdi translate="no">simulated-20</bdi>' in html
    assert html.count('<tr class="careless">') == 1
    sure = "are closer to" if gain["high"] < 0 else "are not clearly closer to"
    assert f"Dawid–Skene labels {sure} the truth as read by the tiny world&#39;s judge" in html
    said = json.loads((study.path / "summary.json").read_text())["agreement"]
    assert (said["careless"], said["labels"]) == (["simulated-20"], {"tinyworld": truth})


# small ones

FEW = {"raters": 4, "overlap": 2}


def test_the_same_seed_gives_the_same_votes(drawn: Path, tmp_path: Path) -> None:
    found = []
    for name in ("one", "two"):
        study = Study.open(Path(shutil.copytree(drawn, tmp_path / name)))
        rate(study, through_app(**FEW, images_per_page=2, per_prompt=2))
        found.append(told(study))
    assert found[0] == found[1]
    assert len(found[0]) > 6 * 2 * 2


def test_interrupted_it_goes_on(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    post, sent = app_raters._Browser.post, []

    def fail(browser: object, path: str, body: object) -> object:
        sent.append(path)
        if sent.count("/api/votes") == 17:
            raise KeyboardInterrupt
        return post(browser, path, body)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(app_raters._Browser, "post", fail)
        with pytest.raises(KeyboardInterrupt):
            rate(study, through_app(**FEW))
    before = told(study)
    assert len(before) == 16
    with pytest.raises(UserError, match="votes are still missing"):
        rate(study, through_app(raters=2, overlap=2))  # the others hold pages
    rate(study, through_app(**FEW))
    assert set(before) < set(told(study))
    on_work = [r.sample_id for r in study.feedback.ratings() if is_for(r, "vote")]
    assert Counter(Counter(on_work).values()) == {2: 24}
    assert rate(study, through_app(**FEW)) == 0


def test_votes_made_without_the_app_count(study: Study) -> None:
    rate(study, RateConfig(simulated=True, raters=4, overlap=1))
    rate(study, through_app(**FEW))
    on_work = Counter(r.sample_id for r in study.feedback.ratings() if is_for(r, "vote"))
    assert Counter(on_work.values()) == {2: 24}


def test_comparisons_through_the_app(study: Study) -> None:
    config = through_app(task="compare", right=TUNED, prompts="train", raters=3, overlap=3)
    assert plan(study, config)["votes"] == 6 * 2 * 3
    rate(study, config)
    votes = study.feedback.comparisons(simulated=True)
    counted = [vote for vote in votes if is_for(vote, "vote")]
    assert len(counted) == 6 * 2 * 3
    models = {s.id: s.model for s in study.samples()}
    assert all(models[vote.left_ids[0]] == vote.left_model for vote in counted)
    chosen = Counter(
        {"left": vote.left_model, "right": vote.right_model, "tie": "tie"}[vote.value]
        for vote in counted
        if vote.question == "alignment"
    )
    assert chosen[TUNED] > chosen["base"] + chosen["tie"]


def test_honest_raters_see_that_a_set_is_of_something_else(study: Study) -> None:
    """Where the model that keeps its prompt drew it badly they call it a tie, which counts not."""
    config = through_app(
        task="compare", right=TUNED, prompts="train", raters=3, overlap=3, attention_share=0.4,
        set_size=2,
    )  # fmt: skip
    rate(study, config)
    checks = [v for v in study.feedback.comparisons(simulated=True) if is_for(v, "check")]
    assert len(checks) >= 9
    right = [is_right(v.value, str(v.shown["attention"])) for v in checks]
    counted = [passed for passed in right if passed is not None]
    assert len(counted) >= len(checks) / 2
    assert sum(counted) >= 0.9 * len(counted)


def test_people_find_their_work_untouched(study: Study) -> None:
    """Programs use up no place of people, and nobody has to sign in because of them."""
    rate(study, through_app(**FEW))
    site = prepare(study, "", TaskOptions())
    assert site.local
    with site.read() as db:
        counts = db.exec_driver_sql("select wanted, votes from tasks order by wanted").fetchall()
    assert [tuple(row) for row in counts] == [(24, 0), (48, 48)]


def test_a_guideline_is_read_first(study: Study) -> None:
    with study.feedback.database.write() as db:
        people.write_guideline(db, "Count the fishes.", "boss", 0)
    rate(study, through_app(**FEW))
    assert {r.shown["guideline_version"] for r in study.feedback.ratings()} == {1}


def test_a_paused_task_ends_in_one_line(study: Study) -> None:
    rate(study, through_app(raters=2, overlap=1, per_prompt=1))
    with study.feedback.database.write() as db:
        db.exec_driver_sql("update tasks set state = 'paused'")
    with pytest.raises(UserError, match="paused"):
        rate(study, through_app(raters=2, overlap=2, per_prompt=1))


def test_a_rater_who_is_switched_off_is_named(study: Study) -> None:
    rate(study, through_app(raters=2, overlap=1, per_prompt=1))
    with study.feedback.database.write() as db:
        people.set_active(db, "simulated-2", False)
    with pytest.raises(UserError, match=r"simulated-2 is switched off; .* on simulated-2"):
        rate(study, through_app(raters=2, overlap=2, per_prompt=1))


def test_what_nobody_can_read_is_refused_before_anything_is_stored(study: Study) -> None:
    picture = study.path / study.samples("base")[-1].path
    picture.write_bytes(picture.read_bytes()[:70])
    with pytest.raises(UserError, match="damaged"):
        rate(study, through_app(**FEW))
    assert study.feedback.database.absent


def test_every_prompt_of_the_tiny_world_can_be_read() -> None:
    grammar = load_grammar("tinyworld")
    made = make_prompts(grammar, share_out(grammar, 400, 40, 40), seed=1)
    assert len(made) == 480
    assert all(app_raters._slots(prompt.text) == prompt.slots for prompt in made)
    with pytest.raises(UserError, match="a dream"):
        app_raters._slots("a dream of summer")


def test_the_demo_can_go_through_the_app() -> None:
    plain, through = (commands("d", DemoConfig(through_app=app)) for app in (False, True))
    assert len(plain) == len(through)
    assert not any("--through-app" in line for line in plain)
    rating = [line for line in through if line.startswith("rate ")]
    assert all("--simulated" in line and "--through-app" in line for line in rating)
    assert "--raters 20 --careless 1 --overlap 3" in rating[0]
