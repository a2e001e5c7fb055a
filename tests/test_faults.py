"""Damaged files: every repeat ends in the same bits, or in one line and exit code 2.

`make test-faults` damages two hundred files; the everyday suite fewer, one of each kind at least.
"""

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from early import EARLY
from safetensors import safe_open

from sayso.base.types import Rating
from sayso.cli import commands as cli
from sayso.stages import _drawing
from sayso.study.study import Study
from sayso.training import loop as train

SHORT = "--mixed-precision no"
ALIGN = f"align --lora-rank 1 --max-steps 4 --checkpoint-every 1 --batch-size 4 {SHORT}"
DRAW = f"generate --prompts test --per-prompt 2 --batch-size 2 {SHORT}"
COMMANDS = [
    "prompts --train 4 --test 2 --fidelity 0",
    f"generate --per-prompt 2 --batch-size 4 {SHORT}",
    "fit --max-epochs 2 --hidden-width 8",
    f"{ALIGN} --pretraining-images 4",
    DRAW,
    f"{DRAW} --model runs/align-rwr",
    "evaluate --judge none",
    "report",
]
VOLATILE = ("env.json", ".lock", "report.html", "feedback.db", "log.jsonl")
TIMES = ("seconds", "images_per_s", "drawn", "files", "loss_first", "loss_last")


class Killed(BaseException):
    """Stands for a kill."""


def sayso(study: Path, line: str) -> None:
    command, *rest = line.split()
    cli.main([command, str(study), *rest])


def rate(path: Path) -> None:
    study = Study.open(path)
    study.feedback.add_ratings([
        Rating(s.id, s.id, "anna", "alignment", ("bad", "good")[i % 2], False, 1.7e9, 1.7e9)
        for i, s in enumerate(study.samples())
    ])  # fmt: skip


def make(folder: Path) -> Path:
    """A study in which nothing is drawn yet, in a folder that holds all it needs."""
    shutil.copytree(EARLY, folder, ignore=shutil.ignore_patterns("study"))
    names = [f"--{kind} {folder}/{name}" for kind, name in (
        ("base-model", "model"), ("clip-model", "clip"), ("pretraining", "natural"),
    )]  # fmt: skip
    sayso(folder / "study", f"new {' '.join(names)} --image-size 16 --num-inference-steps 2")
    for line in COMMANDS[:2]:
        sayso(folder / "study", line)
    rate(folder / "study")
    sayso(folder / "study", COMMANDS[2])
    return folder / "study"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All studies of this file in turn lie at one path, for a run's config names its plug-ins."""
    return tmp_path_factory.mktemp("faults") / "here"


@pytest.fixture(scope="module")
def half(folder: Path) -> Path:
    """A study whose training and drawing were killed after some of it was kept."""
    study = make(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train._Loop, "update", killing(train._Loop.update, after=3))
        with pytest.raises(Killed):
            sayso(study, COMMANDS[3])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_drawing, "_keep", killing(_drawing._keep, after=1))
        with pytest.raises(Killed):
            sayso(study, DRAW)
    assert len(list((study / "runs/align-rwr/checkpoints").iterdir())) == 2
    return Path(shutil.copytree(folder, folder.with_name("half")))


@pytest.fixture(scope="module")
def finished(half: Path, folder: Path) -> Path:
    for line in COMMANDS[3:]:
        sayso(folder / "study", line)
    return Path(shutil.copytree(folder, folder.with_name("finished")))


def killing(work: object, after: int):
    """`work` that is killed when it has been done `after` times."""
    done = iter(range(after))

    def until(*given: object) -> object:
        if next(done, None) is None:
            raise Killed
        return work(*given)  # pyright: ignore

    return until


def content(study: Path) -> dict[str, object]:
    """All that a study's results are, without times and without what may be computed again."""
    found = {
        str(path.relative_to(study)): timeless(path)
        for path in sorted(study.rglob("*"))
        if path.is_file() and not path.name.startswith(VOLATILE) and path.parts[-2] != "cache"
        and path.parts[-3] != "cache" and path.parts[-2] != "latents"
    }  # fmt: skip
    return {**found, "samples.jsonl": drawn(study)}


