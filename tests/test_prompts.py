"""The prompt sets: the paper's groups and numbers, splits without leaks, altered prompts."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sayso.base.errors import UserError
from sayso.base.types import CATEGORIES, Prompt
from sayso.prompts.grammar import (
    altered,
    images_per_prompt,
    load_grammar,
    make_prompts,
    phrase,
    share_out,
)
from sayso.stages.new import NewConfig, new
from sayso.stages.prompts import PromptsConfig, write_prompts
from sayso.study.study import Study
from sayso.tinyworld import scenes

SETS = ("tinyworld", "lee2023")


def made(name: str, seed: int = 0) -> list[Prompt]:
    grammar = load_grammar(name)
    return make_prompts(grammar, grammar.sizes, seed)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return new(tmp_path / "study", NewConfig())


def test_phrases_of_the_paper():
    grammar = load_grammar("lee2023")
    slots = {"object": "dog", "count": 5, "colour": "white", "background": "in the city"}
    assert phrase(grammar, slots) == "five white dogs in the city"
    assert phrase(grammar, {"object": "dog", "count": 2}) == "two dogs"
    assert phrase(grammar, {"object": "dog", "colour": "green"}) == "a green colored dog"
    assert phrase(grammar, {"object": "dog", "background": "on the moon"}) == "a dog on the moon"
    assert phrase(grammar, {"object": "box", "count": 6}) == "six boxes"
    assert phrase(grammar, {"object": "apple", "background": "in the sea"}) == "an apple in the sea"


def test_tiny_world_prompts_are_true_captions_of_scenes():
    for prompt in made("tinyworld"):
        scene = scenes.Scene(**{"count": 1, "colour": "red", "background": "", **prompt.slots})
        assert prompt.text == scenes.true_caption(scene, prompt.category)  # type: ignore[arg-type]
        assert set(prompt.text.split()) <= set(scenes.VOCABULARY)


@pytest.mark.parametrize("name", SETS)
def test_no_text_twice_and_objects_decide_the_split(name: str):
    grammar, found = load_grammar(name), made(name)
    assert max(Counter(p.text for p in found).values()) == 1
    assert len({p.id for p in found}) == len(found)
    for prompt in found:
        unseen = prompt.slots["object"] in grammar.unseen_objects
        assert unseen == (prompt.split == "unseen")


def test_numbers_of_the_demo():
    numbers = Counter((p.split, p.category) for p in made("tinyworld"))
    assert sum(n for (split, _), n in numbers.items() if split == "train") == 160
    for split in ("seen", "unseen"):
        assert [numbers[split, c] for c in CATEGORIES] == [8, 8, 8, 8]
    shares = [numbers["train", c] / 160 for c in CATEGORIES]
    assert shares == pytest.approx([0.24, 0.13, 0.09, 0.55], abs=0.02)


def test_numbers_of_the_paper():
    found = [p for p in made("lee2023") if p.split == "train"]
    assert len(found) == 2774
    images = Counter[str]()
    for prompt in found:
        images[prompt.category] += images_per_prompt("lee2023", prompt.category)
    expected = {"count": 6480, "colour": 3480, "background": 2400, "combination": 15168}
    assert images == expected
    assert images.total() == 27528
    grammar = load_grammar("lee2023")
    sizes = [grammar.seen_objects, grammar.unseen_objects, grammar.counts, grammar.colours,
             grammar.backgrounds]  # fmt: skip
    assert [len(s) for s in sizes] == [20, 5, 6, 9, 8]
    tests = Counter(p.split for p in made("lee2023"))
    assert (tests["seen"], tests["unseen"]) == (60, 60)


def test_no_whole_numbers_of_prompts_fit_sixty_and_six_images():
    """Why background has 30: 60 a + 6 (2774 − a) = 27,528 has no whole solution."""
    assert (27528 - 6 * 2774) % 54 != 0


def test_choice_is_balanced_and_seeded():
    first, again, other = made("tinyworld"), made("tinyworld"), made("tinyworld", seed=1)
    assert first == again
    assert first != other
    train = [p for p in first if p.split == "train" and p.category == "combination"]
    for slot in ("object", "count", "colour", "background"):
        uses = Counter(p.slots[slot] for p in train).values()
        assert max(uses) - min(uses) <= 3, slot


def test_too_many_prompts_are_refused():
    with pytest.raises(UserError, match="at most"):
        share_out(load_grammar("tinyworld"), train=5000, seen=0, unseen=0)


def differing(other: str, prompt: Prompt) -> list[str]:
    """The slots of which one other value makes the tiny world's prompt say `other`."""
    grammar = load_grammar("tinyworld")
    found = []
    for slot in prompt.slots:
        values = grammar.values(slot, scenes.OBJECTS)
        found += [slot for v in values if phrase(grammar, {**prompt.slots, slot: v}) == other]
    return found


