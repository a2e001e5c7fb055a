"""Several ways to do one thing, timed in turns: what else runs on the machine hits all alike."""

import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

import torch
from torch.utils.flop_counter import FlopCounterMode

Work = Callable[[], object]
Times = dict[str, list[float]]


def seconds(work: Work, device: torch.device) -> float:
    """Wall clock on a GPU; on a CPU processor time, which other programs disturb less."""
    if device.type != "cuda":
        started = time.process_time()
        work()
        return time.process_time() - started
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    torch.cuda.synchronize(device)
    return time.perf_counter() - started


def in_turns(
    sides: Mapping[str, Work], device: torch.device, turns: int, warm_up: int = 2
) -> Times:
    """Run the sides one after the other, `turns` times; the first `warm_up` rounds do not count."""
    times: Times = {name: [] for name in sides}
    for turn in range(warm_up + turns):
        for name, work in sides.items():
            took = seconds(work, device)
            if turn >= warm_up:
                times[name].append(took)
    return times


def ratio(slow: list[float], fast: list[float]) -> str:
    """How many times as long `slow` took: median, least and most of the turns."""
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    return f"{median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def flops(work: Work) -> int:
    """Floating-point operations of the matrix products, convolutions and attention of `work`."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product: what the machine gives at best, measured."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    times = in_turns({"product": lambda: a @ b}, device, turns=5)["product"]
    # processor seconds are of all threads together, and so is the rate then: of one of them
    return 2 * n**3 / min(times)


def machine(device: torch.device) -> str:
    """Device, threads, versions and commit, for the head of a table."""
    import diffusers

    cpu = f"{os.cpu_count()} × {platform.machine()} ({torch.backends.cpu.get_cpu_capability()})"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parent,
    ).stdout.strip()  # fmt: skip
    return (
        f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, diffusers "
        f"{diffusers.__version__}, commit {commit or 'unknown'}"
    )
