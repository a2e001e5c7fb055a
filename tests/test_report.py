"""The report: one page that carries everything with it, true to the numbers, at any stage."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import synthetic as syn

from sayso.base.errors import UserError
from sayso.base.types import CATEGORIES, Prompt
from sayso.metrics.evaluation import Scored
from sayso.reporting import charts, gallery, words
from sayso.reporting.charts import Axis, Series
from sayso.reporting.report_data import ReportData
from sayso.reporting.summary import summarise
from sayso.stages.evaluate import EvaluateConfig, evaluate
from sayso.stages.report import ReportConfig, report
from sayso.study.info import StudyInfo
from sayso.study.study import Study

GROUPS = [*CATEGORIES, "seen", "unseen", "all"]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A synthetic study whose stages have all run; truth and rewards are invented."""
    study, truth = syn.make_study(tmp_path_factory.mktemp("report") / "study", test=16)
    syn.add_ratings(study, truth)
    syn.add_comparisons(study, truth)
    syn.add_runs(study)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sayso.stages._scoring.score", invented(truth))
        evaluate(study, EvaluateConfig(model=syn.ALIGNED))
    return study


def invented(truth: syn.Truth):
    """Scores in place of the judge's and the reward's: the true images get the higher reward."""

    def score(study, samples, prompts, judge, reward, device) -> list[Scored]:
        return [
            Scored(
                s.id, s.model, p.id, s.seed, p.split, p.category, truth.true[s.id], 0.9,
                "1 × red cat", (truth.true[s.id] + i % 7 / 7) / 2, 0.2 + i % 5 / 100,
            )
            for i, (s, p) in enumerate(zip(samples, prompts, strict=True))
        ]  # fmt: skip

    return score


@pytest.fixture(scope="module")
def html(study: Study) -> str:
    return report(study).read_text()


