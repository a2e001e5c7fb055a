"""The rating page in real Chromium when who is signed in, the task or what is left changes."""

import pytest
from browser import Watched, press_vote, ready, saved, shown
from page_actions import Start, browser_fixture, rate, start_fixture
from page_server import Served
from playwright.sync_api import Page, Route
from rating_studies import TUNED, add_images

from sayso.web.work.opening import open_task
from sayso.web.work.tasks import TaskOptions

__all__ = ["browser_fixture", "start_fixture"]

BOTH = ("ann", "bob")
SOMEBODY_ELSE = "#message h1:has-text('Another rater has signed in here')"


def signs_in(page: Page, link: str) -> None:
    page.wait_for_selector("#link")
    page.fill("#link", link)
    page.click("main form button")


def respond_as_somebody_else(
    served: Served, watched: Watched, page: Page, expected: dict[str, str]
) -> None:
    """Ann answers, Bob signs in in another tab of her browser, Ann answers once more."""
    rate(page, watched, ["good"], expected)
    saved(page)
    theirs = watched.open(served.link_of("bob"))
    ready(theirs)
    theirs.close()
    page_id, number = shown(page).rsplit("/", 1)
    expected[watched.items[page_id][int(number)]] = "bad"
    page.keyboard.press("f")
    page.wait_for_selector(SOMEBODY_ELSE)
    page.keyboard.press("f")
    assert [row["rater"] for row in served.rows()] == ["ann"]
    assert page.inner_text("#saved") == "1 waiting: another rater has signed in"


def test_no_vote_goes_out_in_the_name_of_somebody_else(start: Start) -> None:
    served, watched, page = start(names=BOTH)
    expected: dict[str, str] = {}
    respond_as_somebody_else(served, watched, page, expected)
    page.click("#message button:has-text('Sign in')")
    signs_in(page, served.link)
    ready(page)
    saved(page)
    assert served.live() == expected
    assert {row["rater"] for row in served.rows()} == {"ann"}


def test_the_page_goes_on_when_its_rater_is_back(start: Start) -> None:
    served, watched, page = start(names=BOTH)
    expected: dict[str, str] = {}
    respond_as_somebody_else(served, watched, page, expected)
    watched.open(served.link).close()
    page.evaluate("window.dispatchEvent(new Event('focus'))")
    page.wait_for_selector("#rating:not([hidden])")
    saved(page)
    rate(page, watched, ["skip"], expected)
    saved(page)
    assert served.live() == expected
    assert {row["rater"] for row in served.rows()} == {"ann"}


@pytest.mark.parametrize(
    ("name", "said"), [("", "You are signed out"), ("bob", "Another rater has signed in here")]
)
def test_a_picture_refused_without_the_session_is_no_broken_picture(
    start: Start, name: str, said: str
) -> None:
    held: list[Route] | None = []

    def hold(_: Served, watched: Watched) -> None:
        watched.context.route(
            "**/i/**", lambda route: route.continue_() if held is None else held.append(route)
        )

    served, watched, page = start(hold, wait=False, names=BOTH)
    reports: list[str] = []
    page.on("request", lambda request: "/api/release" in request.url and reports.append(name))
    page.wait_for_selector("#stage .frame")
    watched.context.clear_cookies()
    if name:
        watched.context.request.get(served.link_of(name))
    for route in held:
        route.continue_()
    held = None
    page.wait_for_selector(f"#message h1:has-text('{said}')")
    page.wait_for_load_state("networkidle")
    assert page.inner_text("#notices") == ""
    assert served.refused() == 0
    if not name:
        assert reports == []
    page.click("#message button:has-text('Sign in')")
    signs_in(page, served.link)
    ready(page)
    press_vote(page, "j")
    saved(page)
    assert len(served.live()) == 1


def test_undo_goes_back_to_no_vote_of_another_task(start: Start) -> None:
    served, _, page = start()
    rated = press_vote(page, "j")
    saved(page)
    site, study = served.app.site, served.app.study
    add_images(study, TUNED, 4)
    rating_task, options = site.task, TaskOptions("compare", right=TUNED, attention_share=0.0)
    site.task = open_task(site.database, study, options)
    page.reload()
    compared = ready(page)
    assert page.locator("#strip li").count() == 0
    page.keyboard.press("Backspace")
    page.wait_for_function("document.querySelector('#live').textContent.startsWith('There is no')")
    assert shown(page) == compared
    assert [row["value"] for row in served.rows()] == ["good"]
    site.task = rating_task
    page.reload()
    ready(page)
    press_vote(page, "Backspace")
    assert shown(page) == rated


NOTE_TITLES = """() => {
  window.titles = [];
  const message = document.querySelector('#message');
  new MutationObserver(() => titles.push(message.querySelector('h1').textContent))
    .observe(message, {childList: true});
}"""


def test_what_this_page_holds_itself_is_not_said_to_be_with_others(start: Start) -> None:
    _, _, page = start(n=10)
    page.evaluate(NOTE_TITLES)
    for _ in range(9):
        press_vote(page, "j")
    page.wait_for_timeout(200)
    page.keyboard.press("j")
    page.wait_for_selector("text=All done. Thank you!")
    assert set(page.evaluate("titles")) == {"Almost done", "All done. Thank you!"}


def more_may_come(route: Route) -> None:
    """The server's answer while others hold the rest: no pages, and not done."""
    response = route.fetch()
    route.fulfill(response=response, json={**response.json(), "done": False})


def test_work_that_others_hold_is_waited_for_and_comes_by_itself(start: Start) -> None:
    def take_three(served: Served, watched: Watched) -> None:
        bob.append(served.app.client("bob"))
        assert len(bob[0].pages(3)) == 3
        watched.context.route("**/api/next", more_may_come)

    bob = []
    served, _, page = start(take_three, names=BOTH, n=10)
    for _ in range(6):
        press_vote(page, "j")
    last = shown(page)
    page.keyboard.press("j")
    page.wait_for_selector("text=Other raters have the remaining pages. This page keeps checking.")
    bob[0].http.post("/out", data={"csrf": bob[0].token})
    ready(page, last)
    press_vote(page, "f")
    saved(page)
    assert sorted(served.live().values()) == ["bad"] + ["good"] * 7


def test_a_pause_holds_the_page_and_closing_ends_it(start: Start) -> None:
    served, _, page = start()
    come_back = "window.dispatchEvent(new Event('focus'))"
    served.set_state("paused")
    for _ in range(4):  # until more pages are asked for
        page.keyboard.press("j")
        page.wait_for_timeout(250)
    page.wait_for_selector("h1:has-text('Paused')")
    saved(page)
    responded = len(served.live())
    page.keyboard.press("j")
    page.keyboard.press("Backspace")
    page.evaluate(come_back)
    page.wait_for_load_state("networkidle")
    assert page.is_visible("h1:has-text('Paused')")
    served.set_state("open")
    page.evaluate(come_back)
    page.wait_for_selector("#rating:not([hidden])")
    press_vote(page, "j")
    saved(page)
    assert len(served.rows()) == responded + 1
    served.set_state("closed")
    page.keyboard.press("j")
    page.wait_for_selector("h1:has-text('Closed')")
    page.evaluate(come_back)
    page.wait_for_load_state("networkidle")
    assert page.is_visible("h1:has-text('Closed')")
