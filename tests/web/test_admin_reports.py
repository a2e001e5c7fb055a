"""The admin pages on agreement and exports say what the command line does."""

import html
import itertools
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from rating_studies import BASE, TUNED, RatingApp, make_study

from sayso.base.plugins import plugin_names
from sayso.cli.commands import run
from sayso.formats.manifest import read_manifest
from sayso.stages.agreement import AgreementConfig
from sayso.stages.agreement import agreement as run_agreement
from sayso.web import slow_counts
from sayso.web.admin import agreement as admin_agreement
from sayso.web.admin.export import FORMATS
from sayso.web.slow_counts import SlowCounts
from sayso.web.work.tasks import TaskOptions

NAMES = ("ann", "bobadilla", "simulated-cy", "simulated-di", "eve", "boss")


@pytest.fixture
def app(tmp_path: Path) -> RatingApp:
    options = TaskOptions(overlap=4, attention_share=0.5, per_prompt=2)
    return RatingApp(make_study(tmp_path, 4, per_prompt=3), options, names=NAMES)


@pytest.fixture
def worked(app: RatingApp) -> RatingApp:
    """Two people who disagree on some items, and two programs that agree on all."""
    for name in NAMES[:4]:
        turn = iter(range(1000))
        wild = name == "bobadilla"
        app.client(name).work(lambda _, t=turn, w=wild: "bad" if w and next(t) % 3 else "good")
    return app


def shown(number: float | None) -> str:
    return "–" if number is None else f"{number:.2f}".replace("-", "−")


def text_of(page: Any) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", page.text.split("<main", 1)[1]).split())


# agreement


def test_agreement_says_what_the_command_says(worked: RatingApp):
    page = worked.client("eve").http.get("/admin/agreement")
    people, simulated = page.text.split("Simulated raters</h2>")
    for who, part in (("people", people), ("simulated", simulated)):
        config = AgreementConfig(raters=who, resamples=0, judge="none")  # type: ignore[arg-type]
        [said] = run_agreement(worked.study, config).result["sections"]
        for row in said["groups"].values():
            for number in (row["alpha"], row["kappa"]):
                value = number["value"]
                assert shown(value) in part
        for row in said["raters"]:
            assert row["rater"] in part
            assert shown(row["kappa"]) in part
            assert {f"</svg>{rule}</span>" in part for rule in row["careless"]} <= {True}
    assert "ann" not in simulated
    assert "simulated-cy" not in people


def test_sections_are_those_of_the_command(worked: RatingApp):
    for simulated, who in ((False, "people"), (True, "simulated")):
        config = AgreementConfig(raters=who, resamples=0, judge="none")  # type: ignore[arg-type]
        said = run_agreement(worked.study, config).result["sections"]
        assert admin_agreement.sections(worked.study, simulated) == said


def test_rules_that_raters_break_are_explained(worked: RatingApp):
    page = text_of(worked.client("eve").http.get("/admin/agreement"))
    assert "fewer than 2 of 3 attention checks right" in page


def test_agreement_before_there_is_any(app: RatingApp):
    eve = app.client("eve")
    assert "No votes yet" in text_of(eve.http.get("/admin/agreement"))
    app.client().work()
    page = text_of(eve.http.get("/admin/agreement"))
    assert "Nothing has two raters yet" in page
    assert "No votes yet" not in page


def test_agreement_of_comparisons_names_the_models(tmp_path: Path):
    study = make_study(tmp_path, prompts=4, per_prompt=1, models=(BASE, TUNED))
    options = TaskOptions(kind="compare", right=TUNED, set_size=1, overlap=2, attention_share=0.0)
    app = RatingApp(study, options, names=("ann", "bob", "eve"))
    for name in ("ann", "bob"):
        app.client(name).work(lambda _: "left")
    page = text_of(app.client("eve").http.get("/admin/agreement"))
    assert f"{TUNED} against {BASE}, fidelity" in page
    assert f"{TUNED} against {BASE}, alignment" in page


def test_a_slow_count_stands_for_a_minute_and_a_fast_one_for_no_time(
    monkeypatch: pytest.MonkeyPatch,
):
    counts, now, n = SlowCounts(), [1000.0], itertools.count()
    monkeypatch.setattr(slow_counts.time, "monotonic", lambda: now[0])

    def take(seconds: float) -> int:
        now[0] += seconds
        return next(n)

    fast = lambda: take(0.1)  # noqa: E731
    assert [counts.get("a", fast).value for _ in range(2)] == [0, 1]
    slow = counts.get("a", lambda: take(0.3))
    now[0] += 59.9
    assert counts.get("a", fast) is slow
    assert counts.get("b", fast).value == 3, "each kind is counted by itself"
    now[0] += 0.2
    assert counts.get("a", fast).value == 4
    assert (slow.is_slow, counts.get("a", fast).is_slow) == (True, False)


# exports


def test_the_page_shows_a_command_for_every_layout(worked: RatingApp):
    boss = worked.client("boss")
    page = boss.http.get("/admin/export").text
    commands = [html.unescape(c) for c in re.findall(r'value="(sayso export [^"]*)"', page)]
    assert sorted(FORMATS) == plugin_names("export")
    assert [shlex.split(c)[-1] for c in commands] == list(FORMATS)
    stored = worked.table("select count(*) from ratings where not simulated")[0][0]
    assert f"{stored} votes by people" in text_of(boss.http.get("/admin/export"))
    folder = run(shlex.split(commands[0])[1:])
    assert read_manifest(folder)["counts"]["votes"] == stored


def test_only_admins_see_the_exports(app: RatingApp):
    assert app.client("eve").http.get("/admin/export").status_code == 403
