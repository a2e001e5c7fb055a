"""Gold items and attention checks: hidden, asked of everyone, never taken for labels."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from rating_studies import (
    BASE,
    SECRET,
    TUNED,
    Rater,
    RatingApp,
    items_of,
    make_study,
    set_secret,
)  # fmt: skip
from served import free_port
from sqlalchemy import select

from sayso.base.errors import UserError
from sayso.base.types import Comparison, Prompt, Rating
from sayso.feedback import work_tables
from sayso.study.study import Study
from sayso.votes import counted
from sayso.votes.item_votes import of_comparisons
from sayso.web import serving
from sayso.web.admin import numbers
from sayso.web.work import checks, foreign_prompts
from sayso.web.work.excluding import set_excluded
from sayso.web.work.tasks import TaskOptions, draft, read_gold


def gold_of(study: Study, n: int) -> dict[str, str]:
    return {s.id: ("good", "bad")[i % 2] for i, s in enumerate(study.samples(BASE)[:n])}


def checks_of(study: Study) -> list[Rating | Comparison]:
    votes = [*study.feedback.ratings(), *study.feedback.comparisons()]
    return [vote for vote in votes if "attention" in vote.shown and not vote.shown.get("struck")]


def test_checks_reach_everyone_and_look_like_the_rest(tmp_path: Path):
    study = make_study(tmp_path, prompts=8, per_prompt=11)
    gold: Any = gold_of(study, 4)
    options = TaskOptions(gold=gold, gold_share=0.05, attention_share=0.1, per_prompt=10)
    app = RatingApp(study, options, names=("ann", "bob"))
    kinds = set()
    for name in app.names:
        rater = app.client(name)
        for _ in range(38):
            (page,) = rater.pages()
            kinds.add(tuple(sorted(page)) + tuple(sorted(page["items"][0])))
            rater.vote_on(page)
    assert len(kinds) == 1
    ratings = [r for r in study.feedback.ratings() if "gold" in r.shown]
    assert {r.rater for r in ratings} == {"ann", "bob"}
    gold = gold_of(study, 4)
    assert all(r.shown["gold"] == gold[r.sample_id] for r in ratings)
    asked = checks_of(study)
    assert {c.rater for c in asked} == {"ann", "bob"}
    assert 6 <= len(asked) <= 10
    assert all(c.shown["attention"] == "bad" for c in asked)


def test_votes_on_attention_checks_are_no_labels(tmp_path: Path):
    study = make_study(tmp_path, prompts=8, per_prompt=5)
    app = RatingApp(study, TaskOptions(attention_share=0.3, per_prompt=3))
    app.client().work()
    asked = checks_of(study)
    samples = {s.id: s.prompt_id for s in study.samples()}
    prompts = {p.id: p for p in study.prompts()}
    assert len(asked) > 4
    for check in asked:
        shown, drawn = check.shown["prompt_id"], samples[check.sample_id]  # type: ignore[union-attr]
        assert foreign_prompts.is_surely_foreign(prompts[drawn], prompts[str(shown)])
    labelled = set(study.feedback.counts(simulated=False))
    assert len(labelled) == 8 * 3
    assert not labelled & {check.sample_id for check in asked}  # type: ignore[union-attr]
    assert all(label.good + label.bad == 1 for label in study.feedback.counts(False).values())
    assert len(study.feedback.ratings()) == len(labelled) + len(asked)


def test_attention_checks_of_comparisons(tmp_path: Path):
    study = make_study(tmp_path, prompts=8, per_prompt=4, models=(BASE, TUNED))
    options = TaskOptions(
        kind="compare", right=TUNED, set_size=2, attention_share=0.3, gold_share=0.0
    )
    app = RatingApp(study, options)
    ann = app.client()
    while pages := ann.pages():
        ann.vote_on(pages[0], lambda _: "left")
    asked = checks_of(study)
    prompt_of = {s.id: s.prompt_id for s in study.samples()}
    assert len(asked) > 3
    for check in asked:
        sides = {"left": check.left_ids, "right": check.right_ids}  # type: ignore[union-attr]
        right_side = sides[str(check.shown["attention"])]
        assert {prompt_of[i] for i in right_side} == {check.prompt_id}  # type: ignore[union-attr]
    assert len({c.shown["attention"] for c in asked}) == 2
    assert len(study.feedback.comparisons()) == 16 + len(asked)


def test_a_page_with_a_gold_image_is_asked_of_everyone(tmp_path: Path):
    study = make_study(tmp_path, prompts=2, per_prompt=6)
    gold = {study.samples(BASE)[1].id: "good"}
    options = TaskOptions(gold=gold, images_per_page=3, gold_share=0.3, attention_share=0.0)  # type: ignore[arg-type]
    pages = draft(study, options)
    assert [[item.control for item in page] for page in pages] == [[""] * 3] * 3 + [["gold"] * 3]
    assert [item.expected for item in pages[3]] == ["", "good", ""]


def compared(study: Study, seed: int) -> RatingApp:
    options = TaskOptions(kind="compare", right=TUNED, set_size=2, attention_share=0.3, seed=seed)
    return RatingApp(study, options, names=())


def test_either_model_is_the_foreign_one_and_no_set_is_shown_in_both(tmp_path: Path):
    study = make_study(tmp_path, prompts=16, per_prompt=4, models=(BASE, TUNED))
    right: list[str] = []
    for seed in range(8):
        app = compared(study, seed)
        rows = app.table(
            f"select control, expected, samples, models from items where task = '{app.site.task}'"
        )
        shown: dict[str, set[str]] = {"": set(), "attention": set()}
        for control, expected, samples, models in rows:
            assert json.loads(models) == [BASE, TUNED]
            images = {image for side in json.loads(samples) for image in side}
            if control:
                assert not images & shown[control], "each set is in one check at most"
                right.append(expected)
            shown[control] |= images
        assert not shown[""] & shown["attention"]
    assert len(right) == 8 * 10
    assert right.count("left") == right.count("right") == 40
    assert len({tuple(right[i : i + 10]) for i in range(0, 80, 10)}) > 4, "drawn, not in turn"


def test_who_keeps_its_prompt_comes_from_the_secret(tmp_path: Path):
    drawn: list[list[Any]] = []
    for folder, secret in (("one", SECRET), ("two", SECRET), ("three", "b7" * 32)):
        (tmp_path / folder).mkdir()
        study = make_study(tmp_path / folder, 16, 4, models=(BASE, TUNED))
        set_secret(study, secret)
        drawn.append(compared(study, 0).table(
            "select content, expected from items where control = 'attention' order by content"
        ))  # fmt: skip
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_comparison_without_spare_sets_has_no_checks_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    app = compared(make_study(tmp_path, 16, 2, models=(BASE, TUNED)), 0)
    assert app.table("select count(*) from items where control <> ''") == [(0,)]
    monkeypatch.setattr(serving, "_run", lambda *_: None)
    serving.serve(app.site, serving.Listening(port=free_port(), browser=False))
    said = capsys.readouterr()
    assert "Attention checks: 0 in use, 0 proposed, 0 struck" in said.out
    warning = "Warning: no attention check is in use.*--per-prompt 8.*/admin/checks"
    assert re.search(warning, said.err)


def test_checks_show_images_that_no_other_page_shows_where_there_are_any(tmp_path: Path):
    study = make_study(tmp_path, prompts=8, per_prompt=6)
    app = RatingApp(study, TaskOptions(per_prompt=4, attention_share=0.3), names=())
    shown = "select samples from items where control = '{}'"
    ordinary, checks = (set(app.table(shown.format(c))) for c in ("", "attention"))
    assert len(checks) == 10
    assert not ordinary & checks


@pytest.mark.parametrize("overlap", [1, 2])
@pytest.mark.parametrize("images_per_page", [1, 3])
def test_a_picture_comes_to_nobody_as_a_check_and_as_work(
    tmp_path: Path, overlap: int, images_per_page: int
):
    """Without spare images a check waits until others have judged its picture."""
    study = make_study(tmp_path, prompts=8, per_prompt=6)
    options = TaskOptions(
        attention_share=0.3, overlap=overlap, images_per_page=images_per_page
    )  # fmt: skip
    app = RatingApp(study, options, names=("ann", "bob", "cy", "zoe"))
    raters = [app.client(name) for name in app.names]
    while sum(rater.work(most=2) for rater in raters):
        pass
    votes = study.feedback.ratings()
    seen = {(r.rater, r.sample_id): 0 for r in votes}
    for vote in votes:
        seen[vote.rater, vote.sample_id] += 1
    assert set(seen.values()) == {1}, "nobody saw a picture twice"
    checks = checks_of(study)
    assert {c.rater for c in checks} == set(app.names), "and yet there were checks for everyone"
    ordinary = [v for v in votes if "attention" not in v.shown]
    assert len(ordinary) == 48 * overlap, "and all the work was done"
    assert app.table("select wanted - votes from tasks") == [(0,)]
    with app.site.write() as db:  # a reviewer throws out somebody: others are asked once more
        set_excluded(db, "zoe", True, "boss")
    while sum(rater.work(most=2) for rater in raters[:3]):
        pass
    again = [r for r in study.feedback.ratings() if r.rater != "zoe"]
    assert len(again) > len([v for v in votes if v.rater != "zoe"])
    assert len({(r.rater, r.sample_id) for r in again}) == len(again)


def test_who_works_alone_reads_that_no_check_comes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    study = make_study(tmp_path, prompts=8, per_prompt=3)
    app = RatingApp(study, TaskOptions(attention_share=0.3), names=("ann", "boss"))
    monkeypatch.setattr(serving, "_run", lambda *_: None)
    serving.serve(app.site, serving.Listening(port=free_port(), browser=False))
    said = capsys.readouterr()
    assert "8 in use (8 of them after others have rated the image), 0 proposed" in said.out
    assert "never for a rater who works alone" in said.err
    assert "8 of them after others" in app.client("boss").http.get("/admin/checks").text
    assert app.client().work() == 24
    assert checks_of(study) == []


def own_prompts(folder: Path, *texts: str) -> Study:
    study = make_study(folder, len(texts), 6)
    by_id = {prompt.id: text for prompt, text in zip(study.prompts(), texts, strict=True)}
    study.write_prompts(Prompt(key, text, "own", {}, "train") for key, text in by_id.items())
    return study


def test_pairs_of_plain_prompts_wait_for_an_admin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """ "An automobile" is true of many a picture of a red car, and no rule can know."""
    texts = ("a photo of a red car", "a photo of an automobile", "a photo of ripe cherries",
             "a photo of a castle at night")  # fmt: skip
    study = own_prompts(tmp_path, *texts)
    app = RatingApp(study, TaskOptions(attention_share=0.5, per_prompt=4), names=("ann", "boss"))
    states = "select standing, open, count(*) from items where control = 'attention' group by 1, 2"
    assert app.table(states) == [("proposed", False, 8)]
    assert app.client().work(most=5) == 5
    assert checks_of(study) == []
    monkeypatch.setattr(serving, "_run", lambda *_: None)
    serving.serve(app.site, serving.Listening(port=free_port(), browser=False))
    assert "an admin must confirm the 8 proposed ones" in capsys.readouterr().err
    boss = app.client("boss")
    page = boss.http.get("/admin/checks").text
    assert "0 in use, 8 proposed, 0 struck" in page
    assert "Careless raters go unnoticed" in page
    for action, left in (("confirm", [("", True, 8)]), ("strike", [("struck", False, 8)])):
        [[items]] = app.table("select group_concat(id) from items where control = 'attention'")
        form = {"csrf": boss.token, "items": items, "action": action}
        response = boss.http.post("/admin/checks", data=form)
        assert response.status_code == 200
        assert app.table(states) == left
        if action == "confirm":
            [[share]] = app.table("select check_share from tasks")
            assert share == pytest.approx(8 / 24)
            app.client().work(most=8)
            assert checks_of(study) != []
    assert checks_of(study) == []


def test_votes_on_struck_checks_count_as_no_checks(tmp_path: Path):
    study = make_study(tmp_path, prompts=8, per_prompt=5)
    options = TaskOptions(attention_share=0.3, per_prompt=3)
    app = RatingApp(study, options, names=("ann", "boss", "eve"))
    app.client().work(lambda _: "good")
    voted = checks_of(study)
    assert len(voted) > 4
    assert all(vote.value == "good" != vote.shown["attention"] for vote in voted)
    boss, wrong = app.client("boss"), voted[0].shown["item"]

    def decide(action: str, by: Rater = boss) -> int:
        form = {"csrf": by.token, "items": wrong, "action": action}
        return by.http.post("/admin/checks", data=form).status_code

    def right() -> tuple[int, int]:
        with app.site.read() as db:
            task = db.execute(select(work_tables.tasks)).mappings().one()
            votes = numbers.live_votes(db, task)
        row = numbers.totals(votes, app.clock.now).raters["ann"]
        return row["attention_right"], row["attention_n"]

    labels = study.feedback.counts(simulated=False)
    assert decide("strike", app.client("eve")) == 403
    assert decide("strike") == 200
    assert right() == (0, len(voted) - 1)
    assert len(checks_of(study)) == len(voted) - 1
    assert study.feedback.counts(simulated=False) == labels
    exported = {found.vote.id: found.vote for found in study.feedback.stream(simulated=False)}
    assert exported[voted[0].id].shown["struck"], "it is exported, and counts as no check"
    assert not counted.is_for(exported[voted[0].id], "check")
    assert counted.is_for(exported[voted[1].id], "check")
    assert decide("confirm") == 200
    assert right() == (0, len(voted))
    for items, action, status in (("none", "strike", 404), (wrong, "burn", 422)):
        form = {"csrf": boss.token, "items": items, "action": action}
        assert boss.http.post("/admin/checks", data=form).status_code == status


@pytest.mark.parametrize(
    ("value", "split_tie", "wrong"),
    [
        ("tie", False, False), ("skip", False, False), ("both_bad", True, False),
        ("both_good", True, True),
    ],
)  # fmt: skip
def test_who_sees_no_difference_in_a_check_of_comparisons_fails_none(
    tmp_path: Path, value: str, split_tie: bool, wrong: bool
):
    study = make_study(tmp_path, prompts=8, per_prompt=4, models=(BASE, TUNED))
    options = TaskOptions(
        kind="compare", right=TUNED, set_size=2, attention_share=0.3, split_tie=split_tie
    )
    app = RatingApp(study, options, names=("ann", "boss"))
    app.client().work(lambda _: value)
    n = len(checks_of(study))
    assert n > 3
    with app.site.read() as db:
        task = db.execute(select(work_tables.tasks)).mappings().one()
        votes = numbers.live_votes(db, task)
    row = numbers.totals(votes, app.clock.now).raters["ann"]
    failed = n if wrong else 0
    assert (row["attention_right"], row["attention_n"]) == (0, failed)
    item_votes = [
        b for found in of_comparisons(study.feedback.comparisons()).values() for b in found
    ]
    assert [b.attention for b in item_votes if b.attention is not None] == [False] * failed
    assert len(item_votes) - failed == (0 if value == "skip" else 16), "a check is not a vote"
    boss = app.client("boss")
    votes_page = boss.http.get("/admin/raters/votes?name=ann").text
    assert ("check, wrong" in votes_page) is wrong
    assert ("check, does not count" in votes_page) is not wrong
    share = boss.http.get("/admin/checks").text
    assert ("<small>of 1</small>" in share) is wrong


def test_a_struck_check_that_somebody_holds_stays_struck(tmp_path: Path):
    study = make_study(tmp_path, prompts=8, per_prompt=3)
    app = RatingApp(study, TaskOptions(attention_share=0.5), names=("ann",))
    ann = app.client()
    held = ann.pages(10)
    with app.site.write() as db:
        [ids] = zip(*app.table("select id from items where control = 'attention'"), strict=True)
        assert checks.decide(db, app.site.task, ids, "struck") == len(ids) == 12
    for page in held:
        ann.vote_on(page)
    assert app.table("select distinct open from items where control = 'attention'") == [(False,)]
    assert checks_of(study) == []
    ann.work()
    assert ann.next()["done"]


def prompt(text: str, **slots: str) -> Prompt:
    return Prompt(text, text, "c", slots, "train")


@pytest.mark.parametrize(
    ("picture", "text", "surely"),
    [
        (prompt("a dog", object="dog"), prompt("two birds", object="bird"), True),
        (prompt("a dog", object="dog"), prompt("two dogs", object="dog"), False),
        (prompt("a red dog", object="dog", colour="red"),
         prompt("a red bird", object="bird", colour="red"), False),
        (prompt("a wolf", object="wolf"), prompt("a dog", object="dog"), False),
        (prompt("a sports car", object="sports car"), prompt("a car", object="car"), False),
        (prompt("a dog in the forest", object="dog"), prompt("a tree", object="tree"), False),
        (prompt("a tree", object="tree"), prompt("a dog", object="dog"), True),
        (prompt("an automobile"), prompt("red car"), False),
        (prompt("a castle at night"), prompt("ripe cherries"), False),
    ],
)  # fmt: skip
def test_which_prompts_are_surely_foreign(picture: Prompt, text: Prompt, surely: bool):
    assert foreign_prompts.is_surely_foreign(picture, text) is surely


def test_words_that_all_prompts_share_tell_none_from_another():
    things = ("a castle", "cherries", "an old castle", "sand", "rain", "a boat", "ice", "wine",
              "a clown", "books", "a violin")  # fmt: skip
    photos = [prompt(f"a photo of {thing}") for thing in things]
    fits = foreign_prompts.Fits(photos)
    assert fits.first_foreign(photos[0], photos[2:3], lambda p: p) is None
    assert fits.first_foreign(photos[0], photos[1:], lambda p: p) == (photos[1], "proposed")


def test_gold_files(tmp_path: Path):
    path = tmp_path / "gold.jsonl"
    path.write_text('{"sample_id": "a", "value": "good"}\n{"sample_id": "b", "value": "bad"}\n')
    assert read_gold(path) == {"a": "good", "b": "bad"}
    for line in ({"sample_id": "a", "value": "skip"}, {"value": "good"}):
        path.write_text(json.dumps(line) + "\n")
        with pytest.raises(UserError, match="line 1 is not a gold item"):
            read_gold(path)
    with pytest.raises(UserError, match="missing"):
        read_gold(tmp_path / "none")
    study = make_study(tmp_path)
    with pytest.raises(UserError, match="1 images that the task does not show"):
        draft(study, TaskOptions(gold={"b": "bad"}, attention_share=0.0))


def test_the_same_item_ids_for_all(tmp_path: Path):
    app = RatingApp(
        make_study(tmp_path), TaskOptions(overlap=2, attention_share=0.0), names=("a", "b")
    )
    ids = [{items_of(p)[0] for p in app.client(n).pages(10)} for n in "ab"]
    assert ids[0] & ids[1]
