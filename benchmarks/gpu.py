"""Everything that needs a GPU, in one go of at most eight minutes; no network, random weights.

    python benchmarks/gpu.py [--tiny] [--seconds 480] [--json FILE]

Stable Diffusion 1.5 at 512²: full fine-tuning, LoRA, pairs of dpo, each in images or pairs a second
against the share of the card's own matrix rate, and against the step of diffusers'
train_text_to_image.py; sampling in 20 steps with guidance against the pipeline. Then one LoRA step
of SDXL at 1024² and of FLUX.1 dev at 512², and the tests for a GPU. Peak memory beside
each. `--tiny` goes through every line on a CPU with models of a few thousand weights. A part that
fails is named and the others go on; the exit status is 1 then.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from alternating import in_turns, machine, matrix_rate, ratio
from random_models import random_folder
from sides import (
    Setting,
    image_difference,
    loaded,
    loop_step,
    loss_difference,
    our_sampling,
    our_step,
    their_sampling,
    their_step,
)

from sayso.aligners import Work
from sayso.aligners.dpo import DirectPreference
from sayso.aligners.rwr import RewardWeighted
from sayso.base.types import Sampler, Size
from sayso.data.conditions import HeldConditions
from sayso.data.pairs import Pairs
from sayso.data.rows import TrainingRows, make_rows
from sayso.families import Policy
from sayso.families._loading import family
from sayso.families._published import (
    FLUX,
    STABLE_DIFFUSION,
    STABLE_DIFFUSION_XL,
    write_published,
)
from sayso.families.flux import Flux
from sayso.families.sdxl import StableDiffusionXL
from sayso.families.stable_diffusion import StableDiffusion

TRAINING_TFLOP = 2.41
"""Of one 512² image with kept latents, forward and backward, Stable Diffusion 1.5."""
DRAWING_TFLOP = 2 * 20 * 0.803 + 2.51
"""Of one 512² image in 20 steps with guidance, and its decoding."""
PAIR_TFLOP = 2 * (TRAINING_TFLOP + 0.803)
"""Of a pair: two images trained on, and the reference's prediction of both."""


