"""The rating page in real Chromium: what a rater does, and what the server then holds."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from browser import Watched, answer, chromium, ready, saved, shown, waits
from page_server import Served, serve
from playwright.sync_api import Browser, Page, Route
from rating_studies import TUNED

KEYS = {"good": "j", "bad": "f", "skip": "s", "left": "f", "right": "j", "tie": "t"}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


Before = Callable[[Served, Watched], None] | None
Start = Callable[..., tuple[Served, Watched, Page]]


@pytest.fixture
def start(browser: Browser, tmp_path: Path) -> Iterator[Start]:
    """A server and a page on it; at the end nothing foreign was asked for and no script failed."""
    with ExitStack() as stack:
        watched = Watched(browser)

        def run(before: Before = None, **task: object) -> tuple[Served, Watched, Page]:
            served = stack.enter_context(serve(tmp_path, **task))  # type: ignore[arg-type]
            if before:
                before(served, watched)
            page = watched.open(served.link)
            if before is not with_guideline:
                ready(page)
            return served, watched, page

        yield run
        watched.context.close()
        assert watched.foreign == []
        assert watched.errors == []


def with_guideline(served: Served, _: Watched) -> None:
    served.write_guideline("Mark a picture **good** if it shows what the prompt asks for.")


def rate(page: Page, watched: Watched, values: list[str], expected: dict[str, str]) -> None:
    for value in values:
        page_id, number = answer(page, KEYS[value]).rsplit("/", 1)
        expected[watched.items[page_id][int(number)]] = value


def fails_with(status: int, code: str = "failed", message: str = "Not now.") -> Callable:
    body = json.dumps({"error": {"code": code, "message": message}})
    return lambda route: route.fulfill(status=status, body=body, content_type="application/json")


def test_fifty_pictures_three_undone_ten_offline(start: Start) -> None:
    served, watched, page = start()
    expected: dict[str, str] = {}
    rate(page, watched, ["good", "bad", "skip", "good", "bad"] * 10, expected)
    for _ in range(3):
        answer(page, "Backspace")
    rate(page, watched, ["bad", "bad", "good"], expected)
    assert len(expected) == 50
    saved(page)
    watched.context.set_offline(True)
    rate(page, watched, ["good", "bad"] * 5, expected)
    waits(page, 10)
    assert len(served.live()) == 50
    watched.context.set_offline(False)
    saved(page)
    assert served.live() == expected
    page.reload()
    ready(page)
    rate(page, watched, ["skip", "good"], expected)
    saved(page)
    assert served.live() == expected
    assert len(expected) == 62
    assert len(served.rows()) == 50 + 2 * 3 + 10 + 2
    assert page.inner_text("#mine-text").startswith("62 of ")


def test_the_next_pages_are_there_before_they_are_wanted(start: Start) -> None:
    _, _, page = start()
    page.wait_for_timeout(300)
    asked: list[str] = []
    page.on("request", lambda request: "/i/" in request.url and asked.append(request.url))
    page.route("**/api/next", lambda route: None)
    for _ in range(5):
        answer(page, "j")
    assert asked == []


def test_a_held_key_answers_once(start: Start) -> None:
    served, _, page = start()
    before = shown(page)
    for _ in range(8):
        page.keyboard.down("j")
    now = ready(page, before)
    for _ in range(8):
        page.keyboard.down("j")
        page.wait_for_timeout(20)
    page.keyboard.up("j")
    saved(page)
    assert shown(page) == now
    assert len(served.rows()) == 1


PRESS_AT_ONCE = """async () => {
  const stage = document.querySelector('#stage');
  const press = () => document.dispatchEvent(new KeyboardEvent('keydown', {key: 'j'}));
  const before = stage.dataset.shown;
  press();
  await new Promise((done) => new MutationObserver(() => stage.dataset.shown !== before && done())
    .observe(stage, {attributes: true}));
  const now = stage.dataset.shown;
  press();
  await new Promise((done) => setTimeout(done, 60));
  press();
  await new Promise((done) => setTimeout(done, 200));
  return [now, stage.dataset.shown];
}"""


def test_a_press_right_after_a_new_picture_does_not_answer_it(start: Start) -> None:
    served, _, page = start()
    now, later = page.evaluate(PRESS_AT_ONCE)
    assert now == later
    saved(page)
    assert len(served.rows()) == 1


def test_a_double_click_answers_once(start: Start) -> None:
    served, _, page = start()
    before = shown(page)
    page.dblclick('[data-answer="good"]', delay=100)
    ready(page, before)
    page.wait_for_timeout(300)
    saved(page)
    assert len(served.rows()) == 1


def test_keys_can_be_changed_and_switched_off(start: Start) -> None:
    served, _, page = start()
    page.keyboard.press("?")
    page.click("#key-good")
    page.keyboard.press("l")
    page.click('[aria-label="Switch off the key of: Bad"]')
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    page.keyboard.press("f")
    page.wait_for_timeout(200)
    assert served.rows() == []
    answer(page, "l")
    page.reload()
    ready(page)
    assert page.inner_text('[data-answer="good"] kbd') == "L"
    assert page.query_selector('[data-answer="bad"] kbd') is None
    answer(page, "l")
    saved(page)
    assert [row["value"] for row in served.rows()] == ["good", "good"]


def test_a_key_that_is_taken_moves_and_is_said(start: Start) -> None:
    _, _, page = start()
    page.keyboard.press("?")
    page.click("#key-good")
    page.keyboard.press("f")
    assert page.inner_text("#keys-said") == "Good: key F. Bad has no key now."
    page.click("#keys-off")
    assert page.query_selector("#key-list kbd") is None
    page.click("#keys-reset")
    assert page.inner_text("#key-good") == "J"


def test_a_skip_with_a_reason_is_one_key(start: Start) -> None:
    served, _, page = start()
    answer(page, "3")
    answer(page, "s")
    saved(page)
    assert [(row["value"], row["reason"]) for row in served.rows()] == [
        ("skip", "unsure"),
        ("skip", ""),
    ]


def test_three_pictures_are_answered_one_after_the_other(start: Start) -> None:
    served, watched, page = start(n=90, images_per_page=3)
    expected: dict[str, str] = {}
    assert page.locator('.select[aria-current="true"]').count() == 1
    rate(page, watched, ["good", "bad"], expected)
    assert page.inner_text(".frame:nth-child(1) .verdict") == "Good"
    page.click(".frame:nth-child(1) .select")
    page.wait_for_timeout(150)
    rate(page, watched, ["skip", "good"], expected)
    saved(page)
    assert served.live() == expected
    assert sorted(expected.values()) == ["bad", "good", "skip"]


def test_a_reload_in_the_middle_of_a_group_goes_on_there(start: Start) -> None:
    served, watched, page = start(n=90, images_per_page=3)
    first = answer(page, "j")
    saved(page)
    page.reload()
    assert ready(page) == first.replace("/0", "/1")
    answer(page, "Backspace")
    assert shown(page) == first
    rate(page, watched, ["bad", "bad", "bad"], {})
    saved(page)
    assert list(served.live().values()) == ["bad", "bad", "bad"]


def test_any_of_the_last_answers_can_be_taken_back(start: Start) -> None:
    served, watched, page = start()
    expected: dict[str, str] = {}
    seen = [shown(page)]
    for _ in range(4):
        rate(page, watched, ["good"], expected)
        seen.append(shown(page))
    page.click("#strip li:nth-child(2) button")
    assert ready(page, seen[4]) == seen[1]
    rate(page, watched, ["bad"], expected)
    assert shown(page) == seen[4]
    saved(page)
    assert served.live() == expected
    assert list(expected.values()) == ["good", "bad", "good", "good"]


def test_sets_are_compared_left_right_or_tie(start: Start) -> None:
    served, watched, page = start(kind="compare", right=TUNED)
    assert page.locator(".side img").count() == 8
    expected: dict[str, str] = {}
    topics = []
    for value in ("left", "tie", "right"):
        topics.append({"Match": "alignment", "Looks": "fidelity"}[page.inner_text("#topic")])
        rate(page, watched, [value], expected)
    saved(page)
    assert served.live() == expected
    assert [row["question"] for row in served.rows()] == topics


def test_zoom_is_linked_over_all_pictures(start: Start) -> None:
    _, _, page = start(kind="compare", right=TUNED, set_size=2)
    page.keyboard.press("z")
    page.keyboard.press("ArrowRight")
    spots = page.eval_on_selector_all(
        ".hole img",
        "all => all.map(i => getComputedStyle(i).transform + getComputedStyle(i).transformOrigin)",
    )
    assert len(spots) == 4
    assert len(set(spots)) == 1
    assert spots[0].startswith("matrix(3,")
    page.keyboard.press("z")
    page.wait_for_selector(".stage:not(.zoomed)")


def test_a_busy_server_keeps_answers_over_a_reload(start: Start) -> None:
    served, watched, page = start()
    watched.context.route("**/api/votes", fails_with(503))
    expected: dict[str, str] = {}
    rate(page, watched, ["good", "bad", "good"], expected)
    fourth = shown(page)
    waits(page, 3)
    page.on("dialog", lambda dialog: dialog.accept())
    page.reload()
    waits(page, 3)
    ready(page)
    assert shown(page) == fourth
    watched.context.unroute("**/api/votes")
    page.click("#saved-retry")
    saved(page)
    assert served.live() == expected


def test_an_expired_session_drops_nothing(start: Start) -> None:
    served, watched, page = start()
    expected: dict[str, str] = {}
    rate(page, watched, ["good"], expected)
    saved(page)
    watched.context.clear_cookies()
    rate(page, watched, ["bad", "bad"], expected)
    page.wait_for_selector('#saved[data-state="signed_out"]')
    page.click("#saved-sign-in")
    page.wait_for_selector("#link")
    page.fill("#link", served.link)
    page.click("main form button")
    ready(page)
    saved(page)
    assert served.live() == expected


def test_a_refused_answer_is_kept_and_can_be_sent_again(start: Start) -> None:
    served, watched, page = start()
    watched.context.route("**/api/votes", fails_with(409, "vote_conflict", "Already answered."))
    expected: dict[str, str] = {}
    rate(page, watched, ["good"], expected)
    page.wait_for_selector("#refused-open:not([hidden])")
    page.reload()
    ready(page)
    assert page.inner_text("#refused-open") == "1 answer refused"
    page.click("#refused-open")
    assert "Already answered." in page.inner_text("#refused-list")
    with page.expect_download() as download:
        page.click("#refused-file")
    kept = json.loads(download.value.path().read_text())
    assert kept[0]["vote"]["value"] == "good"
    watched.context.unroute("**/api/votes")
    page.click("text=Send again")
    page.wait_for_selector("#refused-open", state="hidden")
    saved(page)
    assert served.live() == expected


def test_leaving_with_unsent_answers_warns(start: Start) -> None:
    _, watched, page = start()
    watched.context.route("**/api/votes", fails_with(503))
    answer(page, "j")
    waits(page, 1)
    kinds: list[str] = []
    page.on("dialog", lambda dialog: (kinds.append(dialog.type), dialog.accept()))
    page.reload()
    assert kinds == ["beforeunload"]


def test_one_tab_rates_the_other_stands_aside(start: Start) -> None:
    served, watched, first = start()
    answer(first, "j")
    second = watched.open(first.url)
    second.wait_for_selector("text=Open in another tab")
    answer(first, "j")
    second.click("text=Rate here instead")
    ready(second)
    first.wait_for_selector("text=Open in another tab")
    first.keyboard.press("f")
    answer(second, "f")
    saved(second)
    assert sorted(served.live().values()) == ["bad", "good", "good"]


def test_a_missing_picture_is_reported_and_passed_over(start: Start) -> None:
    calls: list[Route] = []

    def before(_: Served, watched: Watched) -> None:
        watched.context.route("**/i/**", lambda route: _gone_once(route, calls))

    served, _, page = start(before)
    page.wait_for_selector('.notice[data-key="broken"]')
    assert served.refused() == 1
    answer(page, "j")
    saved(page)
    assert len(served.live()) == 1


def _gone_once(route: Route, seen: list[Route]) -> None:
    first = not seen
    seen.append(route)
    if first:
        return fails_with(404, "gone")(route)
    return route.continue_()


def test_the_guideline_comes_first_and_again_when_it_changes(start: Start) -> None:
    served, _, page = start(with_guideline)
    page.wait_for_selector("#begin-text >> text=Mark a picture")
    page.keyboard.press("j")
    page.click("#begin-go")
    ready(page)
    assert served.rows() == []
    page.keyboard.press("g")
    assert "what the prompt asks for" in page.inner_text("#guide-text")


def test_done_paused_and_closed_are_said(start: Start) -> None:
    served, _, page = start(n=10)
    for _ in range(9):
        answer(page, "j")
    page.keyboard.press("j")
    page.wait_for_selector("text=All done, thank you")
    assert len(served.live()) == 10
    page.keyboard.press("Backspace")
    ready(page)
    saved(page)
    served.set_state("paused")
    page.reload()
    page.wait_for_selector("h1:has-text('Paused')")
    served.set_state("closed")
    page.reload()
    page.wait_for_selector("h1:has-text('Closed')")


def test_time_with_the_tab_hidden_is_not_counted(start: Start) -> None:
    served, _, page = start()
    hide = (
        "hidden => {"
        "Object.defineProperty(document, 'hidden', {value: hidden, configurable: true});"
        "document.dispatchEvent(new Event('visibilitychange')); }"
    )
    page.evaluate(hide, True)
    page.wait_for_timeout(700)
    page.evaluate(hide, False)
    answer(page, "j")
    saved(page)
    vote = served.rows()[0]
    latency, hidden = vote["shown"]["latency_ms"], vote["shown"]["hidden_ms"]
    assert hidden >= 690
    took_ms = 1000 * (vote["answered_at"] - vote["shown_at"])
    assert latency >= 100
    assert abs(took_ms - latency - hidden) <= 2


def test_a_break_is_proposed_after_rating_without_a_pause(start: Start) -> None:
    _, _, page = start()
    due = page.evaluate("""async () => {
      const { BreakTimer } = await import('/static/clock.js');
      const timer = new BreakTimer(30);
      const at = (minutes) => timer.answered(minutes * 60_000);
      const steady = []; for (let m = 0; m <= 62; m += 2) steady.push(at(m));
      const pause = [at(90), at(92), at(110)];
      return [steady.map((due, i) => due ? 2 * i : 0).filter(Boolean), pause];
    }""")
    assert due == [[30, 60], [False, False, False]]


def test_a_screen_reader_hears_what_is_saved(start: Start) -> None:
    _, _, page = start(n=40)
    answer(page, "j")
    page.wait_for_function(
        "() => /^Saved, 1 of [0-9]+$/.test(document.querySelector('#live').textContent)"
    )
    assert page.get_attribute("#stage img", "alt") == "The picture to judge"
