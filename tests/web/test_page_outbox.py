"""The rating page in real Chromium when something fails: no answer is lost, and it is said."""

import json
from collections.abc import Callable
from pathlib import Path

from browser import Watched, press_vote, ready, saved, scrolls_sideways, shown, violations, waits
from page_actions import Start, browser_fixture, rate, start_fixture
from page_server import Served, serve
from playwright.sync_api import Browser, Route

from sayso.web.pages import OFFLINE

__all__ = ["browser_fixture", "start_fixture"]


def with_guideline(served: Served, _: Watched) -> None:
    served.write_guideline("Rate an image **good** if it shows what the prompt asks for.")


def fails_with(status: int, code: str = "failed", message: str = "Not now.") -> Callable:
    body = json.dumps({"error": {"code": code, "message": message}})
    return lambda route: route.fulfill(status=status, body=body, content_type="application/json")


def test_fifty_pictures_three_undone_ten_offline(start: Start) -> None:
    served, watched, page = start()
    expected: dict[str, str] = {}
    rate(page, watched, ["good", "bad", "skip", "good", "bad"] * 10, expected)
    for _ in range(3):
        press_vote(page, "Backspace")
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


def test_a_busy_server_keeps_votes_over_a_reload(start: Start) -> None:
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


def test_a_refused_vote_is_kept_and_can_be_sent_again(start: Start) -> None:
    served, watched, page = start()
    watched.context.route("**/api/votes", fails_with(409, "vote_conflict", "Already answered."))
    expected: dict[str, str] = {}
    rate(page, watched, ["good"], expected)
    page.wait_for_selector("#refused-open:not([hidden])")
    page.reload()
    ready(page)
    assert page.inner_text("#refused-open") == "1 vote refused"
    page.click("#refused-open")
    assert "Already answered." in page.inner_text("#refused-list")
    with page.expect_download() as download:
        page.click("#refused-file")
    kept = json.loads(download.value.path().read_text())
    assert kept[0]["vote"]["value"] == "good"
    watched.context.unroute("**/api/votes")
    page.click('button:has-text("Resend")')
    page.wait_for_selector("#refused-open", state="hidden")
    saved(page)
    assert served.live() == expected


def test_leaving_with_unsent_votes_warns(start: Start) -> None:
    _, watched, page = start()
    watched.context.route("**/api/votes", fails_with(503))
    press_vote(page, "j")
    waits(page, 1)
    kinds: list[str] = []
    page.on("dialog", lambda dialog: (kinds.append(dialog.type), dialog.accept()))
    page.reload()
    assert kinds == ["beforeunload"]


def test_one_tab_rates_the_other_stands_aside(start: Start) -> None:
    served, watched, first = start()
    press_vote(first, "j")
    second = watched.open(first.url)
    second.wait_for_selector("text=Open in another tab")
    press_vote(first, "j")
    second.click("text=Rate here")
    ready(second)
    first.wait_for_selector("text=Open in another tab")
    first.keyboard.press("f")
    press_vote(second, "f")
    saved(second)
    assert sorted(served.live().values()) == ["bad", "good", "good"]


def test_a_missing_picture_is_reported_and_passed_over(start: Start) -> None:
    calls: list[Route] = []

    def before(_: Served, watched: Watched) -> None:
        watched.context.route("**/i/**", lambda route: _gone_once(route, calls))

    served, _, page = start(before)
    page.wait_for_selector('.notice[data-key="broken"]')
    page.wait_for_load_state("networkidle")  # the report goes out with the notice
    assert served.refused() == 1
    press_vote(page, "j")
    saved(page)
    assert len(served.live()) == 1


def _gone_once(route: Route, seen: list[Route]) -> None:
    first = not seen
    seen.append(route)
    if first:
        return fails_with(404, "gone")(route)
    return route.continue_()


def test_the_guideline_comes_first_and_again_when_it_changes(start: Start) -> None:
    served, _, page = start(with_guideline, wait=False)
    page.wait_for_selector("#begin-text >> text=Rate an image")
    page.keyboard.press("j")
    page.click("#begin-go")
    ready(page)
    assert served.rows() == []
    page.keyboard.press("g")
    assert "what the prompt asks for" in page.inner_text("#guide-text")


