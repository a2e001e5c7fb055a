"""Raters: the table, the rules on carelessness, the stage, and what the report says of them."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import voted
from scipy.stats import binom
from voted import votes_of

from sayso.base import files
from sayso.base.bootstrap import Interval
from sayso.base.errors import UserError
from sayso.base.types import Rating
from sayso.cli import commands as cli
from sayso.judges import Verdict
from sayso.reporting import charts, words
from sayso.reporting.report_data import ReportData
from sayso.reporting.summary import summarise
from sayso.stages.agreement import AgreementConfig, agreement, plan
from sayso.stages.report import report
from sayso.study.study import Study
from sayso.votes.agreement import ItemVote, collect
from sayso.votes.item_votes import RATING_VALUES
from sayso.votes.rater_report import label_gain, label_quality, plain
from sayso.votes.rater_table import (
    RULES,
    Checks,
    RaterRow,
    careless,
    fails,
    in_order,
    rater_table,
)

ROW = RaterRow(
    "r", 50, 2.0, {}, 40, 0.9, 0.8, Checks(0, 0), Checks(0, 0), {}, Interval(0.9, 0.8, 1.0)
)
SKILLS = [0.9, 0.85, 0.88, 0.9]


def table_of(item_votes: list[ItemVote]) -> dict[str, RaterRow]:
    votes = collect((b for b in item_votes if b.attention is None), RATING_VALUES)
    rows = rater_table(item_votes, votes, votes.without("skip"), None)
    return {row.rater: row for row in rows}


# the table


def test_table_by_hand() -> None:
    found = table_of(
        [*votes_of("a", "ggbs"), *votes_of("b", "gbb-", seconds=1.5), *votes_of("c", "gg--")]
    )
    a, b = found["a"], found["b"]
    assert (a.votes, a.shares) == (4, {"good": 0.5, "bad": 0.25, "skip": 0.25})
    # a against b and c: alike 2 of 2, 1 of 2, 1 of 1
    assert (a.shared, a.agreement) == (3, pytest.approx(2.5 / 3))
    # a says good on 2/3; the others on (1 + 1/2 + 0) / 3
    chance = 2 / 3 * 0.5 + 1 / 3 * 0.5
    assert a.kappa == pytest.approx((2.5 / 3 - chance) / (1 - chance))
    assert (b.seconds, a.seconds) == (1.5, None)
    assert plain(a)["skill"] == {"value": None, "low": None, "high": None}


def test_who_votes_always_the_same_agrees_by_chance_alone() -> None:
    found = table_of(
        [*votes_of("a", "gggggggg"), *votes_of("b", "ggggggbb"), *votes_of("c", "ggggggbb")]
    )
    assert found["a"].agreement == pytest.approx(0.75)
    assert found["a"].kappa == pytest.approx(0)
    assert found["b"].kappa > 0.3


def test_checks_are_counted_and_attention_counts_for_nothing_else() -> None:
    gold = [ItemVote(f"g{k}", "p", "a", "good", gold=k > 0) for k in range(4)]
    attention = [ItemVote(f"t{k}", "p", "a", "bad", attention=k == 0) for k in range(5)]
    row = table_of([*votes_of("a", "gg"), *gold, *attention])["a"]
    assert row.gold == Checks(4, 3)
    assert row.attention == Checks(5, 1)
    assert row.attention.share == pytest.approx(1 / 5)
    assert row.votes == 6
    assert "attention" in row.careless
    assert plain(row)["gold"] == {"n": 4, "right": 3, "share": 0.75}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, ()),
        ({"skill": Interval(0.3, 0.2, 0.4)}, ("guesses",)),
        ({"skill": Interval(0.3, 0.1, 0.5)}, ()),
        ({"skill": Interval(0.0, -0.1, 0.1), "shared": 0}, ()),
        ({"attention": Checks(3, 0)}, ("attention",)),
        ({"attention": Checks(3, 1)}, ()),
        ({"attention": Checks(2, 0)}, ()),
        ({"attention": Checks(12, 6)}, ("attention",)),
        ({"attention": Checks(12, 7)}, ()),
        ({"attention": Checks(600, 401)}, ()),
        ({"attention": Checks(600, 399)}, ("attention",)),
        ({"gold": Checks(9, 4)}, ("gold",)),
        ({"gold": Checks(9, 5)}, ()),
        ({"seconds": 0.3}, ("hurries",)),
        ({"seconds": 0.3, "votes": 19}, ()),
    ],
)
def test_rules_of_carelessness(change: dict[str, object], expected: tuple[str, ...]) -> None:
    assert careless(replace(ROW, **change), SKILLS) == expected  # type: ignore[arg-type]
    assert set(expected) <= set(RULES)


def test_two_raters_have_no_usual_skill() -> None:
    guessing = replace(ROW, skill=Interval(0.0, -0.1, 0.1))
    assert careless(guessing, [0.0, 0.9]) == ()
    assert careless(guessing, SKILLS) == ("guesses",)


def test_label_quality_by_hand() -> None:
    labels = {"a": 1.0, "b": 0.5, "c": 0.2, "x": 0.0}
    found = label_quality(labels, {"a": True, "b": False, "c": True, "y": True})
    assert found["n"] == 3
    assert found["accuracy"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert found["squared_error"] == pytest.approx((0 + 0.25 + 0.64) / 3)
    assert label_quality(labels, {}) == {"n": 0, "accuracy": None, "squared_error": None}


def test_label_gain_by_hand() -> None:
    """Two prompts: on one the labels are nearer by 0.75, on the other farther by 0.25."""
    truth = {"a": True, "b": True, "c": False, "x": True}
    labels, others = {"a": 0.5, "b": 0.5, "c": 0.5}, {"a": 0.0, "b": 0.0, "c": 0.0, "x": 1.0}
    prompt_of = {"a": "p", "b": "p", "c": "q"}
    gain = label_gain(labels, others, truth, prompt_of, resamples=400, seed=0)
    assert gain.value == pytest.approx((2 * -0.75 + 0.25) / 3)
    assert (gain.low, gain.high) == (pytest.approx(-0.75), pytest.approx(0.25))
    assert math.isnan(label_gain({}, others, truth, prompt_of).value)
    assert math.isnan(label_gain(labels, others, truth, prompt_of, resamples=0).low)


def test_names_with_numbers_are_in_order() -> None:
    names = ["simulated-10", "zoe", "simulated-2", "ann", "", "7up", "simulated-2b", "x²"]
    assert sorted(names, key=in_order) == [
        "", "ann", "simulated-2", "simulated-2b", "simulated-10", "x²", "zoe", "7up",
    ]  # fmt: skip


def test_few_honest_raters_fail_their_checks_by_bad_luck() -> None:
    """Who is right on nine of ten; the share alone would speak against one in twelve of them."""
    for n in (3, 4, 5, 8, 12, 42, 500):
        failing = [right for right in range(n + 1) if fails(Checks(n, right))]
        chance = binom.cdf(max(failing), n, 0.9)
        assert chance <= 0.001 + 1e-9
        assert max(failing) < n * 2 / 3
    assert not fails(Checks(0, 0))


# the stage


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Truth by 20 simulated raters, one careless, with an agreement run and an evaluation."""
    study = voted.make_study(tmp_path_factory.mktemp("whole") / "study", prompts=40)
    voted.add_ratings(study)
    votes = voted.comparisons(study)
    study.feedback.add_comparisons(votes)
    agreement(study, AgreementConfig(resamples=60))
    _evaluated(study)
    return study