def test_altered_prompts_differ_in_one_asked_slot():
    grammar, rng = load_grammar("tinyworld"), np.random.default_rng(0)
    slots_seen = Counter[str]()
    for prompt in made("tinyworld"):
        texts = altered(prompt, grammar, 6, rng)
        assert len(set(texts)) == len(texts) == 6
        for text in texts:
            assert text != prompt.text
            slots = differing(text, prompt)
            assert len(slots) == 1
            slots_seen[slots[0]] += 1
    assert set(slots_seen) == {"object", "count", "colour", "background"}


def test_altered_train_prompts_never_name_unseen_objects():
    grammar, rng = load_grammar("tinyworld"), np.random.default_rng(0)
    unseen = {*scenes.UNSEEN_OBJECTS, *map(scenes.plural, scenes.UNSEEN_OBJECTS)}
    for prompt in made("tinyworld"):
        if prompt.split != "unseen":
            words = {w for text in altered(prompt, grammar, 50, rng) for w in text.split()}
            assert not words & unseen


def test_altered_prompts_avoid_what_one_picture_can_show_too():
    grammar = load_grammar("lee2023")
    slots = {"object": "dog", "background": "in San Francisco"}
    prompt = Prompt("x", phrase(grammar, slots), "background", slots, "train")
    texts = altered(prompt, grammar, 99, np.random.default_rng(0))
    assert "a dog in the city" not in texts
    assert "a tree in San Francisco" not in texts
    assert "a dog in the sea" in texts
    assert "a cat in San Francisco" in texts


def test_free_text_cannot_be_altered():
    with pytest.raises(UserError, match="no slots"):
        altered(
            Prompt("x", "a dream", "custom", {}, "train"),
            load_grammar("tinyworld"), 1, np.random.default_rng(0),
        )  # fmt: skip


def test_unknown_set_names_the_nearest():
    with pytest.raises(UserError, match="lee2023"):
        load_grammar("lee2024")


def test_own_grammar(tmp_path: Path):
    path = tmp_path / "mine.json"
    grammar = {
        "name": "mine", "seen_objects": ["hat"], "unseen_objects": ["shoe"],
        "counts": {"one": 1, "two": 2}, "colours": ["red"], "backgrounds": ["on the beach"],
    }  # fmt: skip
    path.write_text(json.dumps(grammar))
    assert phrase(load_grammar(str(path)), {"object": "hat", "count": 2}) == "two hats"
    path.write_text(json.dumps({**grammar, "colors": []}))
    with pytest.raises(UserError, match="colors"):
        load_grammar(str(path))


# the stage


def test_stage_writes_once_and_refuses_other_prompts(study: Study):
    run = write_prompts(study, PromptsConfig(fidelity=4))
    expected = {"train": 160, "validation": 0, "seen": 32, "unseen": 32, "fidelity": 4}
    assert run.result == expected
    before = (study.path / "prompts.jsonl").read_bytes()
    write_prompts(study, PromptsConfig(fidelity=4))
    with pytest.raises(UserError, match="already has prompts"):
        write_prompts(study, PromptsConfig(fidelity=4, train=100))
    assert (study.path / "prompts.jsonl").read_bytes() == before


def test_stage_with_numbers(study: Study):
    run = write_prompts(study, PromptsConfig(train=24, test=16, fidelity=0))
    assert run.result == {"train": 24, "validation": 0, "seen": 8, "unseen": 8, "fidelity": 0}
    assert {p.category for p in study.prompts("train")} == set(CATEGORIES)


def test_validation_prompts_are_of_seen_objects_and_of_no_other_split(study: Study):
    run = write_prompts(study, PromptsConfig(train=100, validation=40, test=64, fidelity=0))
    assert run.result["validation"] == 40
    found = study.prompts("validation")
    # the small groups give what training leaves them
    assert Counter(p.category for p in found)["combination"] >= 10
    assert {p.category for p in found} == set(CATEGORIES)
    seen = set(load_grammar("tinyworld").seen_objects)
    assert {p.slots["object"] for p in found} <= seen
    others = [p.text for p in study.prompts() if p.split != "validation"]
    assert not {p.text for p in found} & set(others)
    assert [p for p in study.prompts("test") if p.split not in ("seen", "unseen")] == []


