"""Names and what they stand for: canonical forms, and digests of contents."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from models import tiny_pipeline
from studies import finished_align, finished_fit

from sayso import tinyworld
from sayso.base import hashes
from sayso.base.errors import UserError
from sayso.base.files import write_json
from sayso.base.hashes import file_digest, folder_digest
from sayso.study import identity
from sayso.study.identity import NotHereError, find_reward, reward_identity
from sayso.study.info import StudyInfo
from sayso.study.study import Study


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipeline(tmp_path_factory.mktemp("model") / "m")


@pytest.fixture
def study(tmp_path: Path, pipeline: Path) -> Study:
    base = shutil.copytree(pipeline, tmp_path / "base")
    return Study.create(tmp_path / "study", StudyInfo("s", base_model=str(base)))


# names


@pytest.mark.parametrize(
    "form", ["align-x", "runs/align-x", "./runs/align-x/", "{study}/runs/align-x", "{relative}"]
)
def test_every_way_to_name_a_run_is_one_name(
    study: Study, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(study.path.parent)
    name = form.format(study=study.path, relative="study/../study/runs/align-x")
    assert identity.canonical_run(study, name) == "runs/align-x"
    assert identity.canonical_model(study, name) == "runs/align-x"
    assert identity.canonical_model(study, f"{name}@best-of-4") == "runs/align-x@best-of-4"


def test_a_run_of_another_study_is_refused(study: Study, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run of"):
        identity.canonical_model(study, str(tmp_path / "other" / "runs" / "align-x"))


def test_own_plugins_are_named_by_absolute_path(
    study: Study, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert identity.canonical_reward(study, "./mine.py") == str(tmp_path / "mine.py")
    assert identity.canonical_reward(study, "clip_score") == "clip_score"
    assert identity.canonical_reward(study, "fit-x") == "runs/fit-x"
    assert identity.canonical_reward(study, "") == ""


def test_names_of_selections_come_apart_again() -> None:
    made = identity.Selection("runs/align-x", 4, 16, "fit-clip_head")
    assert made.name == "runs/align-x@best-4-of-16-by-fit-clip_head"
    assert identity.parse_selection(made.name) == made
    assert identity.parse_selection("base@best-of-16") is None


# identities


def test_identity_of_the_base_is_of_its_contents(study: Study, tmp_path: Path) -> None:
    first = identity.model_identity(study, "base")
    moved = shutil.copytree(study.info.base_model, tmp_path / "moved")
    assert folder_digest(moved) == first
    (moved / "README.md").write_text("a card")
    (moved / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"a variant")
    assert folder_digest(moved) == first


@pytest.mark.parametrize(
    "file",
    ["unet/diffusion_pytorch_model.safetensors", "vae/config.json", "model_index.json",
     "scheduler/scheduler_config.json"],
)  # fmt: skip
def test_another_file_in_place_is_another_base(study: Study, file: str) -> None:
    first = identity.model_identity(study, "base")
    path = Path(study.info.base_model) / file
    path.write_bytes(path.read_bytes() + b" ")
    assert identity.model_identity(study, "base") != first


def test_identity_of_a_run_is_of_its_weights_and_of_what_they_lie_over(study: Study) -> None:
    finished_align(study, "x", b"one")
    finished_align(study, "same", b"one")
    finished_align(study, "on-x", b"one", "runs/align-x")
    of = {name: identity.model_identity(study, f"runs/align-{name}") for name in ("x", "same")}
    assert of["x"] == of["same"] != identity.model_identity(study, "base")
    second = identity.model_identity(study, "runs/align-on-x")
    assert second != of["x"]
    shutil.rmtree(study.path / "runs" / "align-x")
    finished_align(study, "x", b"two")
    assert identity.model_identity(study, "runs/align-x") != of["x"]
    assert identity.model_identity(study, "runs/align-on-x") != second


def test_identity_of_a_reward(study: Study, tmp_path: Path) -> None:
    finished_fit(study, "x", b"one")
    finished_fit(study, "y", b"one", hidden_width=3)
    first = identity.reward_identity(study, "runs/fit-x")
    assert first != identity.reward_identity(study, "runs/fit-y")
    shutil.rmtree(study.path / "runs" / "fit-x")
    finished_fit(study, "x", b"two")
    assert identity.reward_identity(study, "runs/fit-x") != first
    clip = identity.reward_identity(study, "clip_score")
    study.info = StudyInfo("s", clip_model=str(tmp_path / "clip"))
    shutil.copytree(tinyworld.paths().clip, tmp_path / "clip")
    assert identity.reward_identity(study, "clip_score") == clip
    (tmp_path / "clip" / "config.json").write_text("{}")
    assert identity.reward_identity(study, "clip_score") != clip
    own = tmp_path / "mine.py"
    own.write_text("1")
    first = identity.reward_identity(study, str(own))
    own.write_text("2")
    assert identity.reward_identity(study, str(own)) != first


def test_a_reward_that_is_missing_is_named_with_how_to_get_it(study: Study) -> None:
    with pytest.raises(
        UserError, match=f"train it with: sayso fit {study.path} --reward clip_head$"
    ):
        find_reward(study, "fit-clip_head")
    with pytest.raises(NotHereError, match=f"add it with: sayso reward {study.path} --reward jpeg"):
        reward_identity(study, "runs/reward-jpeg")
    finished_fit(study, "mine", b"1")
    finished_align(study, "rwr", b"1")
    assert find_reward(study, "fit-mine").name == "runs/fit-mine"
    with pytest.raises(UserError, match="clip_head, or choose runs/fit-mine"):
        find_reward(study, "runs/fit-clip_head")
    for name, near in (("fit-mien", "runs/fit-mine"), ("clipscore", "clip_score")):
        with pytest.raises(UserError, match=f"unknown reward '{name}': did you mean '{near}'"):
            find_reward(study, name)
    with pytest.raises(UserError, match="unknown reward 'align-rwr'") as refused:
        find_reward(study, "runs/align-rwr")
    assert "runs/align-rwr" not in str(refused.value)


def test_identity_of_a_selection(study: Study) -> None:
    finished_fit(study, "x", b"one")
    finished_fit(study, "y", b"two")
    names = [
        identity.Selection("base", kept, n, reward).name
        for kept, n, reward in (
            (1, 4, "fit-x"), (2, 4, "fit-x"), (1, 8, "fit-x"), (1, 4, "fit-y"), (1, 4, "clip_score")
        )
    ]  # fmt: skip
    assert len({identity.model_identity(study, name) for name in names}) == len(names)


@pytest.mark.parametrize(
    ("break_it", "error", "says"),
    [
        (lambda s: shutil.rmtree(s.info.base_model), identity.NotHereError, "base model"),
        (lambda s: shutil.rmtree(s.path / "runs/align-x"), identity.NotHereError, "unknown run"),
        (
            lambda s: shutil.rmtree(s.path / "runs/align-x/weights"),
            identity.NotHereError,
            "weights",
        ),
        (
            lambda s: (s.path / "runs/align-x/result.json").unlink(),
            UserError,
            "not a finished run of align",
        ),
    ],
)
def test_what_cannot_be_identified(
    study: Study, break_it: Callable[[Study], None], error: type[Exception], says: str
) -> None:
    finished_align(study, "x", b"one")
    break_it(study)
    with pytest.raises(error, match=says):
        identity.model_identity(study, "runs/align-x")


def test_no_torch_at_import() -> None:
    code = "import sys, sayso.study.identity; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# big files


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """Every file counts as big; the files that were read, in order."""
    found: list[Path] = []
    read = hashes.files.sha256
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    monkeypatch.setattr(hashes, "REMEMBERED_FROM_BYTES", 0)
    monkeypatch.setattr(hashes.files, "sha256", lambda p: (found.append(p), read(p))[1])
    return found


def test_a_big_file_is_read_once(
    reads: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "big"
    file.write_bytes(b"one")
    first = file_digest(file)
    assert file_digest(file) == first
    assert len(reads) == 2  # it changed a moment ago, so nothing was remembered
    monkeypatch.setattr(hashes, "SETTLED_NS", 0)
    assert file_digest(file) == file_digest(file) == first
    assert len(reads) == 3
    times = file.stat()
    file.write_bytes(b"two")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # as cp -p and rsync do
    assert file_digest(file) != first


def test_a_damaged_memory_is_none(
    reads: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashes, "SETTLED_NS", 0)
    file = tmp_path / "big"
    file.write_bytes(b"one")
    first = file_digest(file)
    (tmp_path / "caches" / "sayso" / "file-hashes.json").write_text("{")
    assert file_digest(file) == first
    write_json(tmp_path / "caches" / "sayso" / "file-hashes.json", {})
    shutil.rmtree(tmp_path / "caches")
    (tmp_path / "caches").write_text("a file where the folder should be")
    assert file_digest(file) == first
    assert len(reads) == 3
