"""Sign-in, roles, forged requests, headers, and nothing that leads outside."""

import json
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from itsdangerous import base64_decode, base64_encode
from rating_studies import ADDRESS, RatingApp, make_study
from sqlalchemy import Connection

import sayso.web
from sayso.base.errors import UserError
from sayso.base.files import read_or_make_secret
from sayso.feedback.database import Database
from sayso.web import pages, sessions
from sayso.web.app import HEADERS, MOST_BYTES, create_app
from sayso.web.pages import OFFLINE
from sayso.web.serving import is_loopback
from sayso.web.site import Site
from sayso.web.work import people
from sayso.web.work.guideline_text import to_html

WEB = Path(sayso.web.__file__).parent


@pytest.fixture
def app(tmp_path: Path) -> RatingApp:
    return RatingApp(make_study(tmp_path), names=("ann", "boss", "eve"))


def stranger(app: RatingApp) -> TestClient:
    return TestClient(app.asgi, base_url=ADDRESS, raise_server_exceptions=False)


def test_links_sign_in_and_nothing_else_does(app: RatingApp):
    browser = stranger(app)
    assert browser.get("/api/session").status_code == 401
    assert "sign" in browser.get("/").text.lower()
    wrong = browser.get("/in/not-a-link")
    assert wrong.status_code == 403
    assert not browser.cookies
    response = browser.get(f"/in/{app.links['ann']}", follow_redirects=False)
    assert response.status_code == 303
    cookie = response.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert browser.get("/api/session").json()["rater"] == {"name": "ann", "role": "rater"}


def test_links_are_stored_as_hashes(app: RatingApp):
    stored = str(app.table("select * from raters"))
    assert not any(link in stored for link in app.links.values())


def swapped_digit(cookie: str, at: int) -> str:
    return cookie[:at] + ("A" if cookie[at] != "A" else "B") + cookie[at + 1 :]


def with_later_end(cookie: str) -> str:
    payload, _, mac = cookie.split(".")
    later = int(time.time() + 1000).to_bytes(4, "big")
    return f"{payload}.{base64_encode(later).decode()}.{mac}"


def with_later_epoch(cookie: str) -> str:
    payload, at, mac = cookie.split(".")
    session, rater, epoch = json.loads(base64_decode(payload))
    return f"{base64_encode(json.dumps([session, rater, epoch + 1])).decode()}.{at}.{mac}"


FORGERIES: dict[str, Callable[[str], str]] = {
    "first digit of the signature": lambda cookie: swapped_digit(cookie, cookie.rindex(".") + 1),
    "of the payload": lambda cookie: swapped_digit(cookie, 3),
    "another session": lambda cookie: f"x{cookie}",
    "later end": with_later_end,
    "later epoch": with_later_epoch,
    "nothing": lambda _: "",
    "not ASCII": lambda _: "é.a.b.c",
    "one piece": lambda cookie: cookie.replace(".", "-"),
}


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES)
def test_forged_cookies(app: RatingApp, forge: Callable[[str], str]):
    secret = app.site.secret
    session = sessions.begin(app.table("select id from raters where name = 'ann'")[0][0])
    good = sessions.sign(secret, session)
    assert sessions.verify(secret, good) == session
    assert sessions.verify(secret, forge(good)) is None
    for cookie, status in ((good, 200), (forge(good), 401)):
        header = {"Cookie": f"{app.site.cookie}={cookie}".encode()}
        assert stranger(app).get("/api/session", headers=header).status_code == status


def test_a_cookie_of_another_server_is_refused(app: RatingApp):
    session = sessions.begin(app.table("select id from raters where name = 'ann'")[0][0])
    cookie = sessions.sign(b"another secret", session)
    assert sessions.verify(app.site.secret, cookie) is None


def test_pictures_without_a_session_are_refused_as_such(app: RatingApp):
    url = app.client().pages()[0]["items"][0]["image"]["url"]
    response = stranger(app).get(url, follow_redirects=False)
    assert (response.status_code, response.json()["error"]["code"]) == (401, "not_signed_in")
    other = app.client("eve").http.get(url)
    assert (other.status_code, other.json()["error"]["code"]) == (404, "unknown_item")


def test_sessions_end(app: RatingApp, monkeypatch: pytest.MonkeyPatch):
    secret, session = app.site.secret, sessions.begin("r")
    cookie = sessions.sign(secret, session)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + sessions.LIFETIME_S - 5)
    found = sessions.verify(secret, cookie)
    assert found
    assert found == session
    assert found.is_half_over
    again = sessions.verify(secret, sessions.sign(secret, found))
    assert again
    assert not again.is_half_over, "signing it anew begins its time again"
    monkeypatch.setattr(time, "time", lambda: now + sessions.LIFETIME_S + 5)
    assert sessions.verify(secret, cookie) is None


