"""Files appear whole, stay through a power cut, and survive an append that fails half-way."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from disks import small_disk

from sayso.base import files
from sayso.base.errors import UserError

ROWS = [{"step": n, "text": "ü" * n} for n in range(1, 6)]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that are synced and renamed, in order."""
    seen: list[str] = []
    real = {"fsync": os.fsync, "replace": Path.replace}

    def fsync(descriptor: int) -> None:
        seen.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        real["fsync"](descriptor)

    def replace(self: Path, target: Path) -> Path:
        seen.append(f"rename {Path(target).name}")
        return real["replace"](self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    return seen


def test_a_file_is_on_the_disk_before_its_name_and_its_name_after(
    tmp_path: Path, calls: list[str]
) -> None:
    files.write_bytes(tmp_path / "a.json", b"{}")
    assert calls == [f"sync .a.json.{os.getpid()}.tmp", "rename a.json", f"sync {tmp_path.name}"]


def test_a_folder_is_on_the_disk_file_by_file_before_its_name(
    tmp_path: Path, calls: list[str]
) -> None:
    with files.new_folder(tmp_path / "weights") as folder:
        (folder / "unet").mkdir()
        (folder / "unet/model.safetensors").write_bytes(b"x")
        (folder / "state.json").write_bytes(b"x")
    before = calls[: calls.index("rename weights")]
    assert {"sync unet", "sync model.safetensors", "sync state.json"} <= set(before)
    assert calls[-1] == f"sync {tmp_path.name}"


def test_a_folder_that_is_replaced_is_never_missing_for_long(tmp_path: Path) -> None:
    for content in (b"old", b"new"):
        with files.new_folder(tmp_path / "f") as folder:
            (folder / "a").write_bytes(content)
            if content == b"new":
                assert (tmp_path / "f/a").read_bytes() == b"old"
    assert (tmp_path / "f/a").read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_every_rename_of_the_package_is_in_files() -> None:
    """A file that is renamed without being synced can be empty after a power cut."""
    package = Path(files.__file__).parents[1]
    odd = [
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if path.name != "files.py"
        for line in path.read_text().splitlines()
        if any(w in line for w in ("os.rename(", "os.replace(", "os.link(", "temporary.replace("))
    ]
    assert odd == []


def test_a_torn_last_line_does_not_count_and_the_next_append_cuts_it_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "log.jsonl"
    files.append_lines(path, ROWS[:2])
    first = path.stat().st_size
    files.append_lines(path, ROWS[2:])
    whole = path.read_bytes()
    for length in range(first, len(whole)):
        path.write_bytes(whole[:length])
        kept = whole[:length].count(b"\n")
        torn = not whole[:length].endswith(b"\n")
        assert files.read_lines(path) == ROWS[:kept]
        assert ("incomplete" in capsys.readouterr().err) is torn
        files.append_lines(path, ROWS[kept:])
        assert ("removed the last line" in capsys.readouterr().err) is torn
        assert path.read_bytes() == whole


def test_a_damaged_line_in_the_middle_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    files.append_lines(path, ROWS)
    lines = path.read_bytes().split(b"\n")
    for bad in (b'{"step": 3, "te', b"\0" * 20, b"[3]", b"\xff"):
        path.write_bytes(b"\n".join([*lines[:2], bad, *lines[3:]]))
        with pytest.raises(UserError, match=r"log.jsonl line 3 is damaged"):
            files.read_lines(path)


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        path = disk / "samples.jsonl"
        files.append_lines(path, ROWS)
        before = path.read_bytes()
        with pytest.raises(OSError, match="No space left"):
            files.append_lines(path, [{"long": "x" * 100_000}])
        assert path.read_bytes() == before
        files.append_lines(path, ROWS)
        assert files.read_lines(path) == ROWS * 2


def test_a_limit_on_file_sizes_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    files.append_lines(path, ROWS)
    before = path.read_bytes()
    script = (
        "import sys; from pathlib import Path\n"
        "from sayso.base import files; from sayso.cli import commands as cli\n"
        "def work(*_): files.append_lines(Path(sys.argv[1]), [{'long': 'x' * 9000}])\n"
        "cli.run = work; cli.main(['generate'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert "may not grow" in done.stderr
    assert path.read_bytes() == before


@pytest.mark.skipif(sys.platform == "win32", reason="needs fcntl")
def test_two_writers_do_not_cut_each_others_lines(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    script = (
        "import sys; from pathlib import Path; from sayso.base import files\n"
        "for i in range(200): files.append_lines(Path(sys.argv[1]), [{'n': i, 't': 'x' * 5000}])"
    )
    work = [subprocess.Popen([sys.executable, "-c", script, str(path)]) for _ in range(2)]
    assert [process.wait() for process in work] == [0, 0]
    assert sorted(row["n"] for row in files.read_lines(path)) == sorted([*range(200)] * 2)
