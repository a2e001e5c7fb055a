"""Promise 7: nothing a rater's browser receives tells where an image comes from; sides are even."""

import hashlib
import io
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rating_studies import BASE, TUNED, Rater, RatingApp, items_of, make_study
from scipy.stats import chisquare

from sayso.base.types import digest
from sayso.web.pictures import Pictures, Served, as_png, as_shown, step_of
from sayso.web.work.opening import open_task
from sayso.web.work.tasks import TaskOptions


def everything_received(app: RatingApp, name: str = "ann") -> bytes:
    """All answers of a whole session, headers, addresses and pictures included."""
    rater, received = app.client(name), []
    rater.http.event_hooks["response"] = [lambda reply: received.append(reply)]
    rater.http.get("/")
    rater.session()
    while pages := rater.pages(3):
        for page in pages:
            sides = page.get("items") or [{"image": i} for i in page["left"] + page["right"]]
            for side in sides:
                assert rater.http.get(side["image"]["url"]).status_code == 200
            choice = "left" if "left" in page else "good"
            rater.vote_on(page, lambda _, value=choice: value)
    rater.http.get("/openapi.json")
    for reply in received:
        reply.read()
    return b"\n".join(
        str(reply.url).encode() + repr(reply.headers.raw).encode() + reply.content
        for reply in received
    ).lower()


def secrets_of(app: RatingApp) -> set[str]:
    """What would tell a rater the model: names, ids, paths, hashes of them and of the files."""
    told = {
        app.options.identity,
        app.site.task,
        TUNED,
        "secretmodel",
        "align-",
        "images/",
        str(app.study.path),
    }
    for sample in app.study.samples():
        content = (app.study.path / sample.path).read_bytes()
        told |= {sample.id, sample.path, digest(sample.id), hashlib.sha256(content).hexdigest()}
        told |= {hashlib.md5(content).hexdigest(), hashlib.sha256(sample.id.encode()).hexdigest()}
        told |= {hashlib.sha1(content).hexdigest(), sample.prompt_id}
    for model in (BASE, TUNED):
        for algorithm in ("md5", "sha1", "sha256"):
            told.add(hashlib.new(algorithm, model.encode()).hexdigest()[:12])
        told.add(digest(model))
    return told


def test_a_comparison_session_tells_no_model(tmp_path: Path):
    study = make_study(tmp_path, prompts=6, per_prompt=8, models=(BASE, TUNED))
    app = RatingApp(study, TaskOptions(kind="compare", right=TUNED, attention_share=0.2))
    received = everything_received(app)
    assert len(study.feedback.comparisons()) > 12
    assert len(received) > 50_000
    assert not [secret for secret in secrets_of(app) if secret.lower().encode() in received]


def test_a_rating_session_tells_no_model(tmp_path: Path):
    study = make_study(tmp_path, models=(TUNED,))
    options = TaskOptions(model=TUNED, images_per_page=3, attention_share=0.2)
    app = RatingApp(study, options)
    received = everything_received(app)
    assert len(study.feedback.counts(simulated=False)) == 12
    assert not [secret for secret in secrets_of(app) if secret.lower().encode() in received]


def test_pictures_keep_their_pixels_and_lose_their_metadata(tmp_path: Path):
    app = RatingApp(make_study(tmp_path))
    stored = {Image.open(app.study.path / s.path).tobytes() for s in app.study.samples(BASE)}
    ann = app.client()
    pages = ann.pages(10)
    for page in pages:
        reply = ann.http.get(page["items"][0]["image"]["url"])
        assert reply.headers["content-type"] == "image/png"
        assert reply.headers["cache-control"] == "no-store"
        assert not {"etag", "last-modified", "content-disposition"} & reply.headers.keys()
        picture = Image.open(io.BytesIO(reply.content))
        assert picture.info == {}
        assert picture.tobytes() in stored
        assert (page["items"][0]["image"]["width"], picture.size) == (16, (16, 16))


