"""The admin pages say what is in the store, and their forms do what they say."""

import re
from pathlib import Path
from typing import Any

import pytest
from rating_studies import BASE, Rater, RatingApp, make_study

from sayso.web import slow_counts
from sayso.web.admin import numbers
from sayso.web.work.tasks import TaskOptions


def submit(rater: Rater, path: str, **fields: object) -> Any:
    data = {"csrf": rater.token, **{k: str(v) for k, v in fields.items()}}
    return rater.http.post(path, data=data)


@pytest.fixture
def app(tmp_path: Path) -> RatingApp:
    study = make_study(tmp_path, per_prompt=5)
    gold: Any = {s.id: "good" for s in study.samples(BASE)[:2]}
    options = TaskOptions(
        overlap=2, gold=gold, gold_share=0.2, attention_share=0.2, per_prompt=3
    )  # fmt: skip
    return RatingApp(study, options, names=("ann", "bob", "eve", "boss"))


def rows(app: RatingApp) -> dict[str, dict[str, Any]]:
    with app.site.read() as db:
        task = numbers.tasks(db)[0]
        votes = numbers.live_votes(db, task)
        so_far = numbers.totals(votes, app.clock.now)
        return {row["name"]: row for row in numbers.raters(db, so_far)}


def test_numbers_of_raters_and_progress(app: RatingApp):
    app.client().work()
    app.client("bob").work(lambda _: "skip", most=3)
    ann, bob = rows(app)["ann"], rows(app)["bob"]
    assert (
        ann["votes"]
        == ann["today"]
        == app.table("select count(*) from ratings where rater = 'ann'")[0][0]
    )
    assert (ann["median_s"], ann["skip_share"], bob["skip_share"]) == (1.5, 0.0, 1.0)
    assert ann["gold_right"] == ann["gold_n"] > 0
    assert ann["attention_right"] == 0 < ann["attention_n"]
    assert rows(app)["eve"]["votes"] == 0
    with app.site.read() as db:
        task = numbers.tasks(db)[0]
        votes = numbers.live_votes(db, task)
        so_far = numbers.totals(votes, app.clock.now)
        progress = numbers.progress(db, task, so_far, app.clock.now)
    assert progress["items"] == 10
    assert progress["votes_needed"] == 20
    assert progress["votes"] == 10 + sum(not v["shown"].get("gold") and not v["attention"]
                                         and v["rater"] == "bob" for v in votes)  # fmt: skip
    assert progress["raters_active"] == 2
    assert progress["votes_last_hour"] == len(votes)
    assert sum(hour["votes"] for hour in numbers.hours(votes, app.clock.now)) == len(votes)
    shares = numbers.rates(votes)
    assert sum(rate["share"] for rate in shares) == pytest.approx(1)


@pytest.mark.parametrize(
    "path",
    ["", "/raters", "/checks", "/agreement", "/disagreements", "/guideline", "/export", "/audit"],
)
def test_every_page_renders_empty_and_full(app: RatingApp, path: str):
    boss = app.client("boss")
    for work in (0, 20):
        app.client().work(most=work)
        app.client("bob").work(lambda _: "bad", most=work)
        page = boss.http.get(f"/admin{path}")
        assert page.status_code == 200
        assert "meadow" in page.text


def test_numbers_that_take_long_are_not_counted_for_each_look(
    app: RatingApp, monkeypatch: pytest.MonkeyPatch
):
    """What an admin changes shows at once all the same."""
    counted: list[int] = []
    count = numbers.totals
    monkeypatch.setattr(
        numbers, "totals", lambda votes, now: counted.append(len(votes)) or count(votes, now)
    )
    monkeypatch.setattr(slow_counts, "SLOW_S", 60.0)
    boss = app.client("boss")
    for page in ("/admin", "/admin/raters", "/admin"):
        app.client().work(most=1)
        assert "Counted at" not in boss.http.get(page).text
    assert counted == [1, 2, 3]
    monkeypatch.setattr(slow_counts, "SLOW_S", 0.0)
    for _ in range(3):
        app.client().work(most=1)
        assert "Counted at" in boss.http.get("/admin").text
    assert counted == [1, 2, 3, 4]
    page = submit(boss, "/admin/raters", action="add", name="zoe", role="rater").text
    assert "zoe" in page
    assert "Counted at" in page


def test_careless_raters_are_flagged():
    assert numbers._flag((0, 2), (0, 2)) == ""
    assert numbers._flag((2, 5), (9, 10)) == "", "bad luck is no carelessness"
    assert "3 of 10 attention" in numbers._flag((5, 5), (3, 10))
    assert "4 of 10 gold" in numbers._flag((4, 10), (9, 10))
    assert numbers._flag((5, 5), (9, 10)) == ""


