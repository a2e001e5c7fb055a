"""The tiny world: grammar, captions, pictures, the judge that reads them and simulated raters."""

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sayso.base.errors import UserError
from sayso.base.types import Prompt
from sayso.tinyworld import paths
from sayso.tinyworld.factory import judge_training
from sayso.tinyworld.factory.judge_training import JudgeTraining, _bumps, mixed_items
from sayso.tinyworld.judge import Judge, as_images
from sayso.tinyworld.judge_check import ATTRIBUTES, accuracy, load_autoencoder, reconstruct
from sayso.tinyworld.raters import SimulatedRater, decision_rng, make_raters
from sayso.tinyworld.reading import Detection, Reading, Verdict, in_words, verdict
from sayso.tinyworld.render import compose, render, render_with_centres
from sayso.tinyworld.scenes import (
    BACKGROUNDS,
    COLOURS,
    OBJECTS,
    SEEN_OBJECTS,
    STYLES,
    UNSEEN_OBJECTS,
    VOCABULARY,
    CaptionNoise,
    Scene,
    noisy_caption,
    plural,
    random_scene,
    true_caption,
)

SCENE = Scene("fish", "white", 5, "in the city")


# Grammar


def test_sizes_of_the_grammar() -> None:
    assert (len(SEEN_OBJECTS), len(UNSEEN_OBJECTS), len(COLOURS), len(BACKGROUNDS)) == (9, 3, 8, 6)
    assert not set(SEEN_OBJECTS) & set(UNSEEN_OBJECTS)


def test_plurals_differ_from_the_singular() -> None:
    assert plural("fish") == "fishes"
    assert all(plural(noun) != noun for noun in OBJECTS)


@pytest.mark.parametrize(
    ("scene", "texts"),
    [
        (SCENE, ["five fishes", "a white colored fish", "a fish in the city",
                 "five white fishes in the city"]),
        (Scene("apple", "red", 1, "on the moon"), ["one apple", "a red colored apple",
         "an apple on the moon", "one red apple on the moon"]),
    ],
)  # fmt: skip
def test_true_captions_have_the_papers_forms(scene: Scene, texts: list[str]) -> None:
    assert [true_caption(scene, style) for style in STYLES] == texts


def test_scenes_and_raters_need_no_torch() -> None:
    modules = "sayso.tinyworld.raters, sayso.tinyworld.scenes, sayso.tinyworld"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_random_scenes_cover_every_value() -> None:
    rng = np.random.default_rng(0)
    scenes = [random_scene(rng) for _ in range(500)]
    assert {s.object for s in scenes} == set(OBJECTS)
    assert {s.colour for s in scenes} == set(COLOURS)
    assert {s.count for s in scenes} == {1, 2, 3, 4, 5}
    assert {s.background for s in scenes} == set(BACKGROUNDS)


# Captions


def test_noiseless_caption_is_the_true_one() -> None:
    assert noisy_caption(SCENE, np.random.default_rng(0), CaptionNoise()) == true_caption(SCENE)


def test_noise_rates_and_uniform_wrong_counts() -> None:
    rng, n = np.random.default_rng(0), 6000
    noise = CaptionNoise(omit_count=0.3, wrong_count=0.4, omit_colour=0.2, wrong_background=0.1)
    texts = [noisy_caption(SCENE, rng, noise) for _ in range(n)]
    first = Counter(text.split()[0] for text in texts)
    said = {word: first[word] / n for word in ("one", "two", "three", "four", "five")}
    assert said["five"] == pytest.approx(0.7 * 0.6, abs=0.025)
    for word in ("one", "two", "three", "four"):
        assert said[word] == pytest.approx(0.7 * 0.1, abs=0.015)
    assert sum("white" not in text for text in texts) / n == pytest.approx(0.2, abs=0.02)
    assert sum("in the city" not in text for text in texts) / n == pytest.approx(0.1, abs=0.015)


def test_omitted_counts_read_like_lazy_captions() -> None:
    rng = np.random.default_rng(0)
    several = Counter(noisy_caption(SCENE, rng, CaptionNoise(omit_count=1.0)) for _ in range(2000))
    assert set(several) == {"white fishes in the city", "a white colored fish in the city"}
    assert several["white fishes in the city"] == pytest.approx(1000, abs=100)
    single = Scene("umbrella", "red", 1, "in the sea")
    noise = CaptionNoise(omit_count=1.0, omit_colour=1.0)
    assert {noisy_caption(single, rng, noise) for _ in range(50)} == {"an umbrella in the sea"}


def test_vocabulary_holds_every_word() -> None:
    rng = np.random.default_rng(0)
    noise = CaptionNoise(0.4, 0.3, 0.4, 0.3, 0.4, 0.3)
    words = {w for _ in range(4000) for w in noisy_caption(random_scene(rng), rng, noise).split()}
    assert words == set(VOCABULARY)