def test_bytes_depend_on_the_pixels_alone():
    """A model that draws RGBA or palette pictures, or in another format, is not told by it."""
    source = Image.effect_noise((24, 24), 60).quantize(64, kmeans=1)
    written = {("PNG", mode): source.convert("RGB").convert(mode) for mode in ("RGB", "RGBA")}
    written["PNG", "P"] = source
    written["WEBP", "RGB"] = written["BMP", "RGB"] = source.convert("RGB")
    made: dict[tuple[bytes, ...], list[object]] = {}
    for (form, mode), image in written.items():
        file = io.BytesIO()
        more = {"lossless": True, "exif": b"Exif\0\0model"} if form == "WEBP" else {}
        image.save(file, form, **more)
        served = as_png(file.getvalue())
        assert b"model" not in served.content
        made.setdefault(tuple(served), []).append((form, mode))
    assert len(made) == 1, list(made.values())
    opened = Image.open(io.BytesIO(served.content))
    assert (opened.mode, opened.info) == ("RGB", {})
    assert opened.tobytes() == source.convert("RGB").tobytes()


def test_transparency_is_white_and_pictures_stand_upright():
    clear = Image.new("RGBA", (4, 2), (200, 0, 0, 0))
    clear.putpixel((0, 0), (200, 0, 0, 255))
    file, turned = io.BytesIO(), io.BytesIO()
    clear.save(file, "PNG")
    picture = Image.open(io.BytesIO(as_png(file.getvalue()).content))
    assert (picture.getpixel((0, 0)), picture.getpixel((1, 0))) == ((200, 0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (4, 2)).save(turned, "PNG", exif=exif)
    assert Image.open(io.BytesIO(as_png(turned.getvalue()).content)).size == (2, 4)


def test_pictures_come_in_the_size_shown_where_that_is_smaller(tmp_path: Path):
    app = RatingApp(make_study(tmp_path, prompts=1, per_prompt=2))
    scene = Image.effect_noise((48, 48), 90).resize((900, 600)).convert("RGB")
    paths = [app.study.path / sample.path for sample in app.study.samples(BASE)]
    for path in paths:
        scene.save(path)
    ann = app.client()
    url = ann.pages(2)[0]["items"][0]["image"]["url"]
    original = ann.http.get(url)
    assert Image.open(io.BytesIO(original.content)).tobytes() == scene.tobytes()
    for asked, width in ((300, 384), (385, 512), (700, 768), (1000, 900)):
        reply = ann.http.get(url, params={"px": asked})
        assert reply.headers["content-type"] == "image/webp"
        assert not {"etag", "last-modified", "content-disposition"} & reply.headers.keys()
        assert len(reply.content) < len(original.content) / 3
        picture = Image.open(io.BytesIO(reply.content))
        assert (picture.width, picture.mode, picture.info.get("exif")) == (width, "RGB", None)
        true = np.asarray(scene.resize(picture.size, Image.Resampling.LANCZOS), float)
        error = np.sqrt(((np.asarray(picture, float) - true) ** 2).mean())
        assert error < 3, "visibly changed"
    assert ann.http.get(url, params={"px": 9999}).content == original.content
    assert [step_of(px) for px in (-1, 0, 1, 256, 257, 2048, 2049)] == [
        0,
        0,
        256,
        256,
        384,
        2048,
        0,
    ]


def test_small_and_plain_pictures_stay_as_they_are():
    small, plain = io.BytesIO(), io.BytesIO()
    Image.effect_noise((256, 100), 60).convert("RGB").save(small, "PNG")
    Image.fromarray(np.indices((640, 640)).sum(0) % 4 // 2 == 0).save(plain, "PNG")
    for file in (small, plain):
        assert as_shown(file.getvalue(), 512) == as_png(file.getvalue())


def test_the_rest_of_a_picture_can_be_asked_for(tmp_path: Path):
    ann = RatingApp(make_study(tmp_path)).client()
    url = ann.pages()[0]["items"][0]["image"]["url"]
    whole = ann.http.get(url)
    rest = ann.http.get(url, headers={"Range": "bytes=10-"})
    total = len(whole.content)
    assert (whole.status_code, rest.status_code) == (200, 206)
    assert rest.headers["content-range"] == f"bytes 10-{total - 1}/{total}"
    assert rest.content == whole.content[10:]
    for odd in ("bytes=0-", f"bytes={total}-", "bytes=5-7", "lines=1-"):
        assert ann.http.get(url, headers={"Range": odd}).content == whole.content


def test_a_picture_is_made_ready_once_and_by_its_content(monkeypatch: pytest.MonkeyPatch):
    made: list[bytes] = []

    def make(content: bytes, shown_px: int) -> Served:
        made.append(content)
        return Served(content * 10, "image/webp")

    monkeypatch.setattr("sayso.web.pictures.as_shown", make)
    pictures = Pictures(most_bytes=45)
    assert pictures.make(b"a", 300) == pictures.make(b"a", 384) == pictures.ready(b"a", 301)
    pictures.make(b"a", 512)
    pictures.make(b"b", 300)
    assert made == [b"a", b"a", b"b"]
    for letter in (b"c", b"d", b"e"):
        pictures.make(letter, 300)
    assert pictures.ready(b"a", 300) is None, "the least used leaves"
    assert pictures.ready(b"e", 300) is not None


def test_pictures_belong_to_one_rater(tmp_path: Path):
    app = RatingApp(make_study(tmp_path), names=("ann", "bob"))
    url = app.client().pages()[0]["items"][0]["image"]["url"]
    assert app.client("bob").http.get(url).status_code == 404


def red(rater: Rater, url: str) -> int:
    """How red a picture is; those of the tuned model are redder."""
    return Image.open(io.BytesIO(rater.http.get(url).content)).getpixel((0, 0))[0]


def test_sides_are_stored_and_even_per_rater_and_pair(tmp_path: Path):
    names = tuple(f"rater{i}" for i in range(6))
    study = make_study(tmp_path, prompts=10, per_prompt=1, models=(BASE, TUNED))
    options = TaskOptions(kind="compare", right=TUNED, set_size=1, overlap=6, attention_share=0.0)
    app = RatingApp(study, options, names=names)
    for name in names:
        rater = app.client(name)
        while pages := rater.pages(10):
            for page in pages:
                choice = "left" if red(rater, page["left"][0]["url"]) >= 100 else "right"
                rater.vote_on(page, lambda _, value=choice: value)
    votes = study.feedback.comparisons()
    assert len(votes) == 6 * 10 * 2
    chosen = {v.left_model if v.value == "left" else v.right_model for v in votes}
    assert chosen == {TUNED}  # what the rater saw left is what is stored as left
    models = {s.id: s.model for s in study.samples()}
    for vote in votes:
        assert {models[i] for i in vote.left_ids} == {vote.left_model}
        assert {models[i] for i in vote.right_ids} == {vote.right_model}
    left = Counter(v.left_model for v in votes)
    assert chisquare(list(left.values())).pvalue > 0.05
    for key in (lambda v: v.rater, lambda v: v.prompt_id):
        per = Counter((key(v), v.left_model) for v in votes)
        total = Counter(key(v) for v in votes)
        assert all(abs(2 * per[k, BASE] - n) <= 4 for k, n in total.items())
    per_rater_and_pair = Counter((v.rater, v.prompt_id) for v in votes if v.left_model == BASE)
    flipped = sum(n == 1 for n in per_rater_and_pair.values())
    assert 18 <= flipped <= 42, "the sides of a second question do not follow from the first"


def seen_around_an_undo(rater: Rater, item: str, page: str, vote: str) -> dict[str, Any]:
    """All that a script can see when it takes a vote back, gives the page back, and goes on."""
    gone, again = f"{vote}-gone", f"{vote}-again"
    first = rater.session()["progress"]
    undone = rater.vote(item, "retracted", id=gone, supersedes=vote).json()
    held = rater.next(3, have=(page,))
    given_back = rater.post("/api/release", {"page_ids": [page]}).json()
    back = rater.next(1)
    responded = rater.vote(item, "good", id=again, supersedes=gone).json()
    last = rater.session()["progress"]
    return {
        "undone": moved(first, undone["progress"]), "keys": sorted(undone),
        "held": (moved(first, held["progress"]), held["done"]),
        "given back": given_back,
        "back": (moved(first, back["progress"]), back["done"], back["pages"][0]["page_id"] == page),
        "responded": moved(first, responded["progress"]), "last": moved(first, last),
    }  # fmt: skip


def moved(before: dict[str, int], now: dict[str, int]) -> dict[str, int]:
    return {key: now[key] - before[key] for key in before}


@pytest.mark.parametrize("overlap", [1, 2])
def test_no_counter_tells_which_pages_are_checks(tmp_path: Path, overlap: int):
    """As a script would find out: vote, take back, give back, at every page and at the end."""
    study = make_study(tmp_path, prompts=8, per_prompt=6)
    gold = {sample.id: "good" for sample in study.samples(BASE)[:4]}
    options = TaskOptions(gold=gold, gold_share=0.1, attention_share=0.2, overlap=overlap)
    app = RatingApp(study, options)
    control = dict(app.table("select id, control from items"))
    ann = app.client()
    start = before = ann.session()["progress"]
    assert start["mine_total"] > 44
    assert start["project_total"] > 44 * overlap
    seen: dict[str, set[str]] = {"check": set(), "ordinary": set()}
    responded: list[tuple[str, str, str]] = []
    while pages := ann.pages():
        page, item, vote = pages[0]["page_id"], items_of(pages[0])[0], f"v{len(responded)}"
        kind = "check" if control[item] else "ordinary"
        now = ann.vote(item, id=vote).json()["progress"]
        seen[kind].add(f"{moved(before, now)['mine']} {moved(before, now)['project']}")
        if len(responded) < 40:
            seen[kind].add(str(seen_around_an_undo(ann, item, page, vote)))
            vote = f"{vote}-again"
        responded.append((item, page, vote))
        before = ann.session()["progress"]
    assert seen["check"] == seen["ordinary"]
    assert len(seen["check"]) == 2
    end = ann.next()
    assert end["done"]
    assert end["progress"]["mine"] == end["progress"]["mine_total"] == len(responded)
    after = {
        kind: {
            str(seen_around_an_undo(ann, *one))
            for one in responded
            if bool(control[one[0]]) == (kind == "check")
        }
        for kind in seen
    }
    assert after["check"] == after["ordinary"]
    assert len(after["check"]) == 1
    assert Counter(map(bool, control.values()))[True] > 8


def test_votes_taken_over_do_not_tilt_the_sides(tmp_path: Path):
    study = make_study(tmp_path, prompts=40, per_prompt=1, models=(BASE, TUNED))
    prompts = study.prompts()
    options = TaskOptions(kind="compare", right=TUNED, set_size=1, attention_share=0.0)
    study.write_prompts(prompts[:20])
    app = RatingApp(study, options)
    ann = app.client()
    ann.work(lambda _: "left")
    study.write_prompts(prompts)
    app.site.task = open_task(app.site.database, study, replace(options, seed=9))
    seen: dict[str, bool] = {}
    while pages := ann.pages():
        [[swapped]] = app.table(
            f"select swapped from assignments where item = '{pages[0]['item_id']}'"
        )
        seen.setdefault(pages[0]["prompt"], bool(swapped))
        ann.vote_on(pages[0], lambda _: "left")
    assert len(seen) == 20
    assert 4 <= sum(seen.values()) <= 16
