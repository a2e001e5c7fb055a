"""Two processes started by accelerate give what one gives."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from studies import UNET, finished_align, random_study, rated_study

from sayso.data.latents import load_latents
from sayso.stages.generate import GenerateConfig, generate, plan
from sayso.study.study import Study

WORK = """
import sys
from pathlib import Path

from accelerate import PartialState

from sayso.aligners.dpo import DirectPreference
from sayso.aligners.grpo import GroupPolicy
from sayso.aligners.nft import NegativeAware
from sayso.aligners.sft import GoodImages
from sayso.stages.align import AlignConfig, align
from sayso.stages.generate import GenerateConfig, generate
from sayso.study.study import Study

study = Study.open(Path(sys.argv[1]))
config = AlignConfig(aligner="sft", max_steps=3, batch_size=8, mixed_precision="no")
generate(study, GenerateConfig(prompts="seen", per_prompt=9, batch_size=4, mixed_precision="no"))
align(study, config, GoodImages())
dpo = AlignConfig(aligner="dpo", max_steps=3, batch_size=8, mixed_precision="no", kl_weight=0.1)
align(study, dpo, DirectPreference())
online = {"reward": "clip_score", "max_steps": 3, "batch_size": 8, "mixed_precision": "no"}
align(
    study, AlignConfig(aligner="grpo", **online),
    GroupPolicy(images=8, group_size=4, steps_per_image=1),
)
align(
    study, AlignConfig(aligner="nft", **online),
    NegativeAware(score="rollouts", images=8, group_size=4, times_per_image=1),
)
# in one piece, for two processes write to one place
sys.stdout.write(f"processes: {PartialState().num_processes}\\n")
"""


TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def launched(code: str, folder: Path, *launcher: str) -> subprocess.CompletedProcess[str]:
    script = folder / "work.py"
    script.write_text(code)
    return subprocess.run(
        [sys.executable, *launcher, str(script), str(folder)],
        capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip


def work(study: Path, *launcher: str) -> str:
    done = launched(WORK, study, *launcher)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    one = rated_study(tmp_path).path
    two = Path(shutil.copytree(one, tmp_path / "two"))
    assert "processes: 1" in work(one)
    assert work(two, *TWO).count("processes: 2") == 2

    first, second = Study.open(one), Study.open(two)
    assert first.samples() == second.samples()
    drawn = [study.samples("base")[-9:] for study in (first, second)]
    torch.testing.assert_close(load_latents(first, drawn[0]), load_latents(second, drawn[1]))
    before = load_file(tmp_path / "model/unet/diffusion_pytorch_model.safetensors")
    for aligner, apart in (("sft", 1e-3), ("dpo", 0.02), ("grpo", 0.02), ("nft", 0.02)):
        same_training(first, second, before, f"runs/align-{aligner}", apart)


def same_training(
    first: Study, second: Study, before: dict[str, torch.Tensor], run: str, apart: float
) -> None:
    """Losses are equal, and so is the update as a whole.

    Gradients are summed in another order and differ by rounding. Adam divides each by its own size,
    so a weight whose gradient is rounding error may go either way, by the learning rate at most;
    such weights are few. Differences of nearly equal errors, as dpo's, and images that are drawn
    in other portions, as grpo's, round more.
    """
    weights = "weights/unet/diffusion_pytorch_model.safetensors"
    ours, theirs = (load_file(s.find_run(run).path / weights) for s in (first, second))
    moved = torch.cat([(ours[name] - before[name]).flatten() for name in ours])
    other = torch.cat([(theirs[name] - ours[name]).flatten() for name in ours])
    logs = [s.find_run(run).history() for s in (first, second)]
    for a, b in zip(*logs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4, abs=1e-5), run
    rates = sum(row["learning_rate"] for row in logs[0])
    assert moved.norm() > 0, run
    assert other.abs().max() <= 2 * rates, run
    assert other.norm() <= apart * moved.norm(), run


SLOW_FIRST = """
import sys
import time
from datetime import timedelta
from pathlib import Path

from torch.distributed import distributed_c10d