# Pictures


def test_same_seed_same_picture_other_seed_other_picture() -> None:
    first, again, other = (render(SCENE, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.shape == (64, 64, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_objects_are_as_many_as_said_apart_and_inside() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        scene = random_scene(rng)
        centres = render_with_centres(scene, rng)[1]
        assert len(centres) == scene.count
        assert {(c.object, c.colour) for c in centres} == {(scene.object, scene.colour)}
        spots = np.array([(c.x, c.y) for c in centres])
        assert spots.min() > 5
        assert spots.max() < 59
        distances = np.abs(spots[:, None] - spots[None]).max(2) + 99 * np.eye(len(spots))
        assert distances.min() > 8  # cells of 4 px: never neighbours for the judge


def test_objects_change_the_scenery_only_where_they_stand() -> None:
    with_one, centres = compose([("house", "red")], "in the sea", np.random.default_rng(5))
    without, none = compose([], "in the sea", np.random.default_rng(5))
    changed = np.argwhere((with_one != without).any(2))
    assert none == []
    assert np.abs(changed - [centres[0].y, centres[0].x]).max() < 20
    assert changed.min() > 0
    assert changed.max() < 63


def test_other_sizes_show_the_same_picture() -> None:
    large = render(SCENE, np.random.default_rng(3), image_size_px=128)
    small = render(SCENE, np.random.default_rng(3))
    halved = large.reshape(64, 2, 64, 2, 3).mean((1, 3))
    assert np.abs(halved - small).mean() < 1


# The judge


def test_what_the_judge_saw_in_words() -> None:
    cats = [Detection("cat", "red", 1, 1, 1, 0, 0)] * 2 + [Detection("cat", "blue", 1, 1, 1, 0, 0)]
    assert in_words(Reading(tuple(cats), "on the moon", 1.0)) == (
        "2 × red cat, 1 × blue cat, on the moon"
    )
    assert in_words(Reading((), "in the sea", 1.0)) == "nothing, in the sea"


def _reading(*objects: tuple[str, str], background: str = "in the sea", **scores: float) -> Reading:
    found = tuple(
        Detection(
            name, colour, scores.get("score", 0.9), 0.99, scores.get("colour", 0.98), 9.0, 9.0
        )
        for name, colour in objects
    )
    return Reading(found, background, scores.get("background", 0.97), scores.get("faint", 0.0))


TWO_RED_CATS = _reading(("cat", "red"), ("cat", "red"))


@pytest.mark.parametrize(
    ("reading", "slots", "truth"),
    [
        (TWO_RED_CATS, {"object": "cat"}, True),
        (TWO_RED_CATS, {"object": "cat", "count": 2}, True),
        (TWO_RED_CATS, {"object": "cat", "count": 1}, False),
        (TWO_RED_CATS, {"object": "cat", "count": 3}, False),
        (TWO_RED_CATS, {"object": "dog"}, False),
        (TWO_RED_CATS, {"object": "cat", "colour": "red"}, True),
        (TWO_RED_CATS, {"object": "cat", "colour": "blue"}, False),
        (TWO_RED_CATS, {"object": "cat", "background": "in the sea"}, True),
        (TWO_RED_CATS, {"object": "cat", "background": "in the city"}, False),
        (TWO_RED_CATS, {"object": "cat", "count": 2, "colour": "red",
                        "background": "in the sea"}, True),
        (_reading(("cat", "red"), ("car", "red")), {"object": "cat"}, False),
        (_reading(("cat", "red"), ("car", "red")), {"object": "cat", "count": 1}, False),
        (_reading(("cat", "red"), ("cat", "blue")), {"object": "cat", "count": 2}, True),
        (_reading(("cat", "red"), ("cat", "blue")), {"object": "cat", "colour": "red"}, False),
        (_reading(), {"object": "cat"}, False),
        (_reading(), {"object": "cat", "background": "in the sea"}, False),
    ],
)  # fmt: skip
def test_truth_table(reading: Reading, slots: dict[str, str | int], truth: bool) -> None:
    assert verdict(reading, slots).true is truth


def test_a_prompt_without_object_is_refused() -> None:
    with pytest.raises(ValueError, match="name no object"):
        verdict(TWO_RED_CATS, {"colour": "red"})


def test_certainty_follows_what_is_asked() -> None:
    doubtful = _reading(("cat", "red"), faint=0.34, colour=0.6)
    assert verdict(doubtful, {"object": "cat"}).certainty == 0.99
    assert verdict(doubtful, {"object": "cat", "colour": "red"}).certainty == 0.6
    assert verdict(doubtful, {"object": "cat", "count": 1}).certainty < 0.05
    assert verdict(doubtful, {"object": "car", "count": 1}).certainty == 0.99  # no cat is a car
    assert doubtful.certainty < 0.05
    assert TWO_RED_CATS.certainty == 0.97
    assert _reading().certainty == 0


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge.load()


def test_judge_reads_fresh_pictures(judge: Judge) -> None:
    rng = np.random.default_rng(999)
    scenes = [random_scene(rng) for _ in range(300)]
    shares = accuracy(judge.read(as_images([render(s, rng) for s in scenes])), scenes)
    assert {name: share for name, share in shares.items() if share < 0.99} == {}
    assert set(shares) == set(ATTRIBUTES)


def test_judge_reads_pictures_from_the_shipped_autoencoder(judge: Judge) -> None:
    rng = np.random.default_rng(997)
    scenes = [random_scene(rng) for _ in range(200)]
    images = as_images([render(s, rng) for s in scenes])
    through = reconstruct(images, load_autoencoder(paths().pipeline / "vae"))
    shares = accuracy(judge.read(through), scenes)
    assert {name: share for name, share in shares.items() if share < 0.97} == {}


def test_judge_reads_mixed_and_empty_pictures(judge: Judge) -> None:
    rng, right = np.random.default_rng(998), 0
    for _ in range(100):
        items = mixed_items(rng)
        picture = compose(items, BACKGROUNDS[rng.integers(6)], rng)[0]
        found = judge.read(as_images([picture]))[0].objects
        right += Counter(items) == Counter((f.object, f.colour) for f in found)
    assert right >= 97


def test_judge_verdicts_take_prompts_and_slots(judge: Judge) -> None:
    image = as_images([render(SCENE, np.random.default_rng(4))]).repeat(2, 1, 1, 1)
    slots = {"object": "fish", "count": 5}
    prompt = Prompt("p", "five fishes", "count", slots, "train")
    assert [v.true for v in judge.verdicts(image, [slots, {**slots, "count": 4}])] == [True, False]
    assert judge.verdicts(image[:1], [prompt])[0].true
    with pytest.raises(ValueError, match="2 images but 1"):
        judge.verdicts(image, [prompt])


def test_judge_resizes_and_pools_features(judge: Judge) -> None:
    large = as_images([render(SCENE, np.random.default_rng(4), image_size_px=128)])
    assert len(judge.read(large)[0].objects) == 5
    features = judge.features(large)
    assert features.shape == (1, 128)
    assert torch.isfinite(features).all()


def test_missing_judge_says_how_to_train_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="judge_training"):
        Judge.load(tmp_path)


def test_bumps_stand_where_objects_are() -> None:
    centres = torch.tensor([[[10.0, 30.0], [50.0, 6.0], [0.0, 0.0]]])
    bumps = _bumps(centres, torch.tensor([[3, 1, -1]]))
    assert bumps[0, 0, 7, 2] == 1
    assert bumps[0, 1, 1, 12] == 1
    assert bumps[0, 2].abs().max() == 0


@pytest.mark.slow
def test_interrupted_judge_training_goes_on_as_if_nothing_had_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def config(name: str) -> JudgeTraining:
        work = tmp_path / name
        return JudgeTraining(out=work / "out", work=work, max_steps=5, batch_size=8, pictures=500,
                             processes=1, checkpoint_steps=2)  # fmt: skip

    judge_training.train(config("straight"))
    update, calls = judge_training._update, []

    def dies_at_the_fourth_step(*arguments: Any) -> float:
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return update(*arguments)

    monkeypatch.setattr(judge_training, "_update", dies_at_the_fourth_step)
    with pytest.raises(KeyboardInterrupt):
        judge_training.train(config("broken"))
    judge_training.train(config("broken"))
    straight, broken = (
        load_file(tmp_path / name / "out" / "judge.safetensors") for name in ("straight", "broken")
    )
    assert len(calls) == 4 + 3  # steps 2, 3 and 4 after the checkpoint at 2
    assert all(torch.equal(straight[key], broken[key]) for key in straight)


# Simulated raters

GOOD, BAD, UNSURE = Verdict(True, 0.9, 0.9), Verdict(False, 0.9, 0.9), Verdict(True, 0.05, 0.1)


def test_raters_err_at_their_own_rates() -> None:
    rater, n = SimulatedRater("simulated-x", false_good=0.1, false_bad=0.04), 6000
    rngs = [decision_rng(0, rater.name, str(i)) for i in range(n)]
    goods = Counter(rater.rate(GOOD, rng) for rng in rngs)
    bads = Counter(rater.rate(BAD, rng) for rng in rngs)
    assert goods["bad"] / n == pytest.approx(0.04, abs=0.01)
    assert bads["good"] / n == pytest.approx(0.10, abs=0.015)
    assert goods["skip"] == bads["skip"] == 0


def test_raters_skip_when_unsure() -> None:
    rater = SimulatedRater("simulated-x", 0.05, 0.05, skip_below=0.3, skip_rate_when_unsure=0.8)
    rng = np.random.default_rng(0)
    votes = Counter(rater.rate(UNSURE, rng) for _ in range(4000))
    assert votes["skip"] / 4000 == pytest.approx(0.8, abs=0.03)


def test_rater_names_and_rates() -> None:
    raters = make_raters(9, seed=7)
    assert [r.name for r in raters] == [f"simulated-{k}" for k in range(1, 10)]
    assert raters[:3] == make_raters(3, seed=7)
    assert raters != make_raters(9, seed=8)
    rates = [rate for r in raters for rate in (r.false_good, r.false_bad)]
    assert len(set(rates)) == 18
    assert all(0.03 <= rate <= 0.08 for rate in rates)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"name": "anna", "false_good": 0.0, "false_bad": 0.0}, "simulated"),
        ({"name": "simulated", "false_good": 1.2, "false_bad": 0.0}, "false_good"),
    ],
)
def test_bad_raters_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        SimulatedRater(**options)
    with pytest.raises(ValueError, match="at least 1"):
        make_raters(0, seed=1)
    with pytest.raises(ValueError, match="4 of 3 raters"):
        make_raters(3, seed=1, careless=4)


