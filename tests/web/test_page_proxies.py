"""The site behind proxies: under a path, with bodies of no stated length, with a rewritten Host."""

import http.client
import json
import logging
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from browser import Watched, answer, ready, saved
from page_actions import browser_fixture
from page_server import Served, serve
from playwright.sync_api import Browser
from proxy import proxy_to

from sayso.web.app import MOST_BYTES

__all__ = ["browser_fixture"]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.fixture
def served(stack: ExitStack, tmp_path: Path) -> Served:
    return stack.enter_context(serve(tmp_path, ("ann", "boss"), n=20))


def watched(stack: ExitStack, browser: Browser, **options: object) -> Watched:
    found = Watched(browser, **options)
    stack.callback(found.context.close)
    return found


def test_a_site_under_a_path_works_everywhere(
    stack: ExitStack, browser: Browser, served: Served
) -> None:
    url = stack.enter_context(proxy_to(served.url, prefix="/rating"))
    mine = watched(stack, browser, service_workers="allow")
    outside: list[str] = []
    mine.context.on(
        "response",
        lambda r: (
            (r.status >= 400 or not r.url.startswith(("blob:", f"{url}/")))
            and outside.append(r.url)
        ),
    )
    page = mine.open(f"{url}/in/{served.office.links['boss']}")
    ready(page)
    assert page.url == f"{url}/"
    answer(page, "j")
    saved(page)
    assert len(served.rows()) == 1
    page.goto(f"{url}/admin")
    for name in ("Raters", "Guideline", "Export", "Progress"):
        page.click(f".tabs >> text={name}")
        page.wait_for_load_state()
        assert page.url.startswith(f"{url}/admin")
        assert page.evaluate("getComputedStyle(document.body).margin") == "0px", "it has its style"
    page.goto(f"{url}/admin/guideline")
    page.fill("textarea", "Look twice.")
    page.click("form.editor button >> nth=0")
    page.goto(f"{url}/")
    page.click("#begin-go")
    ready(page)
    page.keyboard.press("?")
    page.click("text=Sign out")
    page.wait_for_selector("#link")
    page.fill("#link", f"{url}/in/{served.office.links['ann']}")
    page.click("main form button")
    page.wait_for_selector("#begin-go")
    assert not outside
    assert mine.errors == []


def test_bodies_of_no_stated_length_are_taken(
    stack: ExitStack, browser: Browser, served: Served
) -> None:
    url = stack.enter_context(proxy_to(served.url, chunked=True))
    page = watched(stack, browser).open(f"{url}/in/{served.office.links['ann']}")
    ready(page)
    answer(page, "j")
    saved(page)
    assert len(served.rows()) == 1


def send_chunked(served: Served, n_bytes: int) -> tuple[int, str]:
    ann = served.office.client("ann")
    cookie = "; ".join(f"{k}={v}" for k, v in ann.http.cookies.items())
    headers = {
        "Cookie": cookie, "X-CSRF-Token": ann.token, "Content-Type": "application/json",
        "Transfer-Encoding": "chunked",
    }  # fmt: skip
    body = json.dumps({"have": [], "n": 1}).encode()
    parts = [b" " * 1000] * (n_bytes // 1000) + [body]
    with closing(http.client.HTTPConnection(urlsplit(served.url).netloc, timeout=30)) as link:
        link.request("POST", "/api/next", iter(parts), headers, encode_chunked=True)
        reply = link.getresponse()
        return reply.status, reply.read().decode()


def test_only_more_bytes_than_allowed_are_refused(served: Served) -> None:
    assert send_chunked(served, 200_000)[0] == 200
    status, said = send_chunked(served, MOST_BYTES + 1000)
    assert status == 413
    assert json.loads(said)["error"]["code"] == "too_large"


def test_a_rewritten_host_is_said_to_raters_and_once_in_the_log(
    stack: ExitStack, browser: Browser, served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    url = stack.enter_context(proxy_to(served.url, host=True))
    with caplog.at_level(logging.WARNING, "sayso.web"):
        page = watched(stack, browser).open(f"{url}/in/{served.office.links['ann']}")
        page.wait_for_selector("#message:not([hidden])")
        said = page.inner_text("#message")
        assert "the proxy in between must hand on the Host header" in said
        assert url in said
        assert "busy" not in said
        page.click("text=Try again")
        page.wait_for_timeout(500)
    told = [r for r in caplog.records if "must hand on Host" in r.getMessage()]
    assert len(told) == 1


@pytest.mark.parametrize("status", [403, 413, 451])
def test_the_page_says_what_the_server_says(
    stack: ExitStack, browser: Browser, served: Served, status: int
) -> None:
    sentence = "The tunnel is for short letters only."
    body = json.dumps({"error": {"code": "odd", "message": sentence, "retry": False}})
    mine = watched(stack, browser)
    page = mine.context.new_page()
    page.route("**/api/next", lambda route: route.fulfill(status=status, body=body))
    page.goto(served.link)
    page.wait_for_selector("#message:not([hidden])")
    assert sentence in page.inner_text("#message")
