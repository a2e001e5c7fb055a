"""Chromium for the tests of the rating page, and the few things they do with it again and again."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

GUARD_MS = 130  # a little more than the page's own guard
SHOWN = "() => document.querySelector('#stage')?.dataset.shown ?? ''"
AXE_RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


@contextmanager
def chromium() -> Iterator[Browser]:
    """The system's Chromium; a machine without it fails, it does not skip."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.fail("these tests need Chromium; install it with: apt-get install -y chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


class Watched:
    """A browser context that notes foreign requests, script errors and refusals by the CSP."""

    def __init__(self, browser: Browser, **options: object) -> None:
        # a worker would stand between the page and the answers that tests put in its way
        options.setdefault("service_workers", "block")
        self.foreign: list[str] = []
        self.errors: list[str] = []
        self.items: dict[str, list[str]] = {}  # page id → its item ids, as the server handed out
        self.context: BrowserContext = browser.new_context(**options)  # pyright: ignore
        self.context.set_default_timeout(20_000)
        self.context.on("request", lambda r: self._host(r.url))
        self.context.on("page", self._watch)

    def open(self, url: str) -> Page:
        page = self.context.new_page()
        page.goto(url)
        return page

    def _watch(self, page: Page) -> None:
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda m: "Refused to" in m.text and self.errors.append(m.text))
        page.on("response", self._pages)

    def _pages(self, response: object) -> None:
        if response.url.endswith("/api/next") and response.ok:  # pyright: ignore
            for page in response.json()["pages"]:  # pyright: ignore
                items = page.get("items") or [page]
                # a page that was answered in part comes again with fewer items
                self.items.setdefault(page["page_id"], [item["item_id"] for item in items])

    def _host(self, url: str) -> None:
        if urlsplit(url).scheme in ("http", "https") and urlsplit(url).hostname != "127.0.0.1":
            self.foreign.append(url)


def shown(page: Page) -> str:
    """What is on screen: page id and the number of the picture asked about."""
    return page.evaluate(SHOWN)


def ready(page: Page, before: str = "") -> str:
    """Wait until something other than `before` is on screen and takes answers."""
    page.wait_for_function(
        "b => (document.querySelector('#stage')?.dataset.shown ?? b) !== b && "
        "!document.querySelector('#rating').hidden",
        arg=before,
    )
    page.wait_for_timeout(GUARD_MS)
    return shown(page)


def press_vote(page: Page, key: str) -> str:
    """Press a key when the page takes answers; returns what was on screen."""
    before = shown(page)
    page.keyboard.press(key)
    ready(page, before)
    return before


def saved(page: Page) -> None:
    """Wait until nothing waits any more."""
    page.wait_for_selector('#saved[data-state="saved"]', timeout=15_000)


def waits(page: Page, count: int) -> None:
    """Wait until the foot says that so many answers wait."""
    page.wait_for_function(
        "n => document.querySelector('#saved').textContent.startsWith(n)", arg=f"{count} waiting"
    )


def violations(page: Page) -> list[str]:
    """What axe finds on the page: rule and the first element of each."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page, options={"runOnly": AXE_RULES}).response["violations"]
    return [f"{v['id']}: {v['nodes'][0]['target']} {v['help']}" for v in found]


def scrolls_sideways(page: Page) -> bool:
    """Whether the document is wider than the window."""
    return page.evaluate("document.documentElement.scrollWidth > innerWidth")
