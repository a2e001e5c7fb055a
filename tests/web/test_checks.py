"""Gold items and attention checks: hidden, asked of everyone, never taken for labels."""

import json
from pathlib import Path

import pytest
from rating_studies import BASE, TUNED, Office, items_of, make_study

from sayso.errors import UserError
from sayso.study import Study
from sayso.types import Comparison, Prompt, Rating
from sayso.web.tasks import TaskOptions, are_foreign, draft, read_gold


def gold_of(study: Study, n: int) -> dict[str, str]:
    return {s.id: ("good", "bad")[i % 2] for i, s in enumerate(study.samples(BASE)[:n])}


def checks_of(study: Study) -> list[Rating | Comparison]:
    votes = [*study.feedback.ratings(), *study.feedback.comparisons()]
    return [vote for vote in votes if "attention" in vote.shown]


def test_checks_reach_everyone_and_look_like_the_rest(tmp_path: Path):
    study = make_study(tmp_path, prompts=8, per_prompt=10)
    options = TaskOptions(gold=gold_of(study, 4), gold_share=0.05, attention_share=0.1)  # type: ignore[arg-type]
    office = Office(study, options, names=("ann", "bob"))
    kinds = set()
    for name in office.names:
        rater = office.client(name)
        for _ in range(38):
            (page,) = rater.pages()
            kinds.add(tuple(sorted(page)) + tuple(sorted(page["items"][0])))
            rater.answer(page)
    assert len(kinds) == 1
    ratings = [r for r in study.feedback.ratings() if "gold" in r.shown]
    assert {r.rater for r in ratings} == {"ann", "bob"}
    gold = gold_of(study, 4)
    assert all(r.shown["gold"] == gold[r.sample_id] for r in ratings)
    checks = checks_of(study)
    assert {c.rater for c in checks} == {"ann", "bob"}
    assert 6 <= len(checks) <= 10
    assert all(c.shown["attention"] == "bad" for c in checks)


def test_answers_to_attention_checks_are_no_labels(tmp_path: Path):
    study = make_study(tmp_path, prompts=8, per_prompt=3)
    office = Office(study, TaskOptions(attention_share=0.3))
    office.client().work()
    checks = checks_of(study)
    samples = {s.id: s.prompt_id for s in study.samples()}
    prompts = {p.id: p for p in study.prompts()}
    assert len(checks) > 4
    for check in checks:
        shown, drawn = check.shown["prompt_id"], samples[check.sample_id]  # type: ignore[union-attr]
        assert are_foreign(prompts[str(shown)], prompts[drawn])
    assert set(study.feedback.labels(simulated=False)) == samples.keys()
    assert all(label.good + label.bad == 1 for label in study.feedback.labels(False).values())
    assert len(study.feedback.ratings()) == len(samples) + len(checks)


def test_attention_checks_of_comparisons(tmp_path: Path):
    study = make_study(tmp_path, prompts=8, per_prompt=2, models=(BASE, TUNED))
    options = TaskOptions(
        kind="compare", right=TUNED, set_size=2, attention_share=0.3, gold_share=0.0
    )
    office = Office(study, options)
    ann = office.client()
    while pages := ann.pages():
        ann.answer(pages[0], lambda _: "left")
    checks = checks_of(study)
    prompt_of = {s.id: s.prompt_id for s in study.samples()}
    assert len(checks) > 3
    for check in checks:
        sides = {"left": check.left_ids, "right": check.right_ids}  # type: ignore[union-attr]
        right_side = sides[str(check.shown["attention"])]
        assert {prompt_of[i] for i in right_side} == {check.prompt_id}  # type: ignore[union-attr]
    assert len({c.shown["attention"] for c in checks}) == 2
    assert len(study.feedback.comparisons()) == 16 + len(checks)


def test_a_page_with_a_gold_image_is_asked_of_everyone(tmp_path: Path):
    study = make_study(tmp_path, prompts=2, per_prompt=6)
    gold = {study.samples(BASE)[1].id: "good"}
    options = TaskOptions(gold=gold, images_per_page=3, gold_share=0.3, attention_share=0.0)  # type: ignore[arg-type]
    pages = draft(study, options)
    assert [[item.control for item in page] for page in pages] == [[""] * 3] * 3 + [["gold"] * 3]
    assert [item.expected for item in pages[3]] == ["", "good", ""]


def test_foreign_prompts():
    def prompt(text: str, **slots: str) -> Prompt:
        return Prompt(text, text, "c", slots, "train")

    assert are_foreign(prompt("a dog", object="dog"), prompt("two cats", object="cat"))
    assert not are_foreign(prompt("a dog", object="dog"), prompt("two dogs", object="dog"))
    assert are_foreign(prompt("a castle at night"), prompt("ripe cherries"))
    assert not are_foreign(prompt("a castle at night"), prompt("night traffic"))


def test_gold_files(tmp_path: Path):
    path = tmp_path / "gold.jsonl"
    path.write_text('{"sample_id": "a", "value": "good"}\n{"sample_id": "b", "value": "bad"}\n')
    assert read_gold(path) == {"a": "good", "b": "bad"}
    for line in ({"sample_id": "a", "value": "skip"}, {"value": "good"}):
        path.write_text(json.dumps(line) + "\n")
        with pytest.raises(UserError, match="line 1 is no gold answer"):
            read_gold(path)
    with pytest.raises(UserError, match="missing"):
        read_gold(tmp_path / "none")
    study = make_study(tmp_path)
    with pytest.raises(UserError, match="1 images that the task does not show"):
        draft(study, TaskOptions(gold={"b": "bad"}, attention_share=0.0))


def test_the_same_item_ids_for_all(tmp_path: Path):
    office = Office(
        make_study(tmp_path), TaskOptions(overlap=2, attention_share=0.0), names=("a", "b")
    )
    ids = [{items_of(p)[0] for p in office.client(n).pages(10)} for n in "ab"]
    assert ids[0] & ids[1]