class Page(HTMLParser):
    """Opened and closed tags, and every address that a browser would fetch."""

    void = frozenset({"meta", "img", "br", "link", "input"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.void:
            self.open.append(tag)
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "action")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another tag"


def text_of(html: str) -> str:
    """What a reader sees, with plain spaces."""
    plain = re.sub(r"<style>.*?</style>", "", html, flags=re.S)
    plain = re.sub(r"<[^>]+>", " ", plain)
    return " ".join(plain.replace("\u00a0", " ").replace("\u202f", " ").split())


# the page


def test_page_is_well_formed_and_asks_nobody(html: str) -> None:
    page = Page(html)
    assert page.open == []
    assert page.addresses
    assert all(address.startswith("data:image/webp;base64,") for address in page.addresses)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    style = re.search(r"<style>(.*?)</style>", html, re.S)
    assert style is not None
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    assert len(html) < 3_000_000


def test_headline_is_the_evaluations_number(study: Study, html: str) -> None:
    shares = ReportData(study).result["alignment"]
    before, after = (words.percent(shares[r]["combination"]["value"]) for r in ("base", "aligned"))
    headline = f"Combination prompts drawn right: {before} → {after}".replace("\u00a0", " ")
    assert headline in text_of(html)


def test_simulated_raters_are_named_where_they_judged(html: str) -> None:
    text = text_of(html)
    assert "simulated raters" in text.split("Before and after")[0]
    assert "The 9 raters are simulated" in text
    assert text.count("· simulated") == 6
    assert "by 2 simulated raters" in text


def test_every_picture_has_a_verdict_that_is_not_only_a_colour(study: Study, html: str) -> None:
    shown = gallery.cards(study, ReportData(study).models, ReportData(study).scores, 16, 4)
    pictures = [p for card in shown for row in card.rows for p in row.pictures]
    assert len(pictures) == 16 * 3 * 4
    n_true = sum(p.true is True for p in pictures)
    # one more of each stands in the legend
    assert html.count('<span class="verdict yes">') == n_true + 1
    assert html.count('<span class="verdict no">') == len(pictures) - n_true + 1
    assert html.count('<span class="hidden">true</span>') == n_true + 1
    assert 'class="crisp"' in html


def test_texts_of_prompts_and_options_are_escaped(tmp_path: Path) -> None:
    study = Study.create(tmp_path / "s", StudyInfo(name="<b>bold</b>"))
    study.run("align", "rwr", {"aligner": "<script>alert(1)</script>"})
    html = report(study).read_text()
    assert "<script>" not in html
    assert "&lt;b&gt;bold" in html


def test_prompts_keep_their_direction_and_language(study: Study, html: str) -> None:
    """As on the rating page: any language reads in its own direction, and none is translated."""
    prompts = {prompt.text for prompt in study.prompts("test")}
    heads = re.findall(r"<h3([^>]*)>([^<]*)</h3>", html)
    shown = [attributes for attributes, text in heads if text in prompts]
    assert len(shown) > 4
    assert set(shown) == {' dir="auto" translate="no"'}
    for attributes in re.findall(r"<figure[^>]*><img([^>]*)>", html):
        assert ' dir="auto" translate="no"' in attributes


def test_page_has_both_themes_and_print(html: str) -> None:
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html
    assert "image-rendering: pixelated" in html


# which prompts are shown


def prompts(n: int) -> list[Prompt]:
    return [
        Prompt(f"{c}{s}{i}", f"{c} {s} {i}", c, {}, s)  # type: ignore[arg-type]
        for c in CATEGORIES
        for s in ("seen", "unseen")
        for i in range(n)
    ]


def test_prompts_shown_are_balanced_and_seeded() -> None:
    found = gallery.chosen(prompts(9), seed=1, most=16)
    groups = [(p.category, p.split) for p in found]
    assert all(groups.count(g) == 2 for g in set(groups))
    assert len(set(groups)) == 8
    assert groups[0][0] == "combination"
    assert found == gallery.chosen(prompts(9)[::-1], seed=1, most=16)
    assert found != gallery.chosen(prompts(9), seed=2, most=16)


def test_a_small_group_leaves_its_places_to_others() -> None:
    few = [p for p in prompts(9) if p.category == "colour" or p.id.endswith("0")]
    found = gallery.chosen(few, seed=1, most=12)
    assert len(found) == 12
    assert sum(p.category == "colour" for p in found) == 6


def test_before_and_after_show_the_same_seeds(study: Study) -> None:
    data = ReportData(study)
    by_url = {gallery.data_url(study, s)[0]: s for s in study.samples()}
    for card in gallery.cards(study, data.models, data.scores, 3, 4):
        rows = {row.role: [by_url[p.url] for p in row.pictures] for row in card.rows}
        assert list(rows) == ["base", "aligned", "best_of_n"]
        assert [s.seed for s in rows["base"]] == [s.seed for s in rows["aligned"]]
        assert {s.prompt_id for row in rows.values() for s in row} == {card.prompt.id}


def test_large_images_are_made_small_and_the_budget_holds(tmp_path: Path) -> None:
    import base64
    import io

    from PIL import Image

    study, _ = syn.make_study(tmp_path / "s", test=8, per_prompt=1)
    sample = study.samples()[0]
    Image.effect_noise((512, 512), 90).convert("RGB").save(study.path / sample.path)
    url, width = gallery.data_url(study, sample)
    whole = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    assert whole.size == (256, 256)
    assert width == 256
    picture = gallery.Picture("x" * 100, 64, True, "")
    cards = [gallery.Card(p, [gallery.Row("base", [picture])]) for p in prompts(1)]
    assert len(gallery.within(cards, budget_bytes=350)) == 3


def test_small_images_keep_every_pixel(study: Study) -> None:
    import base64
    import io

    from PIL import Image

    sample = study.samples()[0]
    content = base64.b64decode(gallery.data_url(study, sample)[0].partition(",")[2])
    assert Image.open(io.BytesIO(content)).convert("RGB").tobytes() == study.image(sample).tobytes()


# summary.json


def test_summary_tells_what_the_evaluation_found(study: Study, html: str) -> None:
    summary = json.loads((study.path / "summary.json").read_text())
    result = ReportData(study).result
    for role in ("base", "aligned", "best_of_n"):
        for group in GROUPS:
            assert summary["alignment"][role][group] == result["alignment"][role][group]["value"]
    assert summary["alignment"]["n"] == result["paired"]["all"]["n"] == 64
    assert summary["alignment"]["p_value"] == result["paired"]["all"]["p_value"]
    for field in ("accuracy", "auc", "clip_auc"):
        for split in ("seen", "unseen"):
            assert summary["reward"][field][split] == result["reward_quality"][split][field]
    row = next(
        c for c in result["comparisons"]
        if (c["first"], c["second"], c["question"]) == (syn.ALIGNED, "base", "alignment")
    )  # fmt: skip
    assert summary["comparison"]["win"] == row["win"]["value"]
    assert summary["comparison"]["net"] == pytest.approx(
        summary["comparison"]["win"] - summary["comparison"]["lose"]
    )
    assert summary["comparison"]["n_prompts"] == 16
    assert summary["comparison"]["kind"] == "simulated"
    assert {"base", "aligned", "ratio", "n"} <= summary["fidelity"].keys()
    assert "no fidelity prompts" in summary["fidelity"]["skipped"]


def test_seconds_add_up(study: Study) -> None:
    seconds = summarise(ReportData(study))["seconds"]
    total = seconds.pop("total")
    assert total == pytest.approx(sum(seconds.values()), abs=0.01)
    assert seconds["align"] == 131.0
    assert list(seconds) == ["generate", "rate", "fit", "align", "evaluate"]


def test_pauses_between_sittings_are_no_rating_time(study: Study) -> None:
    """32 truth 10 ms apart, then comparisons minutes later at one instant."""
    assert 0.25 < ReportData(study).seconds["rate"] < 1.0


def test_feedback_counts_add_up(study: Study) -> None:
    feedback = summarise(ReportData(study))["feedback"]
    assert feedback["good"] + feedback["bad"] + feedback["skip"] == feedback["ratings"] == 32
    assert feedback["kind"] == "simulated"


def test_people_are_not_mixed_with_simulated_raters(tmp_path: Path) -> None:
    study, truth = syn.make_study(tmp_path / "s", test=8, per_prompt=1)
    syn.add_ratings(study, truth, simulated=True)
    syn.add_ratings(study, truth, simulated=False, which="test")
    feedback = summarise(ReportData(study))["feedback"]
    assert feedback["kind"] == "people"
    assert feedback["ratings"] == 24


# half-finished studies


def test_an_empty_study_says_what_to_do(tmp_path: Path) -> None:
    study = Study.create(tmp_path / "fresh", StudyInfo(name="fresh"))
    text = text_of(report(study).read_text())
    assert "Not evaluated yet" in text
    for command in ("generate", "rate", "fit", "align", "evaluate"):
        assert f"sayso {command} {study.path}" in text
    summary = json.loads((study.path / "summary.json").read_text())
    assert summary["alignment"]["base"]["combination"] is None
    assert summary["feedback"]["ratings"] == 0
    assert set(summary["missing"]) >= {"images", "feedback", "fit", "align", "evaluate"}


def test_a_study_without_selection_or_comparisons(tmp_path: Path) -> None:
    study, truth = syn.make_study(tmp_path / "s", test=8, per_prompt=2)
    path = study.path / "samples.jsonl"
    kept = [line for line in path.read_text().splitlines() if "@best-of" not in line]
    path.write_text("\n".join(kept) + "\n")
    syn.add_runs(study)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sayso.stages._scoring.score", invented(truth))
        evaluate(study, EvaluateConfig(model=syn.ALIGNED))
    text = text_of(report(study).read_text())
    assert "No best-of-n selection" in text
    assert "No side-by-side comparisons" in text
    assert "best of 16" not in text
    assert "16 test images show that the whole path works" in text


def test_nobody_said_what_is_true(tmp_path: Path) -> None:
    study, truth = syn.make_study(tmp_path / "s", test=8, per_prompt=1)
    syn.add_runs(study)
    score = invented(truth)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "sayso.stages._scoring.score",
            lambda *a: [
                Scored(r.id, r.model, r.prompt_id, r.seed, r.split, r.category) for r in score(*a)
            ],
        )
        evaluate(study, EvaluateConfig(model=syn.ALIGNED, reward=""))
    text = text_of(report(study).read_text())
    assert "no image has a verdict" in text
    assert "not judged" not in text.split("Before and after")[0]