def test_careless_raters_press_one_key_and_then_another() -> None:
    raters = make_raters(4, seed=2, careless=1)
    assert raters[:3] == make_raters(3, seed=2)
    careless, rng = raters[3], np.random.default_rng(0)
    for seen in (GOOD, BAD, UNSURE):
        votes = Counter(careless.rate(seen, rng) for _ in range(1000))
        assert 0.75 < votes["good"] / 1000 < 0.95
        assert votes["skip"] == 0
    sides = Counter(careless.compare([BAD], [GOOD], "alignment", rng) for _ in range(1000))
    assert 0.75 < sides["left"] / 1000 < 0.95
    assert sides["tie"] == 0
    assert careless.pace_s < min(rater.pace_s for rater in raters[:3])


def test_times_are_around_the_pace() -> None:
    rater, rng = make_raters(1, seed=3)[0], np.random.default_rng(0)
    times = [rater.seconds(rng) for _ in range(2000)]
    assert np.median(times) == pytest.approx(rater.pace_s, rel=0.05)
    assert min(times) > 0


def test_decisions_do_not_depend_on_order() -> None:
    first = [decision_rng(1, "simulated-1", item).random() for item in "abc"]
    again = [decision_rng(1, "simulated-1", item).random() for item in "cba"]
    assert first == again[::-1]
    assert len({*first, decision_rng(2, "simulated-1", "a").random()}) == 4


