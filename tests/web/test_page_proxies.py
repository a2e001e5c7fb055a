"""The site behind proxies: under a path, with bodies of no stated length, with a rewritten Host."""

import http.client
import json
import logging
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from browser import Watched, press_vote, ready, saved
from fastapi.routing import iter_route_contexts
from fastapi.testclient import TestClient
from page_actions import browser_fixture
from page_server import Served, serve
from playwright.sync_api import Browser
from proxy import proxy_to
from rating_studies import ADDRESS, RatingApp, make_study

from sayso.base.errors import UserError
from sayso.web.app import MOST_BYTES
from sayso.web.proxies import OWN, check_root_path

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


@pytest.mark.parametrize(
    ("root_path", "keep"), [("", False), ("/rating", False), ("/rating", True)],
    ids=["taken off", "taken off, and said", "left on"],
)  # fmt: skip
def test_a_site_under_a_path_works_everywhere(
    stack: ExitStack, browser: Browser, tmp_path: Path, root_path: str, keep: bool
) -> None:
    served = stack.enter_context(serve(tmp_path, ("ann", "boss"), n=20, root_path=root_path))
    url = stack.enter_context(proxy_to(served.url, prefix="/rating", keep=keep))
    mine = watched(stack, browser, service_workers="allow")
    outside: list[str] = []
    mine.context.on(
        "response",
        lambda r: (
            (r.status >= 400 or not r.url.startswith(("blob:", f"{url}/")))
            and outside.append(r.url)
        ),
    )
    page = mine.open(f"{url}/in/{served.app.links['boss']}")
    ready(page)
    assert page.url == f"{url}/"
    press_vote(page, "j")
    saved(page)
    assert len(served.rows()) == 1
    page.goto(f"{url}/admin")
    for name in ("Raters", "Guideline", "Export", "Progress"):
        page.click(f".tabs >> text={name}")
        page.wait_for_load_state()
        assert page.url.startswith(f"{url}/admin")
        assert page.evaluate("getComputedStyle(document.body).margin") == "0px", "it has its style"
    page.click(".tabs >> text=Raters")
    page.fill("textarea[name=name]", "zoe")
    assert page.input_value("input[name=address][type=url]") == url
    page.click("button[value=add]")
    link = page.input_value("#new-link-1")
    assert link.startswith(f"{url}/in/"), "links begin where the browser sees the site"
    page.goto(f"{url}/admin/guideline")
    page.fill("textarea", "Look twice.")
    page.click("form.editor button >> nth=0")
    page.goto(f"{url}/")
    page.click("#begin-go")
    ready(page)
    page.wait_for_load_state("networkidle")  # signing out gives back what still loads
    page.keyboard.press("?")
    page.click("text=Sign out")
    page.wait_for_selector("#link")
    page.fill("#link", f"{url}/in/{served.app.links['ann']}")
    page.click("main form button")
    page.wait_for_selector("#begin-go")
    paths = {c["path"] for c in mine.context.cookies()}  # pyright: ignore
    assert paths == {root_path or "/"}
    assert not outside
    assert mine.errors == []


def test_links_to_another_path_of_this_host_are_refused(tmp_path: Path) -> None:
    """An admin who typed the page's address: it came without the page that tells the path."""
    boss = RatingApp(make_study(tmp_path), names=("boss",)).client("boss")
    form = {"csrf": boss.token, "action": "add", "name": "zoe", "address": ADDRESS}
    behind = {"Referer": f"{ADDRESS}/rating/admin/raters"}
    found = boss.http.post("/admin/raters", data=form, headers=behind)
    assert found.status_code == 422
    assert f"this site is at {ADDRESS}/rating" in found.text
    form["address"] = f"{ADDRESS}/rating/"
    found = boss.http.post("/admin/raters", data=form, headers=behind)
    assert f'value="{ADDRESS}/rating/in/' in found.text


def test_only_the_path_without_its_slash_is_redirected(tmp_path: Path) -> None:
    app = RatingApp(make_study(tmp_path), root_path="/a/rating")
    browser = TestClient(app.asgi, base_url=ADDRESS, follow_redirects=False)
    found = browser.get("/a/rating")
    assert (found.status_code, found.headers["location"]) == (307, "/a/rating/")
    for path in ("/a/rating/healthz", "/healthz"):
        assert browser.get(path).status_code == 200
    for path in ("/a", "/a/ratings", "/a/rating/a/rating/", "/a/ratinghealthz"):
        assert browser.get(path).status_code == 404
    assert browser.get("/openapi.json").json()["servers"] == [{"url": "/a/rating"}]
    signed_in = browser.get(f"/a/rating/in/{app.links['ann']}").headers
    assert signed_in["location"] == "../"
    assert "; Path=/a/rating;" in signed_in["set-cookie"]


@pytest.mark.parametrize(
    "path", ["sayso", "/say so", "//sayso", "/../x", "/sayso?x", "https://a.org/x", "/a//b", "/é"]
)
def test_what_is_no_path_is_refused(path: str) -> None:
    with pytest.raises(UserError, match="is not a valid path; give one such as /sayso"):
        check_root_path(path)


def test_paths_that_begin_as_the_apps_own_are_refused(tmp_path: Path) -> None:
    app = RatingApp(make_study(tmp_path))
    paths = {str(route.path) for route in iter_route_contexts(app.asgi.routes)}
    own = {path.split("/")[1] for path in paths} - {""}
    for path in own:
        with pytest.raises(UserError, match="clashes with a page of the app"):
            check_root_path(f"/{path}/x")
    assert own == OWN
    assert check_root_path("/sayso/") == "/sayso"
    assert check_root_path("/") == ""


def test_bodies_of_no_stated_length_are_taken(
    stack: ExitStack, browser: Browser, served: Served
) -> None:
    url = stack.enter_context(proxy_to(served.url, chunked=True))
    page = watched(stack, browser).open(f"{url}/in/{served.app.links['ann']}")
    ready(page)
    press_vote(page, "j")
    saved(page)
    assert len(served.rows()) == 1


def send_chunked(served: Served, n_bytes: int) -> tuple[int, str]:
    ann = served.app.client("ann")
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
        page = watched(stack, browser).open(f"{url}/in/{served.app.links['ann']}")
        page.wait_for_selector("#message:not([hidden])")
        said = page.inner_text("#message")
        assert "the proxy in between must pass on the Host header" in said
        assert url in said
        assert "busy" not in said
        page.click("text=Try again")
        page.wait_for_timeout(500)
    found = [r for r in caplog.records if "must pass on Host" in r.getMessage()]
    assert len(found) == 1


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