# torch's own are minutes, and the first may encode and score for hours
distributed_c10d.default_pg_timeout = timedelta(seconds=1)

from sayso.base import devices

for i, block in enumerate([{blocks}]):
    made = Path(sys.argv[1], str(i))
    with block():
        if devices.is_main_process():
            time.sleep(3)
            made.touch()
        assert made.exists(), "the second came first"
# in one piece, for both write to one place
sys.stdout.write("done\\n")
"""
BY_STAGE = "devices.main_process_first"
BY_ACCELERATOR = "lambda: devices.make_accelerator('no').local_main_process_first()"


@pytest.mark.parametrize("blocks", [[BY_STAGE, BY_ACCELERATOR], [BY_ACCELERATOR]])
def test_a_slow_first_process_does_not_end_the_second(blocks: list[str], tmp_path: Path) -> None:
    """The first works three times as long as torch's own time-out, which is one second here."""
    done = launched(SLOW_FIRST.format(blocks=", ".join(blocks)), tmp_path, *TWO)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["done", "done"]


LEAVE = """
import atexit
import sys
from pathlib import Path

from torch import distributed


def left():
    tasks = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    threads = sum("gloo" in name for name in tasks)
    sys.stdout.write(f"left: {not distributed.is_initialized()}, threads: {threads}\\n")


# what is registered first runs last
atexit.register(left)

from sayso.base import devices

devices.make_accelerator("no")
# as libraries do, in the middle of the work
import torch.distributed.nn
assert devices.in_shares([1, 2, 3], list, 1) == [1, 2, 3]
"""


def test_processes_leave_their_group_before_python_ends(tmp_path: Path) -> None:
    """Else gloo's threads abort a process whose work is done, now and then."""
    done = launched(LEAVE, tmp_path, *TWO)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["left: True, threads: 0"] * 2


DRAW = """
import os
import signal
import sys
from pathlib import Path

from sayso.stages import _drawing
from sayso.stages.generate import GenerateConfig, generate
from sayso.study.study import Study

keep, kept = _drawing._keep, []

def lost(*given):
    if os.environ["RANK"] == "1" and kept and {killed}:
        os.kill(os.getpid(), signal.SIGKILL)
    kept.append(keep(*given))

_drawing._keep = lost
generate(Study.open(Path(sys.argv[1])), GenerateConfig(per_prompt=8, batch_size=3))
"""


def processes(n: int) -> tuple[str, ...]:
    return (*TWO[:-1], str(n))


@pytest.mark.slow
def test_a_lost_process_s_share_is_drawn_by_any_number_of_others(tmp_path: Path) -> None:
    study = random_study(tmp_path)
    one = Study.open(shutil.copytree(study.path, tmp_path / "one"))
    config = GenerateConfig(per_prompt=8, batch_size=3)
    generate(one, config)
    done = launched(DRAW.format(killed=True), study.path, *processes(2))
    assert done.returncode
    left = {s.id for s in study.samples()}
    assert "1.jsonl" in {file.name for file in study.sample_files}
    assert 3 <= len(left) < 24
    assert plan(study, config)["images left to generate"] == 24 - len(left)
    begun = Path(shutil.copytree(study.path, tmp_path / "begun"))

    done = launched(DRAW.format(killed=False), study.path, *processes(3))
    assert done.returncode == 0, done.stderr
    assert generate(Study.open(begun), config).finished
    for path in (study.path, begun):
        ours = Study.open(path)
        assert [file.name for file in ours.sample_files] == ["samples.jsonl"]
        same_images(ours, one)
        assert len(ours.samples()) == 24 == len({(s.prompt_id, s.seed) for s in ours.samples()})
        assert generate(ours, config).result["drawn"] == 24 - len(left)


def same_images(ours: Study, theirs: Study) -> None:
    """The same records, pictures and latents, to the last bit."""
    first, second = ({s.id: s for s in study.samples()} for study in (ours, theirs))
    assert first == second
    for sample in first.values():
        assert (ours.path / sample.path).read_bytes() == (theirs.path / sample.path).read_bytes()
    shards = {s.latents for s in first.values()}
    assert all((ours.path / p).read_bytes() == (theirs.path / p).read_bytes() for p in shards)


