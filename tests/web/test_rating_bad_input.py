"""What goes wrong while people rate: a clear response, and nothing lost."""

import shutil
import socket
import struct
import zlib
from pathlib import Path

import pytest
from rating_studies import RatingApp, items_of, make_study

from sayso.base.errors import UserError
from sayso.stages.rate import RateConfig, plan, rate
from sayso.web.pictures import BrokenPicture, as_png
from sayso.web.serving import Listening, check, free_port
from sayso.web.work import people
from sayso.web.work.opening import open_task
from sayso.web.work.queue import LEASE_S
from sayso.web.work.tasks import TaskOptions

PLAIN = TaskOptions(attention_share=0.0)


@pytest.fixture
def app(tmp_path: Path) -> RatingApp:
    return RatingApp(make_study(tmp_path), names=("ann", "bob", "boss"), busy_timeout_s=0.1)


def error(response: object) -> tuple[int, str, bool]:
    said = response.json()["error"]  # type: ignore[attr-defined]
    assert said["message"].endswith(".")
    assert "Traceback" not in said["message"]
    return response.status_code, said["code"], said["retry"]  # type: ignore[attr-defined]


def set_state(app: RatingApp, action: str) -> None:
    boss = app.client("boss")
    form = {"csrf": boss.token, "task": app.site.task, "action": action}
    assert boss.http.post("/admin/task", data=form, follow_redirects=False).status_code == 303


def test_unknown_and_odd_items(app: RatingApp):
    ann = app.client()
    item = items_of(ann.pages()[0])[0]
    assert error(ann.vote("nothing")) == (404, "unknown_item", False)
    for odd in (
        {"value": "left"}, {"value": "great"}, {"question": "fidelity"}, {"latency_ms": -1},
        {"shown_at": "NaN"}, {"id": ""}, {"id": "a b"}, {"reason": "x" * 201}, {"unknown": 1},
        {"position": -1},
    ):  # fmt: skip
        assert error(ann.vote(item, **odd))[:2] == (422, "invalid"), odd
    broken = ann.http.post("/api/votes", content=b"{", headers={"X-CSRF-Token": ann.token})
    assert error(broken)[0] == 422
    assert app.table("select count(*) from ratings") == [(0,)]


def test_replayed_id_with_another_body(app: RatingApp):
    ann = app.client()
    one, two = (items_of(page)[0] for page in ann.pages(2))
    assert ann.vote(one, id="same").status_code == 200
    assert error(ann.vote(two, id="same")) == (409, "vote_conflict", False)
    assert app.table("select item_id from ratings") == [(one,)]


def test_votes_after_the_task_was_closed_are_kept(app: RatingApp):
    ann = app.client()
    first, second = (items_of(page)[0] for page in ann.pages(2))
    assert ann.vote(first, id="before").status_code == 200
    set_state(app, "close")
    body = ann.body(second)
    late = ann.post("/api/votes", body)
    assert error(late) == (410, "task_closed", False)
    assert late.json()["error"]["stored"] is True
    assert error(ann.post("/api/votes", body))[:2] == (410, "task_closed")
    assert error(ann.vote("nothing"))[0] == 404
    assert error(ann.post("/api/next", {})) == (410, "task_closed", False)
    stored = app.table("select id, surplus from ratings order by seq")
    assert stored == [("before", 0), (body["id"], 1)]
    assert ann.session()["task"]["closed"]


def test_pausing(app: RatingApp):
    ann = app.client()
    item = items_of(ann.pages()[0])[0]
    set_state(app, "pause")
    assert error(ann.post("/api/next", {})) == (423, "paused", True)
    assert ann.session()["task"]["paused"]
    assert ann.vote(item).status_code == 200
    set_state(app, "resume")
    assert len(ann.pages(10)) == 10


def test_image_deleted_under_the_page(app: RatingApp):
    ann = app.client()
    page = ann.pages()[0]
    shutil.rmtree(app.study.path / "images")
    gone = ann.http.get(page["items"][0]["image"]["url"])
    assert gone.status_code == 404
    assert "missing" in gone.text
    response = ann.post("/api/release", {"page_ids": [page["page_id"]], "broken": True})
    assert response.status_code == 200
    final = ann.next()
    assert (final["pages"], final["done"]) == ([], True)
    assert app.table("select count(*) from items where broken") == [(12,)]
    assert app.study.feedback.ratings() == []


def test_very_many_missing_images_do_not_end_the_work(tmp_path: Path):
    app = RatingApp(make_study(tmp_path, prompts=8, per_prompt=6))
    images = app.study.path / "images"
    images.rename(images.with_name("away"))
    ann = app.client()
    assert error(ann.post("/api/next", {})) == (503, "pictures_missing", True)
    for _ in range(5):
        assert error(ann.post("/api/next", {})) == (503, "pictures_missing", True)
    images.with_name("away").rename(images)
    assert ann.work() == 48


def test_restored_images_come_back(app: RatingApp):
    images = app.study.path / "images"
    images.rename(images.with_name("away"))
    ann = app.client()
    assert ann.pages(10) == []
    images.with_name("away").rename(images)
    open_task(app.site.database, app.study, PLAIN)
    assert ann.work() == 12


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_damaged_image(app: RatingApp, damage: str):
    ann = app.client()
    url = ann.pages()[0]["items"][0]["image"]["url"]
    for sample in app.study.samples():
        path = app.study.path / sample.path
        content = path.read_bytes()
        middle = len(content) // 2
        rest = b"" if damage == "cut" else b"?" + content[middle + 1 :]
        path.write_bytes(content[:middle] + rest)
    assert ann.http.get(url).status_code == 404


