"""What it saves to compress and write pictures, and on a GPU to decode them, beside the drawing.

    python benchmarks/drawing.py [--turns 5] [--threads 2] [--images 128] [--image-size 64]

Draws images of the tiny world as `sayso generate` does, files and records included, in turns: A in
a thread beside the drawing of the next batch, B between the batches. Prints the seconds of each,
their medians, and the median of the ratios B / A of neighbours, with least and most. It measures
time on the clock, so the machine must be idle.
"""

import argparse
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import torch

from sayso.base.types import Prompt
from sayso.stages import _drawing
from sayso.stages._drawer import Drawer
from sayso.stages._drawing_plan import missing
from sayso.stages.generate import GenerateConfig, _drawings, _identity
from sayso.stages.new import NewConfig, new

BATCH = 32


@contextmanager
def between() -> Iterator[Callable[[Callable[[], None]], None]]:
    """In place of `_drawing._behind`: the work is done at once."""
    yield lambda work: work()


def seconds(folder: Path, images: int, size: str, beside: bool) -> float:
    """Drawing a study's images, from the loaded model to the last record."""
    study = new(folder, NewConfig(image_size=size))
    study.write_prompts([Prompt("p", "two red dogs on the moon", "count", {}, "train")])
    config = GenerateConfig(per_prompt=images, batch_size=BATCH)
    batches = missing(study, _drawings(study, config, _identity(study, "base")), "base", BATCH)
    drawer = Drawer(study, batches, "auto", BATCH)
    used, _drawing._behind = _drawing._behind, _drawing._behind if beside else between
    started = time.perf_counter()
    try:
        _drawing.draw_all(study, drawer, [], "r")
    finally:
        _drawing._behind = used
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--image-size", default="64")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        found = {
            (turn, beside): seconds(
                Path(folder, f"{turn}-{beside}"), options.images, options.image_size, beside
            )
            for turn in range(options.turns + 1)
            for beside in (True, False)
        }
    # the first turn warms up
    turns = range(1, options.turns + 1)
    a, b = ([found[turn, beside] for turn in turns] for beside in (True, False))
    ratios = [late / early for early, late in zip(a, b, strict=True)]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor()
    print(f"{options.images} images of {options.image_size}, {options.threads} threads, {device}")
    print("A beside:", *(f"{s:.2f}" for s in a), f"median {median(a):.2f} s")
    print("B between:", *(f"{s:.2f}" for s in b), f"median {median(b):.2f} s")
    print(f"B / A: {median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
