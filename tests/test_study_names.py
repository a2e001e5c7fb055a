"""A study folder may have any name: its votes lie in it, and nothing beside it."""

import shlex
import subprocess
from pathlib import Path

import pytest
from old_stores import OLD, old_store
from sqlalchemy.engine import make_url
from voted_images import a_rating, voted_study

from sayso.base.errors import UserError
from sayso.feedback.database import Database
from sayso.feedback.store import Feedback
from sayso.stages.export import ExportConfig, export
from sayso.stages.import_ import ImportConfig, import_table
from sayso.stages.new import NewConfig, new
from sayso.stages.raters import RatersConfig, raters
from sayso.study.info import StudyInfo
from sayso.study.study import Study

NAMES = [
    "better? cats", "run %41", "50%", "a#b", "a&b=c", "?uri=true", "file:x", "猫 und Ümlaut",
    "C:\\studies\\one", "it's \"quoted\" $HOME", "a;b", "[ab]*", "a+b", "@host:1",
]  # fmt: skip


@pytest.fixture(params=NAMES)
def study(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """An empty study of that name, given as a user gives it: relative to where he is."""
    monkeypatch.chdir(tmp_path)
    return new(Path(request.param))


def beside(study: Study) -> list[str]:
    return [p.name for p in Path().iterdir() if p.name != study.path.name]


def test_votes_lie_in_the_study(study: Study):
    vote = a_rating("s", "ann")
    study.feedback.add_ratings([vote])
    raters(study, RatersConfig("add", ("anna",)))
    assert (study.path / "feedback.db").is_file()
    assert beside(study) == []
    again = Study.open(study.path.resolve())
    assert again.feedback.ratings() == [vote]
    assert Path(again.feedback.database.name) == again.path / "feedback.db"


def test_an_old_store_is_migrated_where_it_is(study: Study):
    old_store(study.path / "feedback.db")
    assert study.feedback.ratings() == [OLD]
    assert (study.path / "feedback.db.backup-1").is_file()
    assert beside(study) == []


def test_the_rating_app_votes_into_the_study(study: Study):
    from sayso.web.serving import Listening, check, prepare
    from sayso.web.work.tasks import TaskOptions

    voted_study(Path("other"), votes=False)
    for name in ("prompts.jsonl", "samples.jsonl", "images"):
        Path("other", name).rename(study.path / name)
    site = prepare(study, "", TaskOptions(kind="rate", prompts="train", model="base"))
    check(site.local, site.database, Listening())
    site.database.close()
    assert site.database.file == study.path / "feedback.db"
    assert sorted(beside(study)) == ["other"]


def test_export_and_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    source = voted_study(Path("better? cats"))
    out = export(source, ExportConfig())
    target = Study.create(Path("run %41"), StudyInfo("x"))
    import_table(target, ImportConfig(str(out), "sayso"))
    assert sorted(p.name for p in Path().iterdir()) == ["better? cats", "run %41"]
    live = [f[0].id for f in source.feedback.stream(False) if not f[0].shown.get("attention")]
    assert [found[0].id for found in target.feedback.stream(False)] == live


def test_two_names_that_an_address_reads_alike_share_nothing(tmp_path: Path):
    for one, other in (("better? cats", "better? dogs"), ("run A", "run %41")):
        first, second = new(tmp_path / one), new(tmp_path / other)
        first.feedback.add_ratings([a_rating("s", "ann")])
        assert second.feedback.ratings() == []


def test_a_database_given_by_its_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    study = new(Path("a? b"))
    study.use_database("sqlite:///my%3F votes.db")
    study.feedback.add_ratings([a_rating("s", "ann")])
    assert Path("my? votes.db").is_file()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = Study.open(tmp_path / "a? b")
    assert len(again.feedback.ratings()) == 1, "an address is kept with the file's whole path"
    again.use_database(again.info.feedback_url)
    assert list(Path().iterdir()) == []
    named = new(tmp_path / "named", NewConfig(feedback_url="sqlite:///own.db"))
    assert make_url(named.info.feedback_url).database == str(tmp_path / "elsewhere" / "own.db")


@pytest.mark.parametrize("url", ["sqlite:///my? votes.db", "sqlite:///my?votes=1"])
def test_an_address_cut_at_its_question_mark_is_refused(url: str):
    with pytest.raises(UserError, match="%3F"):
        Database(url)


@pytest.mark.parametrize("name", ["better? cats", "run %41"])
def test_votes_of_an_earlier_version_are_found_and_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    """The address as it was once pasted put the votes into another file."""
    monkeypatch.chdir(tmp_path)
    study = voted_study(Path(name), votes=False)
    (tmp_path / "run A").mkdir()
    astray = Feedback(f"sqlite:///{study.path / 'feedback.db'}") if "%" in name else None
    astray = astray or Feedback(Path("better"))
    vote = a_rating(study.samples()[0].id, "ann")
    astray.add_ratings([vote])
    with pytest.raises(UserError, match="earlier version") as refused:
        Study.open(study.path).feedback  # noqa: B018
    said = str(refused.value)
    assert not (study.path / "feedback.db").exists()
    copy = said[said.index("cp ") : said.index(" (to start")]
    subprocess.run(shlex.split(copy), check=True)
    assert Study.open(study.path).feedback.ratings() == [vote]
    (study.path / "feedback.db").unlink()
    touch = said[said.index("touch ") :].rstrip(")")
    subprocess.run(shlex.split(touch), check=True)
    assert Study.open(study.path).feedback.ratings() == []


def test_votes_on_other_images_are_none_of_a_study(tmp_path: Path):
    study = voted_study(tmp_path / "run %41", votes=False)
    other = voted_study(tmp_path / "run A", votes=False)
    other.feedback.add_ratings([a_rating("another image", "ann")])
    assert study.feedback.ratings() == []
