"""The demo, command by command, with its times; then its figures.

    python benchmarks/demo.py [STUDY] [--quick]

Wall clock and processor time (user and system, all threads) of each command, without the start of
Python. On a busy machine only the processor time means something; set OMP_WAIT_POLICY=passive
there, or waiting threads count as working ones. A processor without bf16 and AVX-512 is emulated
by ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2.
"""

import argparse
import shlex
import tempfile
import time
from pathlib import Path

from sayso.base.devices import best_precision
from sayso.base.files import read_json
from sayso.cli import commands as cli
from sayso.cli.demo import DemoConfig, commands


def timed(line: str) -> tuple[float, float]:
    """Seconds of the wall clock and of the processor that a command takes."""
    wall, processor = time.perf_counter(), time.process_time()
    cli.run(shlex.split(line))
    return time.perf_counter() - wall, time.process_time() - processor


def show_figures(study: Path) -> None:
    """What the demo found: shares of true images, p by group, distances, the reward."""
    summary = read_json(study / "summary.json")
    result = read_json(study / "runs/evaluate-align-rwr/result.json")
    for group, change in result["paired"].items():
        if "/" in group:
            continue
        shares = [summary["alignment"][m][group] for m in ("base", "best_of_n", "aligned")]
        percent = " → ".join(f"{share:.0%}" for share in shares)
        print(f"{group:12} {percent}  (base, best of n, aligned)  p {change['p_value']:.2g}")
    for part in ("fidelity", "reward"):
        print(part, summary[part])
    votes = summary["comparison"]
    print("aligned against base:", {name: votes[name] for name in ("win", "lose", "net")})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", nargs="?", type=Path, help="folder to keep; default: none is kept")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        study = options.study or Path(folder) / "study"
        config = DemoConfig(quick=options.quick)
        times = {c: timed(c) for c in commands(shlex.quote(str(study)), config)}
        print(f"precision {best_precision()}; seconds of wall clock and processor")
        for command, (wall, processor) in times.items():
            print(f"{wall:7.1f} {processor:7.1f}  sayso {command.replace(str(study), 'STUDY')}")
        walls, processors = zip(*times.values(), strict=True)
        print(f"{sum(walls):7.1f} {sum(processors):7.1f}  all")
        show_figures(study)


if __name__ == "__main__":
    main()
