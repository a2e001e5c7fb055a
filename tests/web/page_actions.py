"""What several tests of the rating page begin with and do."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from browser import Watched, chromium, press_vote, ready
from page_server import Served, serve
from playwright.sync_api import Browser, Page

KEYS = {"good": "j", "bad": "f", "skip": "s", "left": "f", "right": "j", "tie": "t"}

Before = Callable[[Served, Watched], None] | None
Start = Callable[..., tuple[Served, Watched, Page]]


@pytest.fixture(scope="module", name="browser")
def browser_fixture() -> Iterator[Browser]:
    """Chromium, started once for a file of tests."""
    with chromium() as running:
        yield running


@pytest.fixture(name="start")
def start_fixture(browser: Browser, tmp_path: Path) -> Iterator[Start]:
    """A server and a page on it; at the end nothing foreign was asked for and no script failed."""
    with ExitStack() as stack:
        watched = Watched(browser)

        def run(
            before: Before = None, wait: bool = True, **task: object
        ) -> tuple[Served, Watched, Page]:
            served = stack.enter_context(serve(tmp_path, **task))  # type: ignore[arg-type]
            if before:
                before(served, watched)
            page = watched.open(served.link)
            if wait:
                ready(page)
            return served, watched, page

        yield run
        watched.context.close()
        assert watched.foreign == []
        assert watched.errors == []


def rate(page: Page, watched: Watched, values: list[str], expected: dict[str, str]) -> None:
    """Answer one page after the other by key, and note which item got which answer."""
    for value in values:
        page_id, number = press_vote(page, KEYS[value]).rsplit("/", 1)
        expected[watched.items[page_id][int(number)]] = value