HUGE, GREAT = (60000, 60000), (10000, 10000)


def empty_png(size: tuple[int, int]) -> bytes:
    """The head of a picture, without any pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_pictures_beyond_all_size_are_set_aside(app: RatingApp):
    huge, great = app.study.samples()[3:5]
    (app.study.path / huge.path).write_bytes(empty_png(HUGE))
    (app.study.path / great.path).write_bytes(empty_png(GREAT))
    ann = app.client()
    assert ann.work() == 11
    assert app.table("select count(*) from items where broken") == [(1,)]


def test_a_png_without_pixels_is_broken():
    with pytest.raises(BrokenPicture):
        as_png(empty_png((16, 16)))


def test_no_port_is_after_the_last():
    assert 1024 <= free_port("127.0.0.1", 65535) < 65535


@pytest.mark.parametrize("base", ["²", "9" * 5000, "", "-1"])
def test_odd_versions_of_a_guideline(app: RatingApp, base: str):
    boss = app.client("boss")
    form = {"csrf": boss.token, "text": "x", "base_version": base}
    assert boss.http.post("/admin/guideline", data=form).status_code == 409


def test_port_in_use_suggests_a_free_one(app: RatingApp):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"port {port} is in use; choose another, such"):
            check(True, app.site.database, Listening(port=port))
        free = free_port("127.0.0.1", port)
    check(True, app.site.database, Listening(port=free))


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.7.7", "rating.example"])
def test_other_addresses_need_sign_in(app: RatingApp, host: str):
    with pytest.raises(UserError, match="sayso raters STUDY add NAME"):
        check(True, app.site.database, Listening(host=host))


@pytest.mark.parametrize("jump", [-86400.0, 86400.0, -5.0])
def test_the_server_clock_jumps(app: RatingApp, jump: float):
    ann, bob = app.client(), app.client("bob")
    item = items_of(ann.pages()[0])[0]
    app.clock.now += jump
    assert ann.vote(item).status_code == 200
    assert ann.work() + bob.work() == 11
    counts = app.table("select count(*) from ratings where not surplus group by item_id")
    assert counts == [(1,)] * 12


def test_a_lease_from_the_future_blocks_nobody(app: RatingApp):
    ann, bob = app.client(), app.client("bob")
    held = [items_of(page)[0] for page in ann.pages(10)]
    app.clock.now -= 10 * LEASE_S
    assert bob.work() == 12
    assert ann.vote(held[0], id="late").status_code == 200
    assert app.table("select surplus from ratings where id = 'late'") == [(True,)]


@pytest.mark.parametrize("times", [(0, 0), (9e12, 1), (5, 4e13)])
def test_the_clock_of_the_page_is_wrong(app: RatingApp, times: tuple[float, float]):
    ann = app.client()
    item = items_of(ann.pages()[0])[0]
    assert ann.vote(item, shown_at=times[0], answered_at=times[1]).status_code == 200
    (rating,) = app.study.feedback.ratings()
    assert (rating.shown_at, rating.answered_at) == (times[0] / 1000, times[1] / 1000)
    assert rating.shown["received_at"] == app.clock.now


def test_a_guideline_comes_before_the_work(app: RatingApp):
    ann = app.client()
    with app.site.write() as db:
        people.write_guideline(db, "Look **closely**.", "boss", 0)
    assert error(ann.post("/api/next", {})) == (428, "guideline_required", False)
    task = ann.session()["task"]
    assert "<strong>closely</strong>" in task["guideline_html"]
    assert (task["guideline_version"], task["guideline_accepted"]) == (1, False)
    assert error(ann.post("/api/guideline/accept", {"version": 7}))[0] == 409
    assert ann.post("/api/guideline/accept", {"version": 1}).status_code == 200
    assert ann.session()["task"]["guideline_accepted"]
    item = items_of(ann.pages()[0])[0]
    assert ann.vote(item, guideline_version=1).status_code == 200
    assert app.study.feedback.ratings()[0].shown["guideline_version"] == 1


def test_a_bug_gets_a_reply_that_tells_nothing(app: RatingApp, monkeypatch: pytest.MonkeyPatch):
    ann = app.client()
    monkeypatch.setattr("sayso.web.api.hand_out", lambda *_: 1 / 0)
    assert error(ann.post("/api/next", {})) == (500, "bug", True)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"images_per_page": 5}, "images_per_page 5"),
        ({"overlap": 0}, "overlap 0"),
        ({"gold_share": 0.4, "attention_share": 0.2}, "at most 0.5 together"),
        ({"port": 0}, "port 0"),
        ({"task": "compare"}, "--right"),
        ({"task": "compare", "right": "runs/x", "prompts": "train"}, "unknown run of align"),
        ({"task": "compare", "right": "runs/x", "prompts": "unseen"}, "no unseen prompts"),
        ({"model": "runs/x"}, "unknown run of align 'runs/x'"),
        ({"gold": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"host": "0.0.0.0"}, "nobody has to sign in"),
    ],
)
def test_refused_before_anything_starts(tmp_path: Path, options: dict[str, object], says: str):
    study = make_study(tmp_path)
    with pytest.raises(UserError, match=says):
        rate(study, RateConfig(**options))  # type: ignore[arg-type]


def test_plan(tmp_path: Path):
    study = make_study(tmp_path)
    assert plan(study, RateConfig(overlap=2, attention_share=0.25)) == {
        "items": 12, "votes": 24, "checks": 3, "proposed_checks": 0,
    }  # fmt: skip
    assert not (study.path / "feedback.db").exists()