def test_done_paused_and_closed_are_said(start: Start) -> None:
    served, _, page = start(n=10)
    for _ in range(9):
        press_vote(page, "j")
    page.keyboard.press("j")
    page.wait_for_selector("text=All done. Thank you!")
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


def test_a_new_guideline_in_mid_session_is_read_and_nothing_is_lost(start: Start) -> None:
    served, watched, page = start()
    expected: dict[str, str] = {}
    rate(page, watched, ["good", "bad"], expected)
    saved(page)
    for path in ("**/api/votes", "**/api/next"):
        watched.context.route(path, fails_with(503))
    rate(page, watched, ["good", "bad", "good"], expected)
    served.write_guideline("New: the number must be right.")
    watched.context.unroute("**/api/next")
    page.wait_for_selector("#begin-text >> text=the number must be right")
    assert len(served.rows()) == 2
    watched.context.unroute("**/api/votes")
    served.write_guideline("Newer: the colour too.", base_version=1)
    page.click("#begin-go")
    page.wait_for_selector("#begin-text >> text=the colour too")
    page.click("#begin-go")
    ready(page)
    rate(page, watched, ["bad", "good"], expected)
    saved(page)
    assert served.live() == expected
    versions = [row["shown"]["guideline_version"] for row in served.rows()]
    assert versions == [0] * 5 + [2] * 2


def test_a_task_closed_in_mid_session_keeps_what_is_rated(start: Start) -> None:
    served, watched, page = start()
    expected: dict[str, str] = {}
    rate(page, watched, ["good"], expected)
    watched.context.set_offline(True)
    rate(page, watched, ["bad", "bad", "good"], expected)
    waits(page, 3)
    served.set_state("closed")
    sent: list[int] = []
    page.on("response", lambda r: r.url.endswith("/api/votes") and sent.append(r.status))
    watched.context.set_offline(False)
    page.wait_for_selector("h1:has-text('Closed')")
    saved(page)
    page.keyboard.press("j")
    page.wait_for_timeout(1500)
    assert sent == [410, 410, 410]
    assert served.live() == expected
    assert [row["surplus"] for row in served.rows()] == [False, True, True, True]
    assert page.is_hidden("#refused-open")
    served.set_state("open")
    page.click("text=Check again")
    ready(page)
    rate(page, watched, ["good"], expected)
    saved(page)
    assert served.live() == expected


WHEN_FORGOTTEN = """async () => {
  for (let i = 0; i < 100 && (await caches.has('sayso-old')); i++) {
    await new Promise((done) => setTimeout(done, 50));
  }
  return caches.keys();
}"""


def test_the_worker_deletes_only_caches_of_its_own(browser: Browser, tmp_path: Path) -> None:
    with serve(tmp_path) as served:
        watched = Watched(browser, service_workers="allow")
        page = watched.open(f"{served.url}/healthz")
        page.evaluate("Promise.all(['sayso-old', 'other'].map((name) => caches.open(name)))")
        page.goto(served.link)
        names = page.evaluate(WHEN_FORGOTTEN)
        watched.context.close()
        assert len(names) == 2
        assert "other" in names


KEPT = """async () => {
  const found = await Promise.all((await caches.keys()).map(async (name) =>
    (await (await caches.open(name)).keys()).map(({ url }) => new URL(url).pathname)));
  return found.flat().sort();
}"""


def test_a_reload_without_a_connection_says_what_waits(browser: Browser, tmp_path: Path) -> None:
    with serve(tmp_path) as served:
        watched = Watched(browser, service_workers="allow")
        page = watched.open(served.link)
        ready(page)
        page.evaluate("navigator.serviceWorker.ready.then(() => 0)")
        expected: dict[str, str] = {}
        rate(page, watched, ["good"], expected)
        saved(page)
        watched.context.set_offline(True)
        rate(page, watched, ["bad", "skip"], expected)
        waits(page, 2)
        page.on("dialog", lambda dialog: dialog.accept())
        page.reload()
        page.wait_for_selector("text=2 votes are waiting on this device.")
        assert page.evaluate(KEPT) == sorted(f"/{name}" for name in OFFLINE)
        page.set_viewport_size({"width": 320, "height": 640})
        assert violations(page) == []
        assert not scrolls_sideways(page)
        watched.context.set_offline(False)
        ready(page)
        saved(page)
        assert served.live() == expected
        assert (watched.foreign, watched.errors) == ([], [])
        watched.context.close()