def test_adding_raters_and_links(app: RatingApp):
    boss = app.client("boss")
    page = submit(boss, "/admin/raters", action="add", name="zoe", role="reviewer").text
    link = re.search(r"http://127\.0\.0\.1:8321/in/([\w-]+)", page)
    assert link
    app.links["zoe"] = link[1]
    assert app.client("zoe").session()["rater"] == {"name": "zoe", "role": "reviewer"}
    again = submit(boss, "/admin/raters", action="add", name="zoe", role="rater")
    assert (again.status_code, "already" in again.text) == (422, True)
    submit(boss, "/admin/raters", action="link", name="zoe")
    assert app.client("zoe").session()["error"]["code"] == "not_signed_in"
    submit(boss, "/admin/raters", action="disable", name="ann")
    assert app.client().session()["error"]["code"] == "not_signed_in"
    submit(boss, "/admin/raters", action="enable", name="ann")
    assert app.client().session()["rater"]["name"] == "ann"


def test_a_list_of_names_adds_all_and_says_what_was_refused(app: RatingApp):
    boss = app.client("boss")
    names = "lou\r\n  mia \r\n\r\nann\r\nsimulated-9\r\nlou"
    page = submit(boss, "/admin/raters", action="add", name=names, role="rater",
                  address="https://rate.example.org/x/")  # fmt: skip
    assert page.status_code == 200
    links = re.findall(r"https://rate\.example\.org/x/in/[\w-]{32}", page.text)
    assert len(set(links)) == 3
    assert "rater &#39;ann&#39; already exists" in page.text
    assert "Study “meadow”" in page.text
    for name in ("lou", "mia", "simulated-9"):
        assert f'aria-label="Sign-in link of {name}"' in page.text
        assert f'aria-label="QR code of the sign-in link of {name}"' in page.text
    assert page.text.count('class="segno"') == 3
    assert 'data-confirm="Make a new sign-in link for lou? The old one stops working."' in page.text
    for odd in ("rate.example.org", "javascript:alert(1)", "https://", "https://a?b"):
        refused = submit(boss, "/admin/raters", action="link", name="lou", address=odd)
        assert (refused.status_code, "not a server address" in refused.text) == (422, True)
    assert "name=\"address\" required value=\"http://127.0.0.1:8321\"" in boss.http.get(
        "/admin/raters").text  # fmt: skip


def test_an_admin_excludes_a_rater_and_looks_at_the_votes(app: RatingApp):
    app.client().work(lambda _: "bad")
    boss = app.client("boss")
    votes_page = boss.http.get("/admin/raters/votes?name=ann").text
    assert "attention check, right" in votes_page
    assert "gold check, wrong" in votes_page
    assert votes_page.count('class="case"') <= 24
    page = submit(boss, "/admin/raters", action="exclude", name="ann").text
    assert "excluded" in page
    assert app.table("select votes from tasks") == [(0,)]
    assert "they are kept, but do not count" in boss.http.get(
        "/admin/raters/votes?name=ann").text  # fmt: skip
    submit(boss, "/admin/raters", action="include", name="ann")
    assert app.table("select votes from tasks") == [(10,)]
    assert boss.http.get("/admin/raters/votes?name=nobody").status_code == 404
    assert app.client("eve").http.get("/admin/raters/votes?name=ann").status_code == 403


def test_the_audit_tells_who_changed_what(app: RatingApp):
    boss = app.client("boss")
    submit(boss, "/admin/task", action="pause")
    submit(boss, "/admin/raters", action="add", name="zoe", role="reviewer")
    submit(boss, "/admin/raters", action="link", name="zoe")
    submit(boss, "/admin/raters", action="disable", name="zoe")
    submit(boss, "/admin/raters", action="enable", name="nobody")
    submit(boss, "/admin/raters", action="exclude", name="ann")
    submit(boss, "/admin/guideline", text="First.", base_version=0)
    submit(boss, "/admin/guideline", text="First.", base_version=1)
    found = app.table("select author, action, about from audit order by seq")
    assert found == [
        ("boss", "pause", app.options.name), ("boss", "add", "zoe, reviewer"),
        ("boss", "link", "zoe"), ("boss", "disable", "zoe"), ("boss", "exclude", "ann"),
        ("boss", "guideline", "as version 1"),
    ]  # fmt: skip
    page = boss.http.get("/admin/audit").text
    assert "made a new sign-in link for zoe" in page
    assert page.index("excluded the votes of ann") < page.index("paused the task")
    assert app.client("eve").http.get("/admin/audit").status_code == 403


def test_guideline_versions(app: RatingApp):
    boss = app.client("boss")
    submit(boss, "/admin/guideline", text="First.", base_version=0)
    assert "First." in boss.http.get("/admin/guideline").text
    late = submit(boss, "/admin/guideline", text="Mine.", base_version=0)
    assert late.status_code == 409
    assert "Mine." in late.text
    submit(boss, "/admin/guideline", text="Second.", base_version=1)
    assert app.table("select version, text, author from guidelines order by version") == [
        (1, "First.", "boss"), (2, "Second.", "boss"),
    ]  # fmt: skip