def test_the_evaluation_asked_for_must_be_one(study: Study) -> None:
    with pytest.raises(UserError, match="did you mean 'runs/evaluate-align-rwr'"):
        report(study, ReportConfig(evaluation="evaluate-align-rwrr"))
    with pytest.raises(UserError, match="not a run of evaluate"):
        report(study, ReportConfig(evaluation="runs/align-rwr"))
    with pytest.raises(UserError, match="negative"):
        report(study, ReportConfig(prompts_shown=-1))


def test_the_small_install_renders_the_report(study: Study) -> None:
    heavy = ["torch", "diffusers", "transformers", "scipy", "safetensors", "accelerate"]
    code = (
        "import sys; from pathlib import Path\n"
        f"for name in {heavy!r}: sys.modules[name] = None\n"
        "from sayso.study.study import Study; from sayso.stages.report import report\n"
        f"report(Study.open(Path({str(study.path)!r})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# plots and numbers


def test_bar_is_as_long_as_its_share() -> None:
    svg = str(charts.bar(0.25, 0.2, 0.31, "aligned"))
    assert '<rect class="aligned" width="25.00%"' in svg
    assert 'x1="20.00%"' in svg
    assert 'x2="31.00%"' in svg


def test_stacked_parts_follow_each_other() -> None:
    svg = str(charts.stacked([("win", 0.5), ("tie", 0.1), ("lose", 0.4)]))
    places = re.findall(r'class="(\w+)" x="([\d.]+)%" width="([\d.]+)%"', svg)
    assert places == [
        ("win", "0.00", "50.00"),
        ("tie", "50.00", "10.00"),
        ("lose", "60.00", "40.00"),
    ]


def test_plot_places_points_between_its_axes() -> None:
    svg = str(charts.plot(
        [Series("seen", [(0.0, 0.0), (1.0, 1.0)], dots=True)],
        Axis("x", 0, 1), Axis("y", 0, 1, percent=True), "title",
    ))  # fmt: skip
    dots = [tuple(map(float, d)) for d in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', svg)]
    (x0, y0), (x1, y1) = dots
    assert x0 < x1 <= charts.WIDTH
    assert 0 <= y1 < y0 < charts.HEIGHT
    assert "100%" in svg
    assert 'aria-label="title"' in svg


@pytest.mark.parametrize("values", [[0.2, 0.2], [1e-9, 3e-9], [-5.0, 1e6], [0.0, 0.0]])
def test_any_range_gets_a_few_round_ticks(values: list[float]) -> None:
    points = list(enumerate(values))
    svg = str(charts.plot([Series("aligned", points)], Axis("step"), Axis("loss"), "t"))
    assert 2 <= svg.count('text-anchor="end"') <= 9
    assert "nan" not in svg


def test_smoothing_keeps_the_mean_and_few_points() -> None:
    points = [(float(i), float(i % 3)) for i in range(1200)]
    found = charts.smooth(points, most=100)
    assert len(found) == 100
    assert sum(y for _, y in found) / 100 == pytest.approx(1.0)
    assert charts.smooth(points[:5]) == points[:5]


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (words.percent(0.414), "41\u00a0%"), (words.percent(None), "–"),
        (words.percent(True), "–"), (words.points(0.234), "+23"), (words.points(-0.05), "−5"),
        (words.points(0.001), "±0"), (words.seconds(195), "3\u00a0min 15\u00a0s"),
        (words.seconds(3.21), "3.2\u00a0s"), (words.seconds(7300), "2\u00a0h 1\u00a0min"),
        (words.number(12345), "12\u202f345"), (words.number(-0.0004, 4), "−0.0004"),
        (words.p_value(0.02), "0.020"), (words.p_value(1e-9), "<\u00a010⁻⁶"),
        (words.interval({"low": 0.36, "high": 0.47}), "36–47"),
        (words.interval({"low": -0.03, "high": 0.05}), "−3 to 5"),
        (words.interval({"skipped": "few"}), "–"), (words.reason({"skipped": "few"}), "few"),
    ],
)  # fmt: skip
def test_numbers_in_words(shown: str, expected: str) -> None:
    assert shown == expected