def _evaluated(study: Study) -> None:
    """What `evaluate` writes of the comparisons."""
    from sayso.votes.balance import balance
    from sayso.votes.side_by_side import side_by_side
    from sayso.votes.standings import standings

    votes, prompts = study.feedback.comparisons(), {p.id for p in study.prompts("seen")}
    study.run("align", "rwr", {}).finish({})
    roles = dict(zip(("base", "best_of_n", "aligned"), voted.MODELS, strict=True))
    run = study.run("evaluate", "rwr", {"model": "runs/align-rwr"})
    nothing = {"skipped": "nobody scored"}
    run.finish({
        "models": roles,
        "judge": "ratings of people",
        "alignment": {role: {"skipped": "no verdicts"} for role in roles},
        "paired": {"skipped": "no verdicts"},
        "scores": {r: {"reward": nothing, "clip_score": nothing, "n": 0} for r in roles},
        "optimisation": {"skipped": "no reward"},
        "reward_quality": {"skipped": "no reward"},
        "fidelity": {"skipped": "no images"},
        "comparisons": side_by_side(votes, voted.MODELS, prompts),
        "bradley_terry": standings(votes),
        "balance": balance(votes),
    })  # fmt: skip


@pytest.fixture
def small(tmp_path: Path) -> Study:
    study = voted.make_study(tmp_path / "small", prompts=8, per_prompt=4)
    voted.add_ratings(study, raters=6, overlap=3)
    return study