def drawn(study: Path) -> dict[str, object]:
    """By the sample's id its record, picture and latents, in whichever file they lie."""
    found = {}
    for row in map(json.loads, (study / "samples.jsonl").read_text().splitlines()):
        with safe_open(study / row.pop("latents"), framework="numpy") as shard:
            latents = shard.get_tensor(row["id"])
        bits = latents.shape, str(latents.dtype), latents.tobytes()
        assert row["id"] not in found
        found[row["id"]] = row, (study / row["path"]).read_bytes(), bits
    return found


def timeless(path: Path) -> object:
    if path.suffix not in (".json", ".jsonl"):
        return path.read_bytes()
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    return [without_times(json.loads(line)) for line in lines]


def without_times(value: object) -> object:
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in TIMES}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def victims(study: Path) -> list[Path]:
    """Every file but the votes, one of each kind before the others of it."""
    found = [p for p in sorted(study.rglob("*")) if p.is_file() and p.name[:8] != "feedback"]
    return [p for p in found if p.name not in (".lock", "report.html")]


def damage(path: Path, chance: random.Random) -> str:
    if chance.random() < 0.3:
        path.unlink()
        return "deleted"
    size = path.stat().st_size
    cut = chance.choice([0, size - 1, size // 2, chance.randrange(size)])
    with path.open("rb+") as file:
        if chance.random() < 0.2:
            file.seek(cut)
            file.write(bytes(size - cut))
            return f"zeros from byte {cut}"
        file.truncate(cut)
    return f"cut to {cut} bytes"


def cases(study: Path, n_cases: int, seed: int) -> Iterator[tuple[Path, random.Random]]:
    chance = random.Random(seed)
    files = victims(study)
    # every kind of file is hit, and often the few that there is one of
    kinds = sorted({kind(study, path) for path in files})
    assert n_cases >= len(kinds), "one of each kind"
    for n in range(n_cases):
        yield chance.choice([p for p in files if kind(study, p) == kinds[n % len(kinds)]]), chance


def kind(study: Path, path: Path) -> str:
    """Images, latents or caches are of one kind; every file of a run is its own."""
    first, *rest = path.relative_to(study).parts
    return "/".join([first, *rest]) if first == "runs" else first


@pytest.mark.slow
@pytest.mark.parametrize("state", ["half", "finished"])
def test_every_repeat_ends_in_the_same_bits_or_in_one_line(
    state: str,
    half: Path,
    finished: Path,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    n_cases = request.config.getoption("--faults")
    source = {"half": half, "finished": finished}[state]
    expected = content(finished / "study")
    ends = {"same": 0, "refused": 0}
    wrong = []
    for victim, chance in cases(source / "study", n_cases, seed=8):
        shutil.rmtree(folder)
        shutil.copytree(source, folder)
        name = victim.relative_to(source)
        case = f"{name} {damage(folder / name, chance)}"
        capsys.readouterr()
        try:
            for line in COMMANDS:
                sayso(folder / "study", line)
        except SystemExit as stop:
            said = [line for line in capsys.readouterr().err.splitlines() if "sayso: error" in line]
            if stop.code != 2 or len(said) != 1:
                wrong.append(f"{case}: {line}: exit {stop.code}, {said}")
            ends["refused"] += 1
        except Exception as error:
            wrong.append(f"{case}: {line}: {error!r}")
        else:
            found = content(folder / "study")
            differ = [k for k in expected.keys() | found.keys() if expected.get(k) != found.get(k)]
            if differ:
                wrong.append(f"{case}: differs in {sorted(differ)[:4]}")
            ends["same"] += 1
    assert not wrong, "\n".join(wrong)
    assert min(ends.values()) > n_cases // 10, ends