def test_a_cookie_of_an_older_version_asks_to_sign_in_again(app: RatingApp):
    until = int(time.time() + 1000)
    old = f"0a1b2c.{app.table('select id from raters')[0][0]}.{until}.0.{'ab' * 32}"
    assert sessions.verify(app.site.secret, old) is None


def test_a_rater_who_is_switched_off_is_out(app: RatingApp):
    ann = app.client()
    with app.site.write() as db:
        people.set_active(db, "ann", False)
    assert ann.http.get("/api/session").status_code == 401
    assert ann.post("/api/next", {}).status_code == 401


def test_changes_need_the_token(app: RatingApp):
    ann = app.client()
    for token in ("", "0" * 64, "é"):
        response = ann.http.post("/api/next", json={}, headers={"X-CSRF-Token": token.encode()})
        assert (response.status_code, response.json()["error"]["code"]) == (403, "csrf")
    boss = app.client("boss")
    ann.token = boss.token
    assert ann.post("/api/next", {}).status_code == 403


def test_other_sites_are_refused(app: RatingApp):
    ann = app.client()
    for header in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        response = ann.http.post(
            "/api/next", json={}, headers={"X-CSRF-Token": ann.token, **header}
        )
        assert response.status_code == 403
        assert stranger(app).post("/sign-in", data={}, headers=header).status_code == 403
    same = {"X-CSRF-Token": ann.token, "Origin": ADDRESS}
    assert ann.http.post("/api/next", json={}, headers=same).status_code == 200


def test_addresses_that_are_none(app: RatingApp):
    """They are refused like any other, not answered with an error of the server."""
    ann, browser = app.client(), stranger(app)
    odd = {"X-CSRF-Token": ann.token, "Origin": "http://["}
    assert ann.http.post("/api/next", json={}, headers=odd).status_code == 403
    token = re.search(r'name="csrf"\s+value="([\w-]+)"', browser.get("/").text)
    assert token
    for link in ("http://[abc", "http://[abc/in/x", "//", "", "/in/?"):
        form = {"csrf": token[1], "link": link}
        assert browser.post("/sign-in", data=form).status_code == 403
    good = f" {ADDRESS}/in/{app.links['ann']}?from=mail "
    response = browser.post("/sign-in", data={**form, "link": good}, follow_redirects=False)
    assert response.status_code == 303


def test_sign_in_form_and_sign_out(app: RatingApp):
    browser = stranger(app)
    token = re.search(r'name="csrf"\s+value="([\w-]+)"', browser.get("/").text)
    assert token
    form = {"csrf": token[1], "link": f"{ADDRESS}/in/{app.links['ann']}"}
    assert browser.post("/sign-in", data={**form, "csrf": "no"}).status_code == 403
    assert browser.post("/sign-in", data={**form, "link": "no"}).status_code == 403
    browser.post("/sign-in", data=form)
    csrf = browser.get("/api/session").json()["csrf"]
    browser.post("/out", data={"csrf": csrf})
    assert browser.get("/api/session").status_code == 401


@pytest.mark.parametrize(
    ("path", "allowed"),
    [("/admin", "boss eve"), ("/admin/raters", "boss"), ("/admin/guideline", "boss"),
     ("/admin/checks", "boss eve"), ("/admin/disagreements", "boss eve"),
     ("/admin/agreement", "boss eve"), ("/admin/export", "boss")],
)  # fmt: skip
def test_roles(app: RatingApp, path: str, allowed: str):
    for name in app.names:
        status = app.client(name).http.get(path).status_code
        assert (status == 200) == (name in allowed.split()), name
        assert status in (200, 403)
    assert stranger(app).get(path, follow_redirects=False).status_code == 303


def test_admin_changes_need_role_and_token(app: RatingApp):
    eve, boss = app.client("eve"), app.client("boss")
    form = {"csrf": eve.token, "task": app.site.task, "action": "close"}
    assert eve.http.post("/admin/task", data=form).status_code == 403
    assert boss.http.post("/admin/task", data=form).status_code == 403
    assert app.table("select state from tasks") == [("open",)]


def test_headers_of_every_kind_of_response(app: RatingApp):
    ann = app.client()
    url = ann.pages()[0]["items"][0]["image"]["url"]
    for path in ("/", "/api/session", url, "/nothing", "/static/style.css", "/healthz", "/admin"):
        headers = ann.http.get(path).headers
        assert HEADERS.items() <= {k: headers.get(k) for k in HEADERS}.items(), path
        assert "server" not in headers
    assert "'unsafe" not in HEADERS["Content-Security-Policy"]
    assert "http" not in HEADERS["Content-Security-Policy"]


