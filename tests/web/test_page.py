"""The rating page in real Chromium: keys, layouts, times, and what the server then holds."""

from browser import press_vote, ready, saved, shown
from page_actions import Start, browser_fixture, rate, start_fixture
from rating_studies import TUNED

__all__ = ["browser_fixture", "start_fixture"]


def test_the_next_pages_are_there_before_they_are_wanted(start: Start) -> None:
    _, _, page = start()
    page.wait_for_timeout(300)
    asked: list[str] = []
    page.on("request", lambda request: "/i/" in request.url and asked.append(request.url))
    page.route("**/api/next", lambda route: None)
    for _ in range(5):
        press_vote(page, "j")
    assert asked == []


def test_a_held_key_votes_once(start: Start) -> None:
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


def test_a_press_right_after_a_new_picture_does_not_rate_it(start: Start) -> None:
    served, _, page = start()
    now, later = page.evaluate(PRESS_AT_ONCE)
    assert now == later
    saved(page)
    assert len(served.rows()) == 1


def test_a_double_click_votes_once(start: Start) -> None:
    served, _, page = start()
    before = shown(page)
    page.dblclick('.choice[data-value="good"]', delay=100)
    ready(page, before)
    page.wait_for_timeout(300)
    saved(page)
    assert len(served.rows()) == 1


def test_keys_can_be_changed_and_switched_off(start: Start) -> None:
    served, _, page = start()
    page.keyboard.press("?")
    page.click("#key-good")
    page.keyboard.press("l")
    page.click('[aria-label="Turn off the key for: Bad"]')
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    page.keyboard.press("f")
    page.wait_for_timeout(200)
    assert served.rows() == []
    press_vote(page, "l")
    page.reload()
    ready(page)
    assert page.inner_text('.choice[data-value="good"] kbd') == "L"
    assert page.query_selector('.choice[data-value="bad"] kbd') is None
    press_vote(page, "l")
    saved(page)
    assert [row["value"] for row in served.rows()] == ["good", "good"]


def test_a_key_that_is_taken_moves_and_is_said(start: Start) -> None:
    _, _, page = start()
    page.keyboard.press("?")
    page.click("#key-good")
    page.keyboard.press("f")
    assert page.inner_text("#keys-said") == "Good: key F. Bad no longer has a key."
    page.click("#keys-off")
    assert page.query_selector("#key-list kbd") is None
    page.click("#keys-reset")
    assert page.inner_text("#key-good") == "J"


def test_a_skip_with_a_reason_is_one_key(start: Start) -> None:
    served, _, page = start()
    press_vote(page, "3")
    press_vote(page, "s")
    saved(page)
    assert [(row["value"], row["reason"]) for row in served.rows()] == [
        ("skip", "unsure"),
        ("skip", ""),
    ]


def test_three_pictures_are_rated_one_after_the_other(start: Start) -> None:
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
    first = press_vote(page, "j")
    saved(page)
    page.reload()
    assert ready(page) == first.replace("/0", "/1")
    press_vote(page, "Backspace")
    assert shown(page) == first
    rate(page, watched, ["bad", "bad", "bad"], {})
    saved(page)
    assert list(served.live().values()) == ["bad", "bad", "bad"]


def test_any_of_the_last_votes_can_be_taken_back(start: Start) -> None:
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


def test_zoom_fills_the_stage_and_is_linked_on_both_sides(start: Start) -> None:
    _, _, page = start(kind="compare", right=TUNED, set_size=2)
    page.keyboard.press("z")
    page.keyboard.press("ArrowRight")
    seen = page.locator("#stage .hole img:visible").evaluate_all(
        "all => all.map(i => { const style = getComputedStyle(i), box = i.parentNode;"
        " return [style.transform, Math.round(parseFloat(style.transformOrigin)),"
        " i.alt, box.clientWidth * box.clientHeight]; })"
    )
    assert [alt for _, _, alt, _ in seen] == [f"{s}, image 1 of 2" for s in ("Left", "Right")]
    (transform, spot, _, area), (also, other, _, _) = seen
    assert transform == also
    assert transform.startswith("matrix(3,")
    assert abs(spot - other) <= 1
    stage = page.locator("#stage").bounding_box()
    assert stage is not None
    assert 2 * area > 0.8 * stage["width"] * stage["height"]
    page.keyboard.press("PageDown")
    assert page.inner_text("#zoom-place") == "2 of 2"
    assert page.locator("#stage .hole img:visible").count() == 2
    page.keyboard.press("z")
    page.wait_for_selector(".stage:not(.zoomed)")
    assert page.locator("#stage .hole img:visible").count() == 4


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
    press_vote(page, "j")
    saved(page)
    vote = served.rows()[0]
    latency, hidden = vote["shown"]["latency_ms"], vote["shown"]["hidden_ms"]
    assert hidden >= 690
    took_ms = 1000 * (vote["answered_at"] - vote["shown_at"])
    assert latency >= 100
    assert abs(took_ms - latency - hidden) <= 2