QUICK = AgreementConfig(resamples=0)


def test_result_finds_the_careless_rater(whole: Study) -> None:
    (path,) = whole.path.glob("runs/agreement-simulated-*")
    result = json.loads((path / "result.json").read_text())
    assert result["raters"] == "simulated"
    assert result["careless"] == [voted.CARELESS]
    first, *battles = result["sections"]
    assert (first["task"], first["items"], len(first["raters"])) == ("rate", 320, 20)
    assert list(first["groups"]) == ["all", "count", "colour"]
    alpha = first["groups"]["all"]["alpha"]
    assert 0.5 < alpha["low"] < alpha["value"] < alpha["high"] < 0.95
    assert sum(r["value"] for r in first["groups"]["all"]["rates"].values()) == pytest.approx(1)
    base, best, tuned = voted.MODELS
    assert [b["models"] for b in battles] == [[tuned, base], [tuned, best], [best, base]]
    assert all(len(b["raters"]) == 9 for b in battles)
    assert result["labels"]["images"] == first["groups"]["all"]["shared_items"]
    assert result["labels"]["truth"] == {}


def test_the_same_votes_are_counted_once_and_new_votes_anew(small: Study) -> None:
    run = agreement(small, QUICK)
    before = (run.path / "result.json").stat().st_mtime_ns
    assert agreement(small, QUICK).path == run.path
    assert (run.path / "result.json").stat().st_mtime_ns == before
    named = agreement(small, replace(QUICK, name="mine"))
    assert named.name == "runs/agreement-mine"
    extra = small.samples("base")[0].id
    vote = Rating("n", extra, "simulated-99", "alignment", "good", True, 0.0, 1.0)
    small.feedback.add_ratings([vote])
    assert agreement(small, QUICK).path != run.path
    with pytest.raises(UserError, match="was made from other votes"):
        agreement(small, replace(QUICK, name="mine"))
    with pytest.raises(UserError, match="resamples 0 → 5"):
        agreement(small, replace(QUICK, name="mine", resamples=5))


def test_people_and_programs_are_never_mixed(small: Study) -> None:
    voted.add_ratings(small, raters=4, overlap=2, simulated=False, seed=5)
    result = agreement(small, QUICK).result
    assert result["raters"] == "people"
    assert all(r["rater"].startswith("person") for r in result["sections"][0]["raters"])
    programs = agreement(small, replace(QUICK, raters="simulated")).result
    assert all(r["rater"].startswith("simulated") for r in programs["sections"][0]["raters"])
    assert plan(small, QUICK)["raters"] == "people"