def test_local_server_responds_only_to_its_own_name(tmp_path: Path):
    app = RatingApp(make_study(tmp_path), names=(), local=True)
    for host in ("127.0.0.1:8321", "localhost", "[::1]:8321"):
        response = stranger(app).get("/api/session", headers={"Host": host})
        assert response.json()["rater"]["name"] == "local"
    for host in ("evil.example", "evil.example:8321", "127.0.0.1.evil.example"):
        assert stranger(app).get("/", headers={"Host": host}).status_code == 400


def test_local_mode_needs_no_sign_in_but_the_token(tmp_path: Path):
    app = RatingApp(make_study(tmp_path), names=(), local=True)
    assert stranger(app).post("/api/next", json={}).status_code == 401
    me = app.client("local")
    assert me.work() == 12
    assert me.http.get("/admin").status_code == 200
    assert {r.rater for r in app.study.feedback.ratings()} == {"local"}


@pytest.mark.parametrize(
    ("host", "inside"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("127.3.2.1", True),
     ("0.0.0.0", False), ("::", False), ("192.168.1.5", False), ("example.org", False)],
)  # fmt: skip
def test_loopback(host: str, inside: bool):
    assert is_loopback(host) is inside


@pytest.mark.parametrize(
    ("host", "status"),
    [("127.0.0.1:8321", 200), ("localhost", 200), ("LOCALHOST:1", 200), ("127.3.2.1:8321", 200),
     ("[::1]", 200), ("[::1]:8321", 200), ("evil.example", 400), ("evil.example:8321", 400),
     ("127.0.0.1.evil.example", 400), ("[::1].evil.example", 400), ("192.168.1.5", 400),
     ("", 400), ("[::1", 400)],
)  # fmt: skip
def test_a_local_server_responds_to_names_of_this_machine(tmp_path: Path, host: str, status: int):
    local = RatingApp(make_study(tmp_path), names=(), local=True)
    assert stranger(local).get("/api/session", headers={"Host": host}).status_code == status


def test_secret_is_for_the_owner_only(tmp_path: Path):
    path = tmp_path / "server.secret"
    secret = read_or_make_secret(path)
    assert len(secret) == 32
    assert read_or_make_secret(path) == secret
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]
    path.chmod(0o644)
    with pytest.raises(UserError, match="chmod 600"):
        read_or_make_secret(path)
    path.chmod(0o600)
    path.write_text("zzz")
    with pytest.raises(UserError, match="damaged"):
        read_or_make_secret(path)


