"""Stable Diffusion 1.5 at its real size, random weights: does it run, and as the forecast says?

Draws 2 images of 256 × 256 pixels, makes 2 LoRA steps and 1 step of the whole network through the
stages, each in a process of its own, and compares the peak of its memory with the forecast.
Usage: python benchmarks/real_size.py [--folder FOLDER], about 10 minutes and 15 GB of memory.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from random_models import random_folder

from sayso.aligners import load_aligner
from sayso.base.types import Prompt, Rating, Sampler, Size
from sayso.families._loading import family
from sayso.families._published import STABLE_DIFFUSION
from sayso.stages import _footprint as footprint
from sayso.stages.align import AlignConfig, align
from sayso.stages.generate import GenerateConfig, generate
from sayso.study.info import StudyInfo
from sayso.study.study import Study

SIZE = Size(256, 256)
SAMPLER = Sampler(num_inference_steps=4, guidance_scale=7.5, image_size=SIZE)
COMMON: dict[str, Any] = {
    "aligner": "sft", "batch_size": 2, "mixed_precision": "no", "learning_rate": 1e-5,
}  # fmt: skip
TRAINED = {
    "2 LoRA steps": AlignConfig(name="lora", max_steps=2, lora_rank=16, **COMMON),
    "1 step of the whole network": AlignConfig(name="full", max_steps=1, ema_decay=0, **COMMON),
}
DRAWN = "2 images drawn"
ALLOWED = 0.15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--phase", choices=(DRAWN, *TRAINED))
    given = parser.parse_args()
    if given.phase:
        print(json.dumps(_measured(given.folder, given.phase)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        if not (folder / "model").exists():
            random_folder(STABLE_DIFFUSION, folder / "model", torch.device("cpu"))
        _new_study(folder)
        print(f"Stable Diffusion 1.5, {SIZE} pixels, fp32, CPU, torch {torch.__version__}")
        off = [_said(phase, _in_a_process(folder, phase)) for phase in (DRAWN, *TRAINED)]
    if max(map(abs, off)) > ALLOWED:
        raise SystemExit(f"a forecast is off by more than {ALLOWED:.0%}")


def _said(phase: str, row: dict[str, float]) -> float:
    """Print a result; returns by how much the peak differs from the forecast."""
    off = row["peak"] / row["forecast"] - 1
    peak, forecast = row["peak"] / 1e9, row["forecast"] / 1e9
    line = (
        f"{phase}: {peak:.2f} GB, forecast {forecast:.2f} GB ({off:+.0%}), {row['seconds']:.0f} s"
    )
    print(line, flush=True)
    return off


def _new_study(folder: Path) -> None:
    shutil.rmtree(folder / "study", ignore_errors=True)
    info = StudyInfo("real size", 0, str(folder / "model"), "tinyworld", "", SAMPLER)
    study = Study.create(folder / "study", info)
    study.write_prompts([Prompt(f"p{i}", t, "count", {}, "train") for i, t in enumerate("ab")])


def _in_a_process(folder: Path, phase: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--folder", str(folder), "--phase", phase]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _measured(folder: Path, phase: str) -> dict[str, float]:
    study = Study.open(folder / "study")
    run, forecast = _work(study, folder / "model", phase)
    expected = forecast()
    started = time.perf_counter()
    with _peak() as peak:
        run()
    return {"peak": peak[0], "forecast": expected, "seconds": time.perf_counter() - started}


def _work(
    study: Study, model: Path, phase: str
) -> tuple[Callable[[], object], Callable[[], float]]:  # fmt: skip
    """What the phase does, and what it should take."""
    kind, meta = family(model), torch.device("meta")

    def blueprint() -> Any:
        return kind.load(model, meta)

    if phase == DRAWN:
        config = GenerateConfig(per_prompt=1, batch_size=2, mixed_precision="no")
        return (
            lambda: generate(study, config),
            lambda: (
                footprint.drawing(
                    blueprint,
                    SAMPLER,
                    2,
                    "fp32",
                    None,
                    cuda=False,
                    passes=SAMPLER.num_inference_steps,
                ).total
            ),
        )
    config = TRAINED[phase]
    if not study.feedback.ratings():
        study.feedback.add_ratings([
            Rating(f"{s.id}r", s.id, "simulated-1", "alignment", value, True, 0.0, 1.0)
            for s, value in zip(study.samples(), ("good", "bad"), strict=True)
        ])  # fmt: skip
    aligner = load_aligner("sft")()
    way = footprint.Way(
        config.for_aligner(aligner.defaults), config.lora_rank, "fp32", None, cuda=False,
        processes=1, encoding=True,
    )  # fmt: skip
    shapes = footprint.shapes_of(blueprint(), "a")
    needs = footprint.training(blueprint, way, aligner, SIZE, shapes)
    return lambda: align(study, config), lambda: needs.total


@contextmanager
def _peak() -> Iterator[list[int]]:
    """The most memory that the process holds, weights that are mapped from files included."""
    found, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            lines = Path("/proc/self/status").read_text().splitlines()
            held = sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))
            found[0] = max(found[0], held)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


if __name__ == "__main__":
    main()