def test_a_jump_of_the_wall_clock_changes_no_latency(start: Start) -> None:
    served, _, page = start()
    for hours in (5, -9):
        page.evaluate(
            "hours => { const real = Date.now; Date.now = () => real() + hours * 3_600_000; }",
            hours,
        )
        press_vote(page, "j")
    saved(page)
    for vote in served.rows():
        took_ms = 1000 * (vote["answered_at"] - vote["shown_at"])
        assert abs(took_ms - vote["shown"]["latency_ms"] - vote["shown"]["hidden_ms"]) <= 2
        assert 0 <= vote["shown"]["latency_ms"] < 60_000


def test_a_screen_reader_hears_what_is_saved(start: Start) -> None:
    _, _, page = start(n=40)
    press_vote(page, "j")
    page.wait_for_function(
        "() => /^Saved, 1 of [0-9]+$/.test(document.querySelector('#live').textContent)"
    )
    assert page.get_attribute("#stage img", "alt") == "The image to rate"


NEVER_OPENS = "IDBFactory.prototype.open = function () { return {} }"


def test_a_browser_database_that_never_opens_is_said_and_votes_are_stored(start: Start) -> None:
    served, _, page = start(lambda _, watched: watched.context.add_init_script(NEVER_OPENS))
    assert "This browser keeps nothing" in page.inner_text("#notices")
    press_vote(page, "j")
    saved(page)
    assert len(served.rows()) == 1


PRESS = """([key, code, shiftKey]) => {
  document.dispatchEvent(new KeyboardEvent('keydown', {key, code, shiftKey, bubbles: true}));
}"""


def test_every_key_shown_works_on_other_keyboards(start: Start) -> None:
    served, _, page = start(n=60)
    presses = {
        ("&", "Digit1"): ("skip", "unclear"),  # French
        ("é", "Digit2"): ("skip", "broken"),
        ("+", "Digit1"): ("skip", "unclear"),  # Czech
        ("٣", "Digit3"): ("skip", "unsure"),  # Arabic
        ("'", "Digit4"): ("skip", "unwell"),
        ("о", "KeyJ"): ("good", ""),  # Russian, a Cyrillic letter
        ("Process", "KeyF"): ("bad", ""),  # an input method
        ("J", "KeyJ"): ("good", ""),  # capitals
    }
    for key, code in presses:
        before = shown(page)
        page.evaluate(PRESS, [key, code, False])
        ready(page, before)
    saved(page)
    assert [(row["value"], row["reason"]) for row in served.rows()] == list(presses.values())
    page.evaluate(PRESS, ["؟", "Slash", True])
    page.wait_for_selector("#help[open]")
    page.keyboard.press("Escape")
    page.evaluate(PRESS, ["z", "KeyW", False])  # French: the letter on the key counts
    page.wait_for_selector(".stage.zoomed")


def test_a_break_is_suggested_after_half_an_hour_of_rating(start: Start) -> None:
    _, _, page = start(lambda _, watched: watched.context.clock.install())
    reminder = page.locator("#notices", has_text="half an hour")
    for minutes in (4, 4, 4, 4, 4, 4, 4, 6, 4, 4, 4, 4, 4, 4, 4):  # 28, then a break, then 28
        press_vote(page, "j")
        page.clock.fast_forward(minutes * 60_000)
    assert reminder.count() == 0
    press_vote(page, "j")
    page.clock.fast_forward(4 * 60_000)
    press_vote(page, "j")
    assert reminder.count() == 1
    page.click("#notices .close")
    page.clock.fast_forward(4 * 60_000)
    press_vote(page, "j")
    assert reminder.count() == 0, "said once, and again after another half hour"