def test_without_validation_prompts_the_others_are_as_they_were():
    """And with them the test prompts too are other ones, but never fewer."""
    grammar = load_grammar("tinyworld")
    sizes = share_out(grammar, train=100, seen=16, unseen=16)
    bare = {split: sizes[split] for split in ("train", "seen", "unseen")}
    assert make_prompts(grammar, sizes, 3) == make_prompts(grammar, bare, 3)
    with_some = make_prompts(grammar, share_out(grammar, 100, 16, 16, 20), 3)
    assert Counter(p.split for p in with_some) == {
        "train": 100, "validation": 20, "seen": 16, "unseen": 16,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"validation": -1}, "validation -1 is not allowed"),
        ({"validation": 100_000}, "100000 validation prompts requested"),
        ({"validation": 4, "file": "mine.txt"}, "--validation chooses from a prompt set"),
    ],
)
def test_bad_numbers_of_validation_prompts(study: Study, options: dict[str, Any], says: str):
    with pytest.raises(UserError, match=says):
        write_prompts(study, PromptsConfig(fidelity=0, **options))
    assert not study.has_prompts


def test_own_text_file(study: Study, tmp_path: Path):
    file = tmp_path / "mine.txt"
    file.write_text("a red  hat\n\na blue hat\na red hat\na green hat\n")
    write_prompts(study, PromptsConfig(file=str(file), test=1, fidelity=0))
    texts = {p.text for p in study.prompts("all")}
    assert texts == {"a red hat", "a blue hat", "a green hat"}
    assert len(study.prompts("seen")) == 1
    assert {p.category for p in study.prompts()} == {"custom"}


def test_own_jsonl_file(study: Study, tmp_path: Path):
    file = tmp_path / "mine.jsonl"
    rows = [
        {"text": "two red hats", "category": "both", "slots": {"object": "hat", "count": 2}},
        {"text": "a hat", "split": "unseen"},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_prompts(study, PromptsConfig(file=str(file), fidelity=0))
    first, second = study.prompts()
    assert (first.text, first.category, first.slots["count"]) == ("two red hats", "both", 2)
    assert second.split == "unseen"


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"txt": "a"}, "line 2 has unknown field 'txt'"),
        ({"text": ""}, "line 2 has no text"),
        ({"text": "a", "split": "tset"}, "line 2 has split 'tset'"),
        ({"text": "a", "slots": {"color": "red"}}, "line 2 has unknown slot 'color'"),
        ({"text": "a", "slots": {"count": "two"}}, "line 2 has slot count 'two'"),
        ({"text": "a", "slots": {"count": 0}}, "1 or more"),
        ({"text": "first"}, "occurs twice"),
    ],
)
def test_bad_lines_are_named(study: Study, tmp_path: Path, row: dict[str, object], says: str):
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps({"text": "first"}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(UserError, match=says):
        write_prompts(study, PromptsConfig(file=str(file), fidelity=0))
    assert not study.has_prompts


def test_defaults_follow_the_model(tmp_path: Path):
    tiny = new(tmp_path / "a", NewConfig()).info
    assert (tiny.sampler.num_inference_steps, str(tiny.sampler.image_size)) == (6, "64x64")
    assert (tiny.clip_model, tiny.pretraining) == ("tinyworld", "tinyworld")
    own = new(tmp_path / "b", NewConfig(base_model="some/model", guidance_scale=5.0)).info
    assert (own.sampler.image_size, own.sampler.guidance_scale) == ((512, 512), 5.0)
    assert (own.clip_model, own.pretraining) == ("openai/clip-vit-large-patch14", "")
    assert Study.open(tmp_path / "b").info == own


@pytest.mark.parametrize(
    "config",
    [
        NewConfig(image_size="63"),
        NewConfig(eta=2.0),
        NewConfig(pretraining="/no/such/folder"),
    ],
)
def test_new_refuses_and_leaves_nothing(tmp_path: Path, config: NewConfig):
    with pytest.raises(UserError):
        new(tmp_path / "study", config)
    assert not (tmp_path / "study").exists()