MEASURE = """
import os
import sys
from pathlib import Path

from sayso.data import clip
from sayso.stages import _scoring
from sayso.stages.evaluate import EvaluateConfig, evaluate
from sayso.stages.fit import FitConfig, fit
from sayso.study.study import Study

# chunks small enough that each process has some
clip.CHUNK = _scoring.PORTION = 4
study, embed = Study.open(Path(sys.argv[1])), clip._embed


def counted(study, encoder, samples):
    with Path(f"{sys.argv[1]}/embedded-{os.environ.get('RANK', 0)}").open("a") as file:
        print(*samples, file=file)
    return embed(study, encoder, samples)


clip._embed = counted
fit(study, FitConfig(reward="clip_head"))
judge = str(study.path.parent / "bright.py")
evaluate(study, EvaluateConfig(model="runs/align-tuned", judge=judge, prompts="test"))
# the next command finds all of it done
fit(study, FitConfig(reward="clip_head"))
evaluate(study, EvaluateConfig(model="runs/align-tuned", judge=judge, prompts="test"))
"""
BRIGHT = """
from dataclasses import dataclass

from sayso.judges import Judge, Verdict


@dataclass
class Bright(Judge):
    def verdicts(self, images, prompts):
        means = images.mean((1, 2, 3)).tolist()
        return [Verdict(mean > 0.5, min(1.0, abs(mean))) for mean in means]
"""


@pytest.mark.slow
def test_processes_embed_and_score_a_share_each(tmp_path: Path) -> None:
    """Embeddings and reward: the same bits; scores: the same; no picture is embedded twice."""
    one = rated_study(tmp_path)
    (tmp_path / "bright.py").write_text(BRIGHT)
    weights = (Path(one.info.base_model) / UNET).read_bytes()
    finished_align(one, "tuned", weights)
    for model in ("base", "runs/align-tuned"):
        generate(one, GenerateConfig(model=model, prompts="test", per_prompt=9, batch_size=9))
    two = Study.open(shutil.copytree(one.path, tmp_path / "two"))
    for study, launcher in ((one, ()), (two, TWO)):
        done = launched(MEASURE, study.path, *launcher)
        assert done.returncode == 0, done.stderr
    embedded = [p.read_text().split() for p in sorted(two.path.glob("embedded-*"))]
    assert [len(part) > 4 for part in embedded] == [True, True]
    assert not set(embedded[0]) & set(embedded[1])
    alone = (one.path / "embedded-0").read_text().split()
    assert sorted(alone) == sorted(embedded[0] + embedded[1])
    made = [
        p.relative_to(one.path)
        for pattern in ("runs/fit-*/weights/*", "runs/evaluate-*/scores.jsonl", "cache/images-*/*")
        for p in one.path.glob(pattern)
    ]
    assert {p.parts[0] for p in made} == {"runs", "cache"}
    for path in made:
        ours, theirs = one.path / path, two.path / path
        if path.name == "scores.jsonl":
            rows = [map(json.loads, p.read_text().splitlines()) for p in (ours, theirs)]
            same_numbers(*map(list, rows))
        else:
            assert ours.read_bytes() == theirs.read_bytes(), path
    results = [study.find_run("runs/evaluate-align-tuned").result for study in (one, two)]
    for result in results:
        del result["seconds"], result["files"]["scores.jsonl"]
    same_numbers(*results)


def same_numbers(a: object, b: object, place: str = "") -> None:
    """Equal but for rounding: a matrix product's last bit can depend on where its rows lie."""
    if isinstance(a, dict) and isinstance(b, dict):
        assert a.keys() == b.keys(), place
        for key in a:
            same_numbers(a[key], b[key], f"{place}/{key}")
    elif isinstance(a, list) and isinstance(b, list):
        assert len(a) == len(b), place
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            same_numbers(x, y, f"{place}/{i}")
    elif isinstance(a, float) and isinstance(b, float):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-6, nan_ok=True), place
    else:
        assert a == b, place