def test_gold_items_are_a_truth_for_the_labels(small: Study) -> None:
    gold = small.samples("base")[:6]
    votes = [
        Rating(
            f"g{k}{r}", s.id, f"simulated-g{r}", "alignment",
            "good" if voted.truth(s.id) else "bad", True, 0.0, 1.0,
            shown={"gold": "good" if voted.truth(s.id) else "bad"},
        )
        for k, s in enumerate(gold)
        for r in range(3)
    ]  # fmt: skip
    small.feedback.add_ratings(votes)
    result = agreement(small, QUICK).result
    quality = result["labels"]["truth"]["gold"]
    assert quality["majority"]["n"] == 6
    assert quality["dawid-skene"]["accuracy"] >= 0.8
    rows = {r["rater"]: r for r in result["sections"][0]["raters"]}
    assert rows["simulated-g0"]["gold"] == {"n": 6, "right": 6, "share": 1.0}


def test_the_judge_is_asked_about_shared_images_alone(
    small: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def read(judge, study: Study, samples, prompts) -> list[Verdict]:
        asked.extend(samples)
        return [Verdict(voted.truth(s.id)) for s in samples]

    rows = files.read_lines(small.path / "prompts.jsonl")
    for row in rows:
        row["slots"] = {"object": "cat"}
    (small.path / "prompts.jsonl").unlink()
    files.append_lines(small.path / "prompts.jsonl", rows)
    monkeypatch.setattr("sayso.judges.Judge.judge_samples", read)
    result = agreement(small, replace(QUICK, judge="tinyworld")).result
    assert len(asked) == result["labels"]["images"]
    quality = result["labels"]["truth"]["tinyworld"]
    assert quality["dawid-skene"]["n"] == len(asked)
    assert quality["dawid-skene"]["squared_error"] < quality["share"]["squared_error"]
    assert "against_majority" not in quality["majority"]
    gain = quality["dawid-skene"]["against_majority"]
    expected = quality["dawid-skene"]["squared_error"] - quality["majority"]["squared_error"]
    assert gain["value"] == pytest.approx(expected)
    assert gain["low"] is None


def test_peoples_labels_are_never_held_against_the_judge(
    small: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sayso.judges.Judge.judge_samples", lambda *_: pytest.fail("asked"))
    small.info = replace(small.info, base_model="tinyworld")
    voted.add_ratings(small, raters=4, overlap=2, simulated=False, seed=5)
    assert agreement(small, QUICK).result["labels"]["truth"] == {}
    with pytest.raises(UserError, match="people's labels are not compared"):
        agreement(small, replace(QUICK, judge="tinyworld", name="judged"))


def test_one_rater_an_image_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = voted.make_study(tmp_path / "s", prompts=4, per_prompt=4)
    voted.add_ratings(study, raters=2, overlap=1)
    result = agreement(study, QUICK).result
    every = result["sections"][0]["groups"]["all"]
    assert every["alpha"]["value"] is None
    assert result["sections"][0]["estimation"] is None
    assert "no image has ratings by two raters" in result["labels"]["skipped"]
    assert "no image has ratings by two raters" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"resamples": -1}, "resamples -1 is negative"),
        ({"raters": "people"}, "no votes by people yet"),
    ],
)
def test_refusals(small: Study, config: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        agreement(small, replace(QUICK, **config))  # type: ignore[arg-type]
    assert not list(small.path.glob("runs/agreement-*"))


def test_a_study_without_votes(tmp_path: Path) -> None:
    study = voted.make_study(tmp_path / "s", prompts=4)
    with pytest.raises(UserError, match="no votes by anybody yet"):
        agreement(study)


def test_the_command_prints_the_tables(
    small: Study, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sayso.base.progress.console.width", 200)
    cli.run(["agreement", str(small.path), "--resamples", "0"])
    said = capsys.readouterr().err
    for word in (
        "ratings, alignment",
        "alpha",
        "kappa",
        "skill",
        "careless",
        "simulated-03",
        "count",
    ):
        assert word in said
    assert "simulated raters" in said


def test_eighty_columns_are_enough(
    small: Study, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sayso.base.progress.console.width", 80)
    checks = [
        Rating(
            f"t{k}", s.id, "simulated-03", "alignment", "bad", True, 0.0, 1.0,
            shown={"attention": "good", "gold": None},
        )
        for k, s in enumerate(small.samples("runs/align-rwr")[:4])
    ]  # fmt: skip
    small.feedback.add_ratings(checks)
    cli.run(["agreement", str(small.path), "--resamples", "9"])
    said = capsys.readouterr().err
    assert "simulated-03 *" in said
    assert "0/4" in said
    assert "flagged as careless: simulated-03 (attention)" in said
    assert "…" not in said


def test_the_small_install_is_enough(small: Study) -> None:
    heavy = [
        "torch",
        "scipy",
        "jaxtyping",
        "diffusers",
        "transformers",
        "safetensors",
        "pandas",
    ]
    code = (
        "import sys; from pathlib import Path\n"
        f"for name in {heavy!r}: sys.modules[name] = None\n"
        "from sayso.study.study import Study\n"
        "from sayso.stages.agreement import AgreementConfig, agreement\n"
        f"agreement(Study.open(Path({str(small.path)!r})), AgreementConfig(resamples=3))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "alpha" in done.stderr


# the report


def test_summary_tells_of_agreement_strengths_and_balance(whole: Study) -> None:
    summary = summarise(ReportData(whole))
    assert summary["agreement"]["careless"] == [voted.CARELESS]
    assert summary["agreement"]["kind"] == "simulated"
    assert summary["agreement"]["alpha"]["low"] < summary["agreement"]["alpha"]["value"]
    assert summary["bradley_terry"][0]["models"][0]["model"] == "runs/align-rwr"
    assert summary["balance"][0]["suspect"] == []
    assert summary["comparison"]["intervals"]["net"]["value"] == summary["comparison"]["net"]
    assert "agreement" not in summary["missing"]
    json.dumps(summary, allow_nan=False)


def test_report_names_the_careless_rater(whole: Study) -> None:
    html = report(whole).read_text()
    assert "How far the raters agree" in html
    assert f'Flagged as careless: <strong><bdi translate="no">{voted.CARELESS}</bdi>' in html
    assert html.count('<tr class="careless">') == 1
    assert "20 simulated raters rated" in html
    assert "All models in one order" in html
    assert "No side was favoured" in html
    assert "over raters and prompts" in html
    assert "5 more raters" in html


def test_report_says_when_votes_came_since(small: Study) -> None:
    assert "not measured yet" in report(small).read_text()
    agreement(small, QUICK)
    assert "Votes have been added or changed" not in report(small).read_text()
    extra = Rating("n", small.samples()[0].id, "simulated-9", "alignment", "bad", True, 0.0, 1.0)
    small.feedback.add_ratings([extra])
    assert "Votes have been added or changed" in report(small).read_text()


def test_report_escapes_raters_names(small: Study) -> None:
    extra = Rating("n", small.samples()[0].id, "<b>simulated", "alignment", "bad", True, 0.0, 1.0)
    small.feedback.add_ratings([extra])
    agreement(small, QUICK)
    html = report(small).read_text()
    assert "&lt;b&gt;simulated" in html
    assert "<b>simulated" not in html


@pytest.mark.parametrize(
    ("value", "expected"), [(-0.0002, "0.00"), (-0.31, "−0.31"), (1.0, "1.00"), (None, "–")]
)
def test_coefficients_near_nought_are_nought(value: float | None, expected: str) -> None:
    assert words.fixed(value) == expected


def test_dot_stands_where_its_value_is() -> None:
    svg = str(charts.dot({"value": 0.5, "low": -0.5, "high": 2.0}, "aligned", -1, 1))
    assert 'cx="75.00%"' in svg
    assert 'x1="25.00%" y1="8" x2="100.00%"' in svg
    assert 'class="zero" x1="50.00%"' in svg
    empty = str(charts.dot({"value": 0.5, "low": None, "high": None}, "aligned", 0, 1))
    assert "reach" not in empty
    assert "zero" not in empty
