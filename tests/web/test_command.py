"""`sayso rate` and `sayso raters` as a person meets them, and what the small install brings."""

import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from rating_studies import BASE, TUNED, make_study
from served import Served, served

from sayso.cli import commands as cli

ROOT = Path(__file__).parent.parent.parent


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sayso", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Served]:
    study = make_study(tmp_path, prompts=2, per_prompt=2, models=(BASE, TUNED))
    with served(study.path, "--task", "compare", "--right", TUNED, "--prompts", "train",
                "--set-size", 2, "--overlap", 9, "--seed", 4) as server:  # fmt: skip
        yield server


def test_a_comparison_is_set_up_in_a_line_and_stopped_with_ctrl_c(local: Served):
    browser = local.browser()
    session = browser.get("/api/session").json()
    assert session["rater"] == {"name": "local", "role": "admin"}
    assert session["task"]["kind"] == "compare"
    assert (session["overlap"], session["progress"]["project_total"]) == (9, 2 * 2 * 9)
    assert "no sign-in, this machine only" in local.said
    # images of models in a study whose attention checks nobody can make, on a port that is taken
    taken = run("rate", local.study, "--port", local.port, "--attention-share", 0.3)
    assert taken.returncode == 2
    says = rf"sayso: error: port {local.port} is in use; choose another, such as --port \d+\n"
    assert re.fullmatch(says, taken.stderr), "nothing else is said or warned of"
    assert taken.stdout == ""
    local.process.send_signal(signal.SIGINT)
    assert local.process.wait(20) in (0, 130, -signal.SIGINT)


def test_raters_are_added_listed_and_switched_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    study = make_study(tmp_path).path
    cli.run(["raters", str(study)])
    assert capsys.readouterr().out == ""
    cli.run(["raters", str(study), "add", "ann", "--address", "https://rate.example/"])
    link = capsys.readouterr().out.strip()
    assert re.fullmatch(r"https://rate\.example/in/[\w-]{32}", link)
    cli.run(["raters", str(study), "add", "bob", "--role", "reviewer"])
    cli.run(["raters", str(study), "off", "ann"])
    capsys.readouterr()
    cli.run(["raters", str(study), "list"])
    assert capsys.readouterr().out == "ann\trater (off)\nbob\treviewer\n"
    cli.run(["raters", str(study), "link", "bob"])
    assert "/in/" in capsys.readouterr().out
    cli.run(["raters", str(study), "add", "cy", "dora"])
    added = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in added] == ["cy", "dora"]
    cli.run(["raters", str(study), "exclude", "cy"])
    cli.run(["raters", str(study), "list"])
    assert "cy\trater (excluded)\n" in capsys.readouterr().out
    cli.run(["raters", str(study), "include", "cy"])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["add"], "needs at least one name"),
        (["add", "ann\n"], None),
        (["link", "zoe"], "no rater 'zoe'"),
        (["off", "zoe"], "no rater 'zoe'"),
        (["add", "\x07"], "is not a valid name"),
        (["add", "x" * 81], "is not a valid name"),
    ],
)
def test_refused_raters(tmp_path: Path, words: list[str], says: str | None):
    study = str(make_study(tmp_path).path)
    if says is None:
        cli.run(["raters", study, *words])
        says, words = "already", ["add", "ann"]
    with pytest.raises(cli.UserError, match=says):
        cli.run(["raters", study, *words])


def test_small_install():
    """At most 32 packages with sayso itself, and no torch."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found, left = {"sayso"}, [Requirement(text) for text in project["dependencies"]]
    while left:
        needed = left.pop()
        name = canonicalize_name(needed.name)
        if name not in found and (needed.marker is None or needed.marker.evaluate({"extra": ""})):
            found.add(name)
            left += [Requirement(text) for text in requires(name) or []]
    assert {"fastapi", "sqlalchemy", "alembic", "jinja2", "uvicorn"} <= found
    assert not {"torch", "diffusers", "transformers"} & found
    assert len(found) <= 32, sorted(found)


def test_the_app_loads_nothing_that_the_small_install_lacks():
    code = (
        "import sys; import sayso.web.serving, sayso.stages.rate, sayso.stages.raters; "
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "safetensors", "scipy", "multipart"} & set(done.stdout.split())
