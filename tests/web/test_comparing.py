"""Comparisons in the app: skipped with a reason, ties of two kinds, each question by itself."""

from dataclasses import replace
from pathlib import Path

import pytest
from browser import press_vote, ready, saved, shown
from page_actions import Start, browser_fixture, start_fixture
from rating_studies import BASE, TUNED, RatingApp, make_study

from sayso.web.work.tasks import TaskOptions

__all__ = ["browser_fixture", "start_fixture"]

OPTIONS = TaskOptions(kind="compare", right=TUNED, set_size=1, attention_share=0.0)


@pytest.mark.parametrize("split", [False, True])
def test_what_is_offered_and_stored(tmp_path: Path, split: bool):
    study = make_study(tmp_path, 4, 1, (BASE, TUNED))
    ann = RatingApp(study, replace(OPTIONS, split_tie=split)).client()
    ties = ["both_good", "both_bad"] if split else ["tie"]
    offered = ann.session()["task"]["values"]
    assert offered == ["left", "right", *ties, "skip"]
    for page, value in zip(ann.pages(len(offered)), offered, strict=True):
        done = ann.vote(page["item_id"], value, question=page["question"], reason="unsure")
        assert done.status_code == 200, done.text
    stored = study.feedback.comparisons()
    assert [vote.value for vote in stored] == offered
    assert stored[-1].shown["reason"] == "unsure"


def test_a_skipped_comparison_is_not_asked_again_and_fills_its_place(tmp_path: Path):
    ann = RatingApp(make_study(tmp_path, 2, 1, (BASE, TUNED)), OPTIONS).client()
    assert ann.work(lambda _: "skip") == 4
    assert ann.next()["done"]


def test_split_ties_make_a_task_of_their_own():
    assert replace(OPTIONS, split_tie=True).identity != OPTIONS.identity


def test_the_page_skips_a_comparison_with_a_reason(start: Start) -> None:
    served, _, page = start(kind="compare", right=TUNED, set_size=1)
    assert page.locator(".choice").evaluate_all("all => all.map(b => b.dataset.value)") == [
        "left", "tie", "right", "skip",
    ]  # fmt: skip
    press_vote(page, "s")
    press_vote(page, "2")
    before = shown(page)
    page.click('[aria-label="Skip: prompt unclear"]')
    ready(page, before)
    saved(page)
    assert [(row["value"], row["shown"]["reason"]) for row in served.rows()] == [
        ("skip", ""), ("skip", "broken"), ("skip", "unclear"),
    ]  # fmt: skip


def test_the_page_offers_two_kinds_of_tie(start: Start) -> None:
    served, _, page = start(kind="compare", right=TUNED, set_size=1, split_tie=True)
    assert page.locator(".choice .label").all_inner_texts() == [
        "Left", "Both good", "Both bad", "Right", "Skip",
    ]  # fmt: skip
    page.keyboard.press("t")  # there is no plain tie
    page.wait_for_timeout(200)
    press_vote(page, "y")
    press_vote(page, "b")
    saved(page)
    assert [row["value"] for row in served.rows()] == ["both_good", "both_bad"]
    assert page.locator("#strip .value").count() == 2