def test_large_requests_are_refused(app: RatingApp):
    ann = app.client()
    response = ann.http.post("/api/votes", content=b"x" * (MOST_BYTES + 1))
    assert response.status_code == 413

    def chunks(n: int) -> Iterator[bytes]:
        for _ in range(n):
            yield b"x" * 1000

    # of no stated length: counted as they come
    token = {"X-CSRF-Token": ann.token}
    assert ann.http.post("/api/votes", content=chunks(1), headers=token).status_code == 422
    assert ann.http.post("/api/votes", content=chunks(MOST_BYTES // 1000 + 1)).status_code == 413


def test_paths_do_not_leave_the_static_folder(app: RatingApp):
    ann = app.client()
    for path in (
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/static/..%2fapp.py",
        "/i/../../x/0",
    ):
        assert ann.http.get(path).status_code == 404


def test_no_page_asks_anything_of_another_host():
    """Promise 9: no address of another host in any file that a browser gets, and no inline code."""
    files = [*WEB.glob("static/*"), *WEB.glob("templates/**/*.html")]
    assert len(files) > 10
    for file in files:
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(
            r"""(?:https?:)?//[a-z0-9-]+\.[a-z]""", re.sub(r"^\s*//.*$", "", text, flags=re.M)
        ), file
        if file.suffix == ".html":
            assert not re.search(r"<script(?![^>]*src=)|<style|\son\w+=|\sstyle=", text), file


def test_what_browsers_keep_for_offline_names_nobody(app: RatingApp):
    ann = app.client()
    for url in OFFLINE:
        assert ann.http.get(url).content == stranger(app).get(url).content
        assert "ann" not in re.split(r"\W+", ann.http.get(url).text)
        assert app.study.info.name not in ann.http.get(url).text
    worker = ann.http.get("/worker.js")
    assert worker.headers["content-type"].startswith("text/javascript")
    assert f"const FILES = {json.dumps(OFFLINE)}" in worker.text


def test_another_file_makes_another_worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    before = pages.worker_script.__wrapped__()
    assert before == pages.worker_script.__wrapped__()
    shutil.copytree(pages.STATIC, tmp_path / "static")
    with (tmp_path / "static" / "style.css").open("a") as style:
        style.write("/* more */")
    monkeypatch.setattr(pages, "STATIC", tmp_path / "static")
    after = pages.worker_script.__wrapped__()
    assert before.split("\n")[1:] == after.split("\n")[1:]
    assert before != after


def test_guideline_text_can_hold_no_script():
    html = to_html("# Rules & more\n\n<script>alert(1)</script>\n\n- **one**\n- two\nlast line")
    assert "<script" not in html
    assert "<h2>Rules &amp; more</h2>" in html
    assert "<ul><li><strong>one</strong></li><li>two</li></ul><p>last line</p>" in html


def test_signing_out_gives_the_pages_back(app: RatingApp):
    ann, eve = app.client(), app.client("eve")
    assert len(ann.pages(10)) == 10
    assert len(eve.pages(10)) == 2
    ann.http.post("/out", data={"csrf": ann.token})
    assert len(eve.pages(10)) == 10


def test_signing_in_leads_to_no_other_site(app: RatingApp):
    for path, leads in (("/admin", "./admin"), ("//evil.example", "./"), ("http://evil", "./")):
        response = app.client().http.get("/sign-in", params={"next": path}, follow_redirects=False)
        assert (response.status_code, response.headers["location"]) == (303, leads)
    assert stranger(app).get("/sign-in", params={"next": "/admin"}).status_code == 200


ENDS: dict[str, Callable[[RatingApp], object]] = {
    "signing out": lambda o: (me := o.client()).http.post("/out", data={"csrf": me.token}),
    "a new link": lambda o: changed(o, lambda db: people.new_link(db, "ann")),
    "off and on": lambda o: changed(
        o, lambda db: [people.set_active(db, "ann", on) for on in (False, True)]
    ),
}


def changed(app: RatingApp, change: Callable[[Connection], object]) -> None:
    with app.site.write() as db:
        change(db)


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_a_stolen_session_ends_at_once_on_every_worker(
    app: RatingApp, end: Callable[[RatingApp], object]
):
    ann, eve = app.client(), app.client("eve")
    worker = create_app(Site(app.study, Database(app.site.database.url), app.site.task,
                             False, app.clock))  # fmt: skip
    thief = TestClient(worker, base_url=ADDRESS, cookies=dict(ann.http.cookies))
    assert thief.get("/api/session").json()["rater"]["name"] == "ann"
    end(app)
    for browser in (thief, ann.http):
        assert browser.get("/api/session").status_code == 401
    assert ann.post("/api/next", {}).status_code == 401
    assert eve.http.get("/api/session").status_code == 200


@pytest.mark.parametrize(
    "header",
    ["Forwarded", "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "Via", "X-Real-IP"],
)
def test_a_server_without_sign_in_refuses_proxies(tmp_path: Path, header: str):
    local = RatingApp(make_study(tmp_path), names=(), local=True)
    for path in ("/", "/api/session", "/admin"):
        response = stranger(local).get(path, headers={header: "1.2.3.4"})
        assert response.status_code == 400
        assert "sayso raters STUDY add NAME" in response.json()["error"]["message"]
    assert stranger(local).get("/api/session").status_code == 200


def test_a_server_started_alone_asks_for_sign_in_once_there_are_raters(tmp_path: Path):
    app = RatingApp(make_study(tmp_path), names=(), local=True)
    me = app.client("local")
    assert me.http.get("/admin").status_code == 200
    with app.site.write() as db:
        link = people.add(db, "ann", "rater")
    behind_proxy = {"Host": "rating.example", "X-Forwarded-For": "1.2.3.4"}
    assert stranger(app).get("/", headers=behind_proxy).status_code == 200
    assert me.http.get("/api/session").status_code == 401
    assert me.post("/api/next", {}).status_code == 401
    assert stranger(app).get("/api/session").status_code == 401
    ann = stranger(app)
    ann.get(f"/in/{link}")
    assert ann.get("/api/session").json()["rater"]["name"] == "ann"


def test_the_only_admin_cannot_be_switched_off(app: RatingApp):
    with app.site.write() as db:
        with pytest.raises(UserError, match="boss is the only admin; add another admin"):
            people.set_active(db, "boss", False)
        people.add(db, "second", "admin")
        people.set_active(db, "boss", False)
        with pytest.raises(UserError, match="second is the only admin"):
            people.set_active(db, "second", False)


def test_no_redirect_names_the_host_that_a_request_claims(app: RatingApp):
    for path in ("/admin/", "/api/session/", "/static/", "/in/x/", "/sign-in/"):
        response = stranger(app).get(path, headers={"Host": "evil.example"}, follow_redirects=False)
        assert "evil.example" not in response.headers.get("location", "")


def test_head_is_handled_as_get_without_a_body(app: RatingApp):
    for path in ("/", "/healthz", "/api/session", "/static/style.css"):
        browser = app.client().http
        head, get = browser.head(path), browser.get(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == get.headers["content-length"]
