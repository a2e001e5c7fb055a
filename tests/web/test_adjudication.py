"""Reviewers decide what raters disagree about: blind, beside the votes, and as nobody's rating."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rating_studies import BASE, TUNED, Rater, RatingApp, items_of, make_study

from sayso.web.work.opening import open_task
from sayso.web.work.tasks import TaskOptions

PEOPLE = ("ann", "bob", "eve", "kim", "boss")


@pytest.fixture
def app(tmp_path: Path) -> RatingApp:
    """Ann finds every image good and bob every image bad."""
    options = TaskOptions(overlap=2, attention_share=0.0)
    app = RatingApp(make_study(tmp_path), options, names=PEOPLE)
    app.client().work()
    app.client("bob").work(lambda _: "bad")
    return app


class Reviewer:
    """The page of decisions of one reviewer."""

    def __init__(self, app: RatingApp, name: str = "eve", task: str = "") -> None:
        self.rater = Rater(app, name)
        self.base = f"/api/decisions/{task or app.site.task}"

    def session(self) -> Any:
        return self.rater.http.get(f"{self.base}/session")

    def next(self, n: int = 10, have: tuple[str, ...] = ()) -> dict[str, Any]:
        response = self.rater.post(f"{self.base}/next", {"have": have, "n": n})
        assert response.status_code == 200, response.text
        return response.json()

    def decide(self, item: str, value: str = "bad", **more: object) -> Any:
        return self.rater.post(f"{self.base}/votes", self.rater.body(item, value, **more))


def decided(app: RatingApp) -> dict[str, str]:
    found = [r for r in app.study.feedback.ratings() if r.shown.get("adjudication")]
    return {r.rater: r.value for r in found}


def counters(app: RatingApp) -> tuple[list[int], list[int]]:
    items = app.table("select votes from items order by task, id")
    tasks = app.table("select votes from tasks order by id")
    return [n for (n,) in items], [n for (n,) in tasks]


def another_task(app: RatingApp, **changes: object) -> str:
    options = replace(app.options, seed=9, **changes)
    return open_task(app.site.database, app.study, options)


def test_a_decision_is_the_label_and_nobodys_rating(app: RatingApp):
    before = counters(app)
    eve = Reviewer(app)
    progress = eve.next()["progress"]
    assert progress == {"mine": 0, "mine_total": 12, "project": 0, "project_total": 12}
    item = items_of(eve.next(1)["pages"][0])[0]
    response = eve.decide(item, "bad")
    assert response.status_code == 200
    assert response.json()["progress"]["mine"] == response.json()["progress"]["project"] == 1
    [(sample,)] = app.table("select sample_id from ratings where decision")
    label = app.study.feedback.counts(simulated=False)[sample]
    assert (label.good, label.bad, label.decided, label.value) == (1, 1, "bad", "bad")
    assert counters(app) == before, "no place is filled in the task"
    app.site.task = another_task(app, overlap=3)
    assert (
        app.table(f"select votes, open from items where task = '{app.site.task}'") == [(2, 1)] * 12
    ), "nor in a task that is opened later"
    places = app.table(
        "select state from assignments join raters on raters.id = rater where name = 'eve'"
    )
    assert places == [("refused",)] * 2
    boss = app.client("boss")
    assert "<b>24</b> of 24" in boss.http.get("/admin?task=" + before_task(app)).text
    assert Rater(app, "eve").session()["progress"]["mine"] == 0


def before_task(app: RatingApp) -> str:
    [(task,)] = app.table(f"select id from tasks where id <> '{app.site.task}'")
    return task


def test_a_decision_is_sent_again_changed_and_taken_back(app: RatingApp):
    eve = Reviewer(app)
    item = items_of(eve.next(1)["pages"][0])[0]
    body = eve.rater.body(item, "bad", id="first")
    for _ in range(2):
        assert eve.rater.post(f"{eve.base}/votes", body).status_code == 200
    assert eve.decide(item, "good", id="second", supersedes="first").status_code == 200
    assert decided(app) == {"eve": "good"}
    assert eve.decide(item, "retracted", id="third", supersedes="second").status_code == 200
    assert decided(app) == {}
    assert len(eve.next(10)["pages"]) == 10
    assert eve.decide(item, "skip").status_code == 200
    assert item not in [page["page_id"] for page in eve.next(10)["pages"]], "eve passes"
    assert item in [page["page_id"] for page in Reviewer(app, "boss").next(10)["pages"]]
    assert eve.decide(item, "left").status_code == 422
    assert eve.decide("x", "good").status_code == 404


def test_who_has_rated_an_item_anywhere_is_not_asked_to_decide_it(app: RatingApp):
    """Also in another task than the one whose disagreement it is; and it is no bare refusal."""
    old = app.site.task
    app.site.task = another_task(app, overlap=5)
    boss, waiting = app.client("boss"), Reviewer(app, "boss", old)
    assert waiting.next()["progress"]["mine_total"] == 12
    item = items_of(boss.pages()[0])[0]
    boss.vote(item)
    left = waiting.next()["progress"]
    assert (left["mine_total"], left["project_total"]) == (11, 12)
    listed = waiting.rater.http.get(f"/admin/disagreements?task={old}").text
    assert "1 more waits for another reviewer" in listed
    [(judged,)] = app.table(
        f"select id from items where task = '{old}' and content = "
        f"(select content from items where id = '{item}')"
    )
    assert judged not in [page["page_id"] for page in waiting.next()["pages"]]
    refused = waiting.decide(judged)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "rated")
    assert "another reviewer decides" in refused.json()["error"]["message"]
    assert Reviewer(app, "eve", old).decide(judged).status_code == 200


def test_another_reviewer_was_faster(app: RatingApp):
    eve, boss = Reviewer(app), Reviewer(app, "boss")
    item = items_of(eve.next(1)["pages"][0])[0]
    assert boss.decide(item, "good").status_code == 200
    refused = eve.decide(item)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "decided")
    assert "Another reviewer has decided this in the meantime" in refused.json()["error"]["message"]
    assert item not in [page["page_id"] for page in eve.next(10)["pages"]]
    assert decided(app) == {"boss": "good"}


def test_who_decides_is_not_asked_as_a_rater(app: RatingApp):
    eve = Reviewer(app)
    later = another_task(app, overlap=5)
    items = [items_of(page)[0] for page in eve.next(4)["pages"]]
    for item in items:
        assert eve.decide(item).is_success
    app.site.task = later
    assert Rater(app, "eve").work() == 8
    app.site.task = open_task(
        app.site.database, app.study, replace(app.options, seed=11, overlap=5)
    )
    assert Rater(app, "eve").work() == 0, "eight of hers count here, and four are decided"
    assert len(decided(app)) == 1
    assert app.table("select count(*) from ratings where rater = 'eve' and not decision") == [(8,)]


def test_nobody_else_may_decide(app: RatingApp):
    item = items_of(Reviewer(app).next(1)["pages"][0])[0]
    ann = Reviewer(app, "ann")
    assert ann.session().status_code == ann.decide(item).status_code == 403
    assert ann.rater.http.get("/admin/decide").status_code == 403
    eve = Reviewer(app)
    eve.rater.token = "x"
    assert eve.decide(item).json()["error"]["code"] == "csrf"
    assert Reviewer(app, "eve", "nope").session().status_code == 404


def test_the_page_is_blind_before_and_tells_the_votes_after(app: RatingApp):
    eve = Reviewer(app)
    html = eve.rater.http.get("/admin/decide").text
    session, pages = eve.session(), eve.next()
    told = html + session.text + str(pages)
    for secret in (BASE, "ann", "bob", "Rater 1"):
        assert secret not in told.replace("database", "")
    listed = eve.rater.http.get("/admin/disagreements").text
    assert "12 items for you to decide" in listed
    assert "Rater 1" not in listed
    item = items_of(pages["pages"][0])[0]
    eve.decide(item, "bad")
    listed = eve.rater.http.get("/admin/disagreements").text
    assert ("Rater 1" in listed, "Rater 2" in listed, "Decided by eve" in listed) == (True,) * 3


def test_comparisons_are_decided_without_knowing_the_models(tmp_path: Path):
    study = make_study(tmp_path, prompts=6, per_prompt=1, models=(BASE, TUNED))
    options = TaskOptions(kind="compare", right=TUNED, set_size=1, overlap=2, attention_share=0.0)
    app = RatingApp(study, options, names=PEOPLE)
    for name in ("ann", "bob"):
        rater = app.client(name)
        while pages := rater.pages():
            left = rater.http.get(pages[0]["left"][0]["url"]).content
            right = rater.http.get(pages[0]["right"][0]["url"]).content
            mine = (left < right) == (name == "ann")
            rater.vote_on(pages[0], lambda _, value="left" if mine else "right": value)
    eve = Reviewer(app)
    pages, have = [], ()
    while found := eve.next(10, have)["pages"]:
        pages += found
        have = tuple(page["page_id"] for page in pages)
    assert len(pages) == 12
    lefts = {eve.rater.http.get(page["left"][0]["url"]).content for page in pages}
    addresses = {(page["left"][0]["url"][-2:], page["right"][0]["url"][-2:]) for page in pages}
    assert addresses == {("/0", "/1")}, "an address tells which set it is"
    samples = {s.id: s for s in study.samples()}
    for page in pages:
        assert eve.decide(page["item_id"], "left", question=page["question"]).is_success
    found = [c for c in study.feedback.comparisons() if c.shown.get("adjudication")]
    chosen = [c.left_ids for c in found]
    assert {samples[ids[0]].model for ids in chosen} == {BASE, TUNED}
    assert len(lefts) == len({ids[0] for ids in chosen})
    shown = eve.rater.http.get("/admin/disagreements").text
    assert shown.count("Decided by eve") == 12
    assert TUNED not in shown.replace(app.options.name, "")
