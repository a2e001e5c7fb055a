"""Every page: nothing that axe finds (WCAG 2.2 AA), light and dark, and no wider than a phone."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from browser import Watched, press_vote, ready, saved, scrolls_sideways, violations
from page_actions import browser_fixture
from page_server import Served, running, serve
from playwright.sync_api import Browser, Dialog, Page
from rating_studies import BASE, TUNED, RatingApp, make_study
from sqlalchemy import update

from sayso.feedback import work_tables
from sayso.web.work.tasks import TaskOptions

__all__ = ["browser_fixture"]

PHONE = {"width": 320, "height": 640}
WIDE = {"width": 1440, "height": 900}
PATHS = ("", "raters", "checks", "agreement", "disagreements", "guideline", "export", "audit")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def check(page: Page) -> None:
    """Light on a desk, dark on a phone: each size and each appearance once."""
    for size, scheme in ((WIDE, "light"), (PHONE, "dark")):
        page.set_viewport_size(size)  # type: ignore[arg-type]
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
        assert violations(page) == [], f"{page.url} {scheme}"
        assert not scrolls_sideways(page), f"{page.url} at {size}"


def opened(stack: ExitStack, browser: Browser, folder: Path, **task: object) -> tuple[Served, Page]:
    served = stack.enter_context(serve(folder, **task))  # type: ignore[arg-type]
    watched = Watched(browser)
    stack.callback(watched.context.close)
    page = watched.open(served.link)
    ready(page)
    return served, page


def test_rating_one_picture_with_help_and_notices(
    stack: ExitStack, browser: Browser, tmp_path: Path
) -> None:
    served, page = opened(stack, browser, tmp_path)
    press_vote(page, "j")
    press_vote(page, "s")
    saved(page)
    check(page)
    page.keyboard.press("?")
    check(page)
    page.keyboard.press("Escape")
    page.evaluate("import('/static/view.js').then(v => v.notice('x', 'cup', 'A break?'))")
    page.wait_for_selector(".notice")
    check(page)
    served.set_state("paused")
    page.reload()
    page.wait_for_selector("h1:has-text('Paused')")
    check(page)


def test_rating_three_pictures(stack: ExitStack, browser: Browser, tmp_path: Path) -> None:
    _, page = opened(stack, browser, tmp_path, n=90, images_per_page=3)
    press_vote(page, "j")
    check(page)


def test_comparing_and_refused_votes(stack: ExitStack, browser: Browser, tmp_path: Path) -> None:
    _, page = opened(stack, browser, tmp_path, kind="compare", right=TUNED)
    check(page)
    body = '{"error": {"code": "vote_conflict", "message": "Already answered."}}'
    page.route("**/api/votes", lambda r: r.fulfill(status=409, body=body))
    press_vote(page, "f")
    page.click("#refused-open")
    check(page)


def test_reading_the_guideline_and_signing_in(
    stack: ExitStack, browser: Browser, tmp_path: Path
) -> None:
    served = stack.enter_context(serve(tmp_path))
    served.write_guideline("# What counts\n\nRate an image **good** if\n\n- it shows the object")
    watched = Watched(browser)
    stack.callback(watched.context.close)
    page = watched.open(served.url)
    page.fill("#link", "wrong")
    page.click("main form button")
    page.wait_for_selector('[role="alert"]')
    check(page)
    page.fill("#link", served.link)
    page.click("main form button")
    page.wait_for_selector("#begin-go")
    check(page)
    page.goto(f"{served.url}/in/../nothing-here")
    check(page)


@pytest.fixture(scope="module")
def worked(
    browser: Browser, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Served, Page]]:
    """A study on which two people disagreed, and its admin's browser."""
    folder = tmp_path_factory.mktemp("worked")
    with serve(folder, ("ann", "bob", "boss"), n=20, overlap=2) as served:
        served.app.client("ann").work()
        served.app.client("bob").work(lambda _: "bad")
        served.write_guideline("One\n\n**Two**")
        watched = Watched(browser)
        page = watched.open(served.link_of("boss"))
        yield served, page
        watched.context.close()


@pytest.mark.parametrize("name", PATHS)
def test_administration(worked: tuple[Served, Page], name: str) -> None:
    served, page = worked
    page.goto(f"{served.url}/admin/{name}".rstrip("/"))
    assert page.get_attribute('.tabs [aria-current="page"]', "href")
    check(page)


@pytest.mark.parametrize("path", [*PATHS, "raters/votes?name=ann", "decide"])
def test_no_page_of_admins_scrolls_sideways_on_a_phone(
    worked: tuple[Served, Page], path: str
) -> None:
    served, page = worked
    with served.app.site.write() as db:
        long = {"name": "rate runs/align-" + "a-very-long-name-" * 6}
        db.execute(update(work_tables.tasks).values(long))
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(f"{served.url}/admin/{path}".rstrip("/"))
    assert not scrolls_sideways(page)
    assert page.evaluate("document.body.scrollWidth <= innerWidth")