@dataclass
class Report:
    """What was measured, and which parts failed."""

    device: torch.device
    rate: float
    until: float
    known: bool
    """Whether the models are those whose operations stand above."""
    rows: list[dict[str, object]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def part(self, name: str, work: Callable[[], object]) -> None:
        """Run a part, unless time is up; what it raises is told, and the next part follows."""
        if time.monotonic() > self.until:
            self.failed.append(name)
            print(f"{name}: left out, time is up", flush=True)
            return
        self._reset()
        try:
            work()
        except Exception:
            traceback.print_exc()
            self.failed.append(name)
            print(f"{name}: FAILED", flush=True)

    def row(self, name: str, per_s: float, tflop: float | None = None, note: str = "") -> None:
        """A line: rate, share of the matrix rate if the operations are known, peak memory."""
        share = None if tflop is None or not self.known else per_s * tflop * 1e12 / self.rate
        cuda = self.device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(self.device) / 1e9 if cuda else None
        told = "" if share is None else f"  {share:.0%} of the matrix rate"
        memory = "" if peak is None else f"  peak {peak:.1f} GB"
        print(f"{name:44}{per_s:9.2f}/s{told}{memory}  {note}", flush=True)
        self.rows.append(
            {"name": name, "per_s": per_s, "share": share, "peak_gb": peak, "note": note}
        )

    def _reset(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--seconds", type=float, default=480)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not options.tiny and not torch.cuda.is_available():
        parser.error("there is no GPU here; --tiny goes through every line on a CPU")
    device = torch.device("cpu" if options.tiny else "cuda")
    dtype = torch.float32 if options.tiny else torch.bfloat16
    rate = matrix_rate(device, dtype)
    report = Report(device, rate, time.monotonic() + options.seconds, known=not options.tiny)
    print(f"{machine(device)}; matrix product {report.rate / 1e12:.1f} TFLOP/s in {dtype}")
    with tempfile.TemporaryDirectory() as scratch:
        measure(report, Path(scratch), tiny=options.tiny)
    if options.json:
        told = {"machine": machine(device), "rows": report.rows, "failed": report.failed}
        options.json.write_text(json.dumps(told, indent=1))
    if report.failed:
        sys.exit(f"failed or left out: {', '.join(report.failed)}")


def measure(report: Report, scratch: Path, *, tiny: bool) -> None:
    device, size = report.device, Size(32, 32) if tiny else Size(512, 512)
    if tiny:
        folder = StableDiffusion.tiny(scratch / "model")
    else:
        folder = random_folder(STABLE_DIFFUSION, scratch / "model", device)
    texts = ("a red dog", "two cats")
    sampler = Sampler(2 if tiny else 20, 7.5, 0.0, size)
    setting = Setting(folder, device, not tiny, 4 if tiny else 64, sampler, texts, scratch)
    turns = 1 if tiny else 5
    small = replace(setting, batch=2, bf16=False)
    report.part("parity", lambda: print(
        f"parity in fp32: losses differ by {loss_difference(small):.1e} of the loss, pixels by "
        f"{image_difference(small):.1e}"
    ))  # fmt: skip
    report.part("full", lambda: training(report, setting, turns))
    report.part("LoRA", lambda: alone(
        report, "LoRA, rank 16", our_step(setting, lora_rank=16), setting, turns, None
    ))  # fmt: skip
    report.part("dpo", lambda: alone(
        report, "dpo, pairs", pairs_step(setting), replace(setting, batch=setting.batch // 2),
        turns, PAIR_TFLOP,
    ))  # fmt: skip
    report.part("sampling", lambda: sampling(report, setting, turns))
    wide, square = (Size(48, 32), size) if tiny else (Size(1024, 1024), Size(512, 512))
    for name, model, kind, own in (
        ("SDXL LoRA step", STABLE_DIFFUSION_XL, StableDiffusionXL, wide),
        ("FLUX.1 dev LoRA step", FLUX, Flux, square),
    ):
        at = scratch / kind.__name__
        made = (kind.tiny(at) if tiny else write_published(model, at)) if not at.exists() else at
        report.part(name, lambda n=name, f=made, s=own: large(report, n, f, setting, s))
    report.part("full, compiled", lambda: alone(
        report, "full, compiled", our_step(setting, compile=True), setting, turns, TRAINING_TFLOP
    ))  # fmt: skip
    report.part("tests", gpu_tests)


def training(report: Report, setting: Setting, turns: int) -> None:
    """Ours and the script's step in turns, on the same batch."""
    sides = {"diffusers' script": their_step(setting), "sayso, full": our_step(setting)}
    times = in_turns(sides, report.device, turns)
    theirs, ours = times.values()
    for name, own in times.items():
        note = f"{ratio(theirs, ours)} × the script's" if own is ours else ""
        report.row(name, setting.batch / median(own), TRAINING_TFLOP, note)


def sampling(report: Report, setting: Setting, turns: int) -> None:
    """Text to image, ours and the pipeline's in turns."""
    few = replace(setting, batch=max(2, setting.batch // 4))
    sides = {"diffusers' pipeline": their_sampling(few), "sayso, sampling": our_sampling(few)}
    times = in_turns(sides, report.device, turns, warm_up=1)
    theirs, ours = times.values()
    for name, own in times.items():
        note = f"{ratio(theirs, ours)} × the pipeline's" if own is ours else ""
        report.row(name, few.batch / median(own), DRAWING_TFLOP, note)


def alone(
    report: Report,
    name: str,
    step: Callable[[], object],
    setting: Setting,
    turns: int,
    tflop: float | None,
) -> None:
    """A step without another side."""
    times = in_turns({name: step}, report.device, turns, warm_up=3)[name]
    report.row(name, setting.batch / median(times), tflop)


def pairs_step(setting: Setting) -> Callable[[], object]:
    """A step of dpo; half as many pairs as the batch has rows."""
    policy = loaded(setting)
    latents = policy.encode_images(setting.images()).cpu()
    nothing = [float("nan")] * setting.batch
    data = make_rows(policy, (latents, setting.prompts), nothing, nothing)
    rows = torch.arange(setting.batch).reshape(-1, 2)
    pairs = Pairs(rows, torch.ones(len(rows)), torch.arange(len(rows)))
    return loop_step(
        setting, DirectPreference(), Work(policy, data, setting.batch, 1, 0, pairs=pairs)
    )


def large(report: Report, name: str, folder: Path, setting: Setting, size: Size) -> None:
    """LoRA steps of one image on a network with random bf16 weights, checkpointed."""
    policy = random_network(folder, report.device, torch.bfloat16 if setting.bf16 else None)
    policy.add_lora(16, 0)
    shape = policy.latent_shape(size)
    cond = {
        key: torch.randn(2, *value.shape[1:]) if value.is_floating_point() else torch.ones(
            2, *value.shape[1:], dtype=value.dtype)
        for key, value in conditions_like(folder).items()
    }  # fmt: skip
    n, nan = 4, torch.full((4,), float("nan"))
    text = torch.ones(n, dtype=torch.long)
    data = TrainingRows(torch.randn(n, *shape), text, torch.ones(n), nan, HeldConditions(cond), n)
    one = replace(setting, batch=1)
    step = loop_step(
        one, RewardWeighted(weight="label"), Work(policy, data, 1, 1, 0),
        gradient_checkpointing=True,
    )  # fmt: skip
    alone(report, f"{name}, {size}", step, one, 3, None)


def conditions_like(folder: Path) -> dict[str, Any]:
    """Conditions of a text on the meta device: their shapes."""
    return family(folder).load(folder, torch.device("meta")).encode_prompts(["a"])


def random_network(folder: Path, device: torch.device, dtype: torch.dtype | None) -> Policy:
    """A policy of a folder of configs whose network has random weights on the device."""
    kind: Any = family(folder)
    policy = kind.load(folder, device, parts=())
    network = kind.load(folder, torch.device("meta"), parts=("network",)).network
    policy.network = network.to(dtype).to_empty(device=device)
    with torch.no_grad():
        for tensor in policy.network.parameters():
            tensor.normal_(std=0.02)
    return policy


def gpu_tests() -> None:
    """The tests that need a card; pytest may be missing on a bare machine."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests"]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    print(done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr[-500:])
    # 5: no such test was found
    if done.returncode not in (0, 5):
        raise RuntimeError(f"pytest ended with {done.returncode}")


if __name__ == "__main__":
    main()
