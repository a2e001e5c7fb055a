"""The pictures are large in every window, nothing is hidden without a sign."""

import io
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from browser import Watched, press_vote, ready, saved, scrolls_sideways, shown
from page_actions import browser_fixture
from page_server import Served, serve
from PIL import Image
from playwright.sync_api import Browser, Page
from rating_studies import TUNED

__all__ = ["browser_fixture"]

SIZE_PX = 640
LEAST_PX = 200
LONG = "a fisherman who mends a net on a quay at dawn, " * 6
SMALL, LOW, PHONE_LYING, PHONE = (1366, 625), (1280, 590), (844, 390), (390, 664)
AT_200 = (683, 312)


def picture(number: int, _model: str) -> bytes:
    target = io.BytesIO()
    Image.new("RGB", (SIZE_PX, SIZE_PX), (number % 256, 90, 80)).save(target, "PNG")
    return target.getvalue()


@pytest.fixture(scope="module")
def pages(
    browser: Browser, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, tuple[Served, Page]]]:
    """One page with a single picture, one with three, one with two sets of four."""
    tasks = {
        "one": {"n": 20}, "three": {"n": 30, "images_per_page": 3},
        "sets": {"kind": "compare", "right": TUNED},
    }  # fmt: skip
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setattr("rating_studies.picture", picture)
        made: dict[str, tuple[Served, Page]] = {}
        for name, task in tasks.items():
            served = stack.enter_context(serve(tmp_path_factory.mktemp(name), **task))  # type: ignore[arg-type]
            watched = Watched(browser)
            stack.callback(watched.context.close)
            made[name] = (served, watched.open(served.link))
        yield made


def sized(page: Page, size: tuple[int, int]) -> list[float]:
    """Show the page anew in a window of this size: the widths of the pictures."""
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.reload()
    ready(page)
    # laid out a moment after they are shown, and perhaps shown anew before they are measured
    widths = page.wait_for_function(
        """() => {
            const all = [...document.querySelectorAll("#stage img")]
            const widths = all.map(i => i.getBoundingClientRect().width)
            return widths.length && widths.every(w => w > 0) && widths
        }"""
    )
    assert not scrolls_sideways(page)
    return widths.json_value()


@pytest.mark.parametrize(
    ("name", "size", "least"),
    [
        ("one", SMALL, 450), ("one", LOW, 420), ("one", PHONE_LYING, 250),
        ("one", PHONE, 330), ("one", AT_200, LEAST_PX), ("one", (640, 295), 180),
        ("three", SMALL, 330), ("three", PHONE_LYING, LEAST_PX), ("three", PHONE, 300),
        ("sets", SMALL, LEAST_PX), ("sets", LOW, 190), ("sets", PHONE_LYING, LEAST_PX),
        ("sets", PHONE, 160), ("sets", AT_200, 190), ("sets", (1440, 900), 240),
    ],
)  # fmt: skip
def test_pictures_are_large(
    pages: dict[str, tuple[Served, Page]], name: str, size: tuple[int, int], least: int
) -> None:
    _, page = pages[name]
    widths = sized(page, size)
    assert min(widths) >= least, widths
    buttons = page.locator("#choices").bounding_box()
    assert buttons is not None
    assert buttons["y"] + buttons["height"] <= size[1], "the buttons are on screen"


def test_a_comparison_is_rated_when_all_of_it_was_on_screen(
    pages: dict[str, tuple[Served, Page]],
) -> None:
    served, page = pages["sets"]
    sized(page, PHONE)
    before = shown(page)
    page.wait_for_selector(".stage.more")
    assert page.get_attribute('.choice[data-value="left"]', "aria-disabled") == "true"
    page.keyboard.press("f")
    page.wait_for_timeout(400)
    assert shown(page) == before, "the first press shows the rest"
    for _ in range(4):
        page.locator("#stage").evaluate("stage => stage.scrollBy(0, 400)")
        page.wait_for_timeout(100)
    page.wait_for_selector('.choice[data-value="left"][aria-disabled="false"]')
    press_vote(page, "f")
    saved(page)
    assert len(served.rows()) == 1


def test_a_long_prompt_is_whole_or_says_that_there_is_more(
    pages: dict[str, tuple[Served, Page]],
) -> None:
    _, page = pages["one"]
    for size in (PHONE, (320, 640), SMALL, AT_200):
        sized(page, size)
        page.evaluate("text => import('/static/prompt.js').then(p => p.drawPrompt(text))", LONG)
        page.wait_for_timeout(50)
        cut = page.evaluate(
            "() => { const p = document.querySelector('#prompt');"
            " return p.scrollHeight > p.clientHeight + 1; }"
        )
        assert page.is_visible("#prompt-more") == cut, size
        if cut:
            page.click("#prompt-more")
            box = page.locator("#prompt").bounding_box()
            assert box is not None
            assert page.locator("#prompt").evaluate("p => getComputedStyle(p).overflowY") == "auto"
            assert page.inner_text("#prompt-more") == "Show less"
    assert page.get_attribute("#prompt", "dir") == "auto"
    assert page.get_attribute("#prompt", "translate") == "no"


def test_zoom_brings_the_original(pages: dict[str, tuple[Served, Page]]) -> None:
    _, page = pages["one"]
    sized(page, PHONE_LYING)
    page.keyboard.press("z")
    page.wait_for_function("n => document.querySelector('#stage img').naturalWidth === n", arg=640)
    stage, image = (page.locator(s).bounding_box() for s in ("#stage", "#stage .hole"))
    assert stage is not None
    assert image is not None
    assert image["width"] >= 0.98 * stage["width"]
    page.keyboard.press("Escape")


def test_full_screen_with_one_key(pages: dict[str, tuple[Served, Page]]) -> None:
    _, page = pages["one"]
    sized(page, SMALL)
    page.keyboard.press("v")
    page.wait_for_function("() => document.fullscreenElement !== null")
    page.keyboard.press("v")
    page.wait_for_function("() => document.fullscreenElement === null")