@pytest.mark.parametrize("kind", ["rate", "compare"])
def test_admins_see_pictures_large_enough_to_rate(
    stack: ExitStack, browser: Browser, tmp_path: Path, kind: str
) -> None:
    models = (BASE, TUNED) if kind == "compare" else (BASE,)
    study = make_study(tmp_path, 4, 8, models)
    task: dict[str, Any] = {"kind": kind, "prompts": "train", "attention_share": 0.5}
    more: Any = {"right": TUNED, "set_size": 4} if kind == "compare" else {
        "gold": {study.samples(BASE)[0].id: "good"}, "gold_share": 0.2, "per_prompt": 4,
    }  # fmt: skip
    app = RatingApp(study, TaskOptions(**task, **more), names=("ann", "boss"))
    app.client().work(lambda _: "left" if kind == "compare" else "good")
    url = stack.enter_context(running(app.asgi))
    watched = Watched(browser)
    stack.callback(watched.context.close)
    page = watched.open(f"{url}/in/{app.links['boss']}")
    for width, height, least in ((1366, 768, 240), (390, 844, 140)):
        page.set_viewport_size({"width": width, "height": height})
        for path in ("checks", "raters/votes?name=ann"):
            page.goto(f"{url}/admin/{path}")
            widths = page.eval_on_selector_all(
                ".pictures img", "all => all.map((img) => img.getBoundingClientRect().width)"
            )
            assert widths, path
            assert min(widths) >= least, path
            assert page.locator("main img").count() == len(widths)
            assert not scrolls_sideways(page)
    page.click(".pictures a >> nth=0")
    box = page.locator(".zoom img").bounding_box()
    assert box
    assert (box["width"], box["height"]) == (390, 844)
    page.wait_for_function("() => document.querySelector('.zoom img').naturalWidth === 16")
    page.click(".zoom img")
    assert page.locator(".zoom img").bounding_box()["width"] == 16, "the original"  # pyright: ignore
    check(page)
    page.keyboard.press("Escape")
    assert not page.is_visible(".zoom")
    assert watched.errors == []


def test_the_votes_of_one_rater_and_the_page_of_decisions(worked: tuple[Served, Page]) -> None:
    served, page = worked
    page.goto(f"{served.url}/admin/raters/votes?name=ann")
    check(page)
    page.goto(f"{served.url}/admin/decide")
    ready(page)
    check(page)


def test_unsaved_guideline_text_is_not_thrown_away_unasked(worked: tuple[Served, Page]) -> None:
    served, page = worked
    asked: list[str] = []

    def stay(dialog: Dialog) -> None:
        asked.append(dialog.type)
        dialog.dismiss()

    page.on("dialog", stay)
    page.goto(f"{served.url}/admin/guideline")
    page.fill("#guideline-text", "One more rule")
    page.evaluate("location.href = '/admin/raters'")
    page.wait_for_timeout(300)
    assert asked == ["beforeunload"]
    assert page.input_value("#guideline-text") == "One more rule"
    served.write_guideline("Somebody else's", base_version=1)
    page.click("text=Save as version")
    page.wait_for_selector('[role="alert"]')
    assert page.input_value("#guideline-text") == "One more rule"
    page.remove_listener("dialog", stay)
    page.on("dialog", lambda dialog: dialog.accept())
    page.goto(f"{served.url}/admin")


def test_an_admin_copies_the_command_of_an_export(worked: tuple[Served, Page]) -> None:
    served, page = worked
    page.set_viewport_size(WIDE)  # type: ignore[arg-type]
    page.goto(f"{served.url}/admin/export")
    page.click('[aria-label="Copy the command for KTO style"]')
    selected = page.evaluate("getSelection().toString()")
    assert selected == page.input_value("#export-kto")
    assert selected.endswith("--format kto")


def test_an_admin_adds_a_rater_and_pauses(worked: tuple[Served, Page]) -> None:
    served, page = worked
    page.set_viewport_size(WIDE)  # type: ignore[arg-type]
    page.goto(f"{served.url}/admin/raters")
    page.fill('[name="name"]:not([type="hidden"])', "Zoe")
    page.click('button[value="add"]')
    assert "/in/" in page.input_value("#new-link-1")
    page.click("text=QR code")
    check(page)
    page.goto(f"{served.url}/admin")
    page.click('button[value="pause"]')
    page.wait_for_selector('.state[data-state="paused"]')
    page.click('button[value="resume"]')
    page.wait_for_selector('.state[data-state="open"]')


def test_progress_follows_the_server(worked: tuple[Served, Page]) -> None:
    served, page = worked
    page.goto(f"{served.url}/admin")
    page.clock.install()
    page.reload()
    served.set_state("paused")
    page.clock.run_for(11_000)
    page.wait_for_selector('.state[data-state="paused"]')
    served.set_state("open")


def test_a_reviewer_decides_by_keys(worked: tuple[Served, Page]) -> None:
    """On the rating page itself: large pictures, the same keys, undo, nobody's answers.

    The last test of this file, for its decision stays and an export would hold it.
    """
    served, page = worked
    page.set_viewport_size(WIDE)  # type: ignore[arg-type]
    page.goto(f"{served.url}/admin/disagreements")
    page.click("a:has-text('Decide')")
    ready(page)
    drawn, shown = page.eval_on_selector("#stage img", "i => [i.naturalWidth, i.width]")
    assert shown >= 3 * drawn, "as large as raters see it"
    press_vote(page, "j")
    press_vote(page, "f")
    saved(page)
    page.keyboard.press("Backspace")
    saved(page)
    decided = [row for row in served.rows() if row["decision"]]
    assert [row["value"] for row in decided] == ["good", "bad", "retracted"]
    assert {row["rater"] for row in decided} == {"boss"}
    page.click("a:has-text('Disagreements')")
    page.wait_for_selector(".case")
    assert page.locator(".case").count() == 1