def test_alignment_comparison_counts_good_pictures() -> None:
    rater, rng = SimulatedRater("simulated-x", 0.0, 0.0), np.random.default_rng(0)
    three, two = [GOOD, GOOD, GOOD, BAD], [GOOD, BAD, GOOD, BAD]
    assert rater.compare(three, two, "alignment", rng) == "left"
    assert rater.compare(two, three, "alignment", rng) == "right"
    assert rater.compare(two, two[::-1], "alignment", rng) == "tie"
    with pytest.raises(ValueError, match="at least one image"):
        rater.compare([], two, "alignment", rng)


def test_a_set_of_something_else_loses_at_a_glance() -> None:
    """Though no picture of the other set is true; with some of the subject it is counted."""
    rater, rng = SimulatedRater("simulated-x", 1.0, 1.0), np.random.default_rng(0)
    foreign = Verdict(False, 0.9, 0.9, on_subject=False)
    assert rater.compare([BAD] * 4, [foreign] * 4, "alignment", rng) == "left"
    assert rater.compare([foreign] * 4, [BAD] * 3 + [foreign], "alignment", rng) == "right"
    mixed = [BAD, BAD, foreign, foreign]
    assert rater.compare(mixed, [foreign] * 4, "alignment", rng) == "tie"


def test_fidelity_comparison_sees_clear_differences_only() -> None:
    rater, rng = make_raters(1, seed=1)[0], np.random.default_rng(0)
    clean, murky = [GOOD] * 4, [Verdict(True, 0.9, 0.4)] * 4
    wins = Counter(rater.compare(clean, murky, "fidelity", rng) for _ in range(200))
    equal = Counter(rater.compare(clean, clean, "fidelity", rng) for _ in range(400))
    assert wins["left"] > 190
    assert equal["tie"] > 100
    assert abs(equal["left"] - equal["right"]) < 80
