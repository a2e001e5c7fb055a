"""The admin pages on agreement and exports say and hand out what the command line does."""

import io
import re
import threading
import time
import zipfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from rating_studies import BASE, TUNED, Office, Rater, make_study

from sayso.base import files
from sayso.base.plugins import plugin_names
from sayso.formats.manifest import read_manifest
from sayso.stages.agreement import AgreementConfig
from sayso.stages.agreement import agreement as run_agreement
from sayso.stages.export import ExportConfig
from sayso.web import downloads
from sayso.web.admin import agreement as admin_agreement
from sayso.web.admin import counts as admin_counts
from sayso.web.admin.export import CHOICES, FORMATS
from sayso.web.downloads import Downloads, zipped
from sayso.web.work.tasks import TaskOptions

NAMES = ("ann", "bobadilla", "simulated-cy", "simulated-di", "eve", "boss")


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports are done when the page comes back, however busy the machine is."""
    monkeypatch.setattr(downloads, "PATIENCE_S", 60.0)


@pytest.fixture
def office(tmp_path: Path) -> Office:
    options = TaskOptions(overlap=4, attention_share=0.5, per_prompt=2)
    return Office(make_study(tmp_path, 4, per_prompt=3), options, names=NAMES)


@pytest.fixture
def worked(office: Office) -> Office:
    """Two people who disagree on some items, and two programs that agree on all."""
    for name in NAMES[:4]:
        turn = iter(range(1000))
        wild = name == "bobadilla"
        office.client(name).work(lambda _, t=turn, w=wild: "bad" if w and next(t) % 3 else "good")
    return office


def shown(number: float | None) -> str:
    return "–" if number is None else f"{number:.2f}".replace("-", "−")


def text_of(page: Any) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", page.text.split("<main", 1)[1]).split())


# agreement


def test_agreement_says_what_the_command_says(worked: Office):
    page = worked.client("eve").http.get("/admin/agreement")
    people, simulated = page.text.split("Simulated raters</h2>")
    for who, part in (("people", people), ("simulated", simulated)):
        config = AgreementConfig(raters=who, resamples=0, judge="none")  # type: ignore[arg-type]
        [said] = run_agreement(worked.study, config).result["sections"]
        for row in said["groups"].values():
            for number in (row["alpha"], row["kappa"]):
                value = number["value"]
                assert shown(value) in part
        for row in said["raters"]:
            assert row["rater"] in part
            assert shown(row["kappa"]) in part
            assert {f"</svg>{rule}</span>" in part for rule in row["careless"]} <= {True}
    assert "ann" not in simulated
    assert "simulated-cy" not in people


def test_sections_are_those_of_the_command(worked: Office):
    for simulated, who in ((False, "people"), (True, "simulated")):
        config = AgreementConfig(raters=who, resamples=0, judge="none")  # type: ignore[arg-type]
        said = run_agreement(worked.study, config).result["sections"]
        assert admin_agreement.sections(worked.study, simulated) == said


def test_rules_that_raters_break_are_explained(worked: Office):
    page = text_of(worked.client("eve").http.get("/admin/agreement"))
    assert "fewer than 2 of 3 attention checks right" in page


def test_agreement_before_there_is_any(office: Office):
    eve = office.client("eve")
    assert "No answers yet" in text_of(eve.http.get("/admin/agreement"))
    office.client().work()
    page = text_of(eve.http.get("/admin/agreement"))
    assert "Nothing was judged by two" in page
    assert "No answers yet" not in page


def test_agreement_of_comparisons_names_the_models(tmp_path: Path):
    study = make_study(tmp_path, prompts=4, per_prompt=1, models=(BASE, TUNED))
    options = TaskOptions(kind="compare", right=TUNED, set_size=1, overlap=2, attention_share=0.0)
    office = Office(study, options, names=("ann", "bob", "eve"))
    for name in ("ann", "bob"):
        office.client(name).work(lambda _: "left")
    page = text_of(office.client("eve").http.get("/admin/agreement"))
    assert f"{TUNED} against {BASE}, fidelity" in page
    assert f"{TUNED} against {BASE}, alignment" in page


def test_agreement_is_counted_again_after_new_votes_and_not_too_often(
    office: Office, monkeypatch: pytest.MonkeyPatch
):
    counter = admin_counts.Counter[admin_agreement.Sections](office.site.clock)

    def count() -> admin_counts.Count[admin_agreement.Sections]:
        return admin_agreement.count(office.site, counter)

    first = count()
    assert count() is first
    ann = office.client()
    ann.work(most=8)
    object.__setattr__(first, "until", time.monotonic() + 100)
    assert count() is first
    object.__setattr__(first, "until", time.monotonic())
    [section] = count().value.people
    assert [row["votes"] for row in section["raters"]] == [
        8 - section["raters"][0]["attention"]["n"]
    ]
    monkeypatch.setattr(admin_counts, "FREE_S", 0.0)
    monkeypatch.setattr(admin_counts, "SHARE_OF_TIME", 1e-6)
    ann.work(most=1)
    slow = count()
    ann.work(most=1)
    assert count() is slow


def test_nobody_waits_for_a_count_while_there_is_an_older_one():
    counter, gate = admin_counts.Counter[int](time.time), threading.Event()
    assert counter.count(lambda: 1).value == 1

    def slow() -> int:
        assert gate.wait(30)
        return 2

    with ThreadPoolExecutor(1) as pool:
        counting = pool.submit(counter.count, slow)
        while not counter._turn.locked():
            time.sleep(0.001)
        assert counter.count(lambda: 3).value == 1
        gate.set()
        assert counting.result().value == 2


# exports


def order(rater: Rater, **fields: object) -> Any:
    return rater.http.post("/admin/export", data={"csrf": rater.token, "action": "make", **fields})


def fetched(rater: Rater, folder: Path) -> Path:
    answer = rater.http.get("/admin/export.zip")
    assert answer.headers["content-type"] == "application/zip"
    name = re.fullmatch(r'attachment; filename="(meadow-\w+)\.zip"',
                        answer.headers["content-disposition"])  # fmt: skip
    assert name
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        archive.extractall(folder)
    [made] = folder.iterdir()
    return made


def test_the_archive_equals_the_store(worked: Office, tmp_path: Path):
    boss = worked.client("boss")
    page = order(boss, format="sayso", raters="people", license="cc-by-4.0")
    assert "Sayso is ready" in text_of(page)
    folder = fetched(boss, tmp_path / "unpacked")
    manifest = read_manifest(folder)
    stored = worked.table("select id, value from ratings where not simulated order by seq")
    votes = pq.read_table(folder / "votes.parquet").to_pylist()
    assert [(v["vote_id"], v["value"]) for v in votes] == [tuple(row) for row in stored]
    assert manifest["counts"]["votes"] == len(stored)
    assert f"{len(stored)} rows in votes" in text_of(page)
    assert files.sha256(folder / "manifest.json") in page.text
    assert "cc-by-4.0" in (folder / "README.md").read_text()
    assert all(re.fullmatch(r"[0-9a-f]{16}", v["rater"]) for v in votes)
    text = str(votes) + (folder / "README.md").read_text() + str(manifest)
    assert not re.search(r"\b(ann|bobadilla|boss)\b", text)


def test_programs_are_exported_by_themselves(worked: Office, tmp_path: Path):
    boss = worked.client("boss")
    order(boss, format="kto", raters="simulated")
    manifest = read_manifest(fetched(boss, tmp_path / "unpacked"))
    expected = worked.table("select count(*) from ratings where simulated")[0][0]
    assert (manifest["raters"], manifest["counts"]["votes"]) == ("simulated", expected)


def test_a_missing_image_is_said_and_nothing_is_handed_out(worked: Office):
    boss = worked.client("boss")
    order(boss, format="sayso")
    sample = worked.study.samples()[0]
    (worked.study.path / sample.path).unlink()
    page = text_of(order(boss, format="imagefolder"))
    assert "ImageFolder was not made" in page
    assert f"{sample.path}, which is gone" in page
    assert boss.http.get("/admin/export.zip").status_code == 404


def test_an_export_is_removed(worked: Office):
    boss = worked.client("boss")
    order(boss, format="kto")
    assert boss.http.get("/admin/export.zip").status_code == 200
    page = order(boss, action="remove")
    assert "is ready" not in page.text
    assert boss.http.get("/admin/export.zip").status_code == 404
    assert [p.name for p in worked.study.export_path(".download").iterdir()] == ["lock"]


def test_one_export_at_a_time_and_raters_go_on(worked: Office, monkeypatch: pytest.MonkeyPatch):
    """The command is replaced by one that lasts until a file appears."""
    monkeypatch.setattr(downloads, "PATIENCE_S", 0.0)
    gate = worked.study.path / "gate"
    wait = f"while [ ! -e {gate} ]; do sleep 0.02; done; echo sayso: error: enough >&2; exit 2"
    monkeypatch.setattr(Downloads, "_command", lambda *_: ["sh", "-c", wait])
    boss = worked.client("boss")
    assert "Making Sayso" in text_of(order(boss, format="sayso"))
    again = order(boss, format="kto")
    assert (again.status_code, "being made already" in again.text) == (409, True)
    assert order(boss, action="remove").status_code == 409
    assert boss.http.get("/admin/export.zip").status_code == 404
    other = Downloads(worked.study).last()  # as another worker sees it
    assert other is not None
    assert (other.state, other.order["by"]) == ("running", "boss")
    item, vote = worked.table("select item_id, id from ratings where rater = 'ann'")[0]
    assert worked.client().vote(item, "skip", supersedes=vote).status_code == 200
    gate.touch()
    end = time.monotonic() + 10
    while "Making" in boss.http.get("/admin/export").text and time.monotonic() < end:
        time.sleep(0.02)
    page = text_of(boss.http.get("/admin/export"))
    assert "Sayso was not made" in page
    assert "enough" in page


@pytest.fixture
def made(office: Office) -> Downloads:
    """A finished export of a few chunks."""
    made = Downloads(office.study)
    folder = office.study.export_path(".download")
    (folder / "kto").mkdir(parents=True)
    order = {"format": "kto", "raters": "people", "by": "boss", "at": 0.0}
    files.write_json(folder / "order.json", order)
    (folder / "said.txt").write_text("done")
    (folder / "lock").touch()
    for name in "abc":
        (folder / "kto" / name).write_bytes(bytes(2 * downloads.CHUNK))
    files.write_json(folder / "kto" / "manifest.json", {"rows": {}, "left_out": {}})
    return made


def test_looking_at_an_export_disturbs_nobody(made: Downloads):
    """Many pages ask for the state, while an export is removed or one begins."""
    stop, seen = threading.Event(), Counter[str]()

    def look() -> None:
        while not stop.is_set():
            last = made.last()
            seen[last.state if last else "none"] += 1

    lookers = [threading.Thread(target=look) for _ in range(2)]
    for looker in lookers:
        looker.start()
    time.sleep(0.3)
    assert set(seen) == {"ready"}
    for _ in range(20):
        with made._turn():
            pass
    stop.set()
    for looker in lookers:
        looker.join()


def test_a_download_is_not_cut(made: Downloads, office: Office):
    boss = office.client("boss")
    found = made.archive()
    assert found
    first = next(found[1])
    for fields in ({"action": "remove"}, {"format": "sayso"}):
        refused = order(boss, **fields)
        assert (refused.status_code, "is being downloaded" in refused.text) == (409, True)
    assert "is ready" in boss.http.get("/admin/export").text
    with zipfile.ZipFile(io.BytesIO(first + b"".join(found[1]))) as archive:
        assert archive.testzip() is None
    again = made.archive()
    assert again
    next(again[1])
    del again  # who downloads went away
    assert order(boss, action="remove").status_code == 200
    assert made.archive() is None


def test_without_pyarrow_the_page_names_the_package(worked: Office, monkeypatch):
    monkeypatch.setattr("sayso.base.extras.find_spec", lambda name: None)
    boss = worked.client("boss")
    assert "sayso[export]" in boss.http.get("/admin/export").text
    refused = order(boss, format="sayso")
    assert (refused.status_code, "sayso[export]" in refused.text) == (409, True)


@pytest.mark.parametrize(
    "odd",
    [{"format": "./mine.py"}, {"format": ""}, {"raters": "auto"}, {"question": "--out=/x"},
     {"image_format": "gif"}, {"license": "x" * 81}, {"license": "a\nb"}],
)  # fmt: skip
def test_only_what_the_page_offers_is_made(office: Office, odd: dict[str, str]):
    assert order(office.client("boss"), **{"format": "kto", **odd}).status_code == 422
    assert not office.study.export_path(".download").exists()


def test_forms_need_role_and_token(office: Office):
    boss, eve = office.client("boss"), office.client("eve")
    eve.token = boss.token
    assert order(eve, format="kto").status_code == 403
    boss.token = ""
    assert order(boss, format="kto").status_code == 403
    other = {"Origin": "http://evil.example"}
    boss.session()
    form = {"csrf": boss.token, "action": "make", "format": "kto"}
    assert boss.http.post("/admin/export", data=form, headers=other).status_code == 403
    assert not office.study.export_path(".download").exists()


def test_the_page_offers_every_format_and_option_it_names():
    assert sorted(FORMATS) == plugin_names("export")
    for field, (_, values) in CHOICES.items():
        for value in values:
            ExportConfig(**{field: value}).check()  # type: ignore[arg-type]


def test_archives_of_large_files_pass_in_chunks(tmp_path: Path):
    folder = tmp_path / "big"
    (folder / "sub").mkdir(parents=True)
    content = bytes(range(256)) * 8192
    (folder / "sub" / "a.bin").write_bytes(content)
    (folder / "empty").touch()
    parts = list(zipped(folder))
    assert max(map(len, parts)) <= downloads.CHUNK + 1000
    with zipfile.ZipFile(io.BytesIO(b"".join(parts))) as archive:
        assert archive.read("big/sub/a.bin") == content
        assert archive.namelist() == ["big/empty", "big/sub/a.bin"]
