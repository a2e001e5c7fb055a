"""The aligners on the tiny world, on the same ratings: how many images are true to their prompt.

    python benchmarks/aligners.py [STUDY] [--only dpo grpo]

The base draws and simulated raters rate; then each aligner trains from the base, draws for the test
prompts with the base's seeds, and the tiny world's judge reads the pictures. Repeated on the same
STUDY it goes on where it stopped.
"""

import argparse
import shlex
import tempfile
import time
from pathlib import Path

from sayso.base.files import read_json
from sayso.cli import commands as cli
from sayso.cli.demo import FIT

OPTIONS = {
    "rwr": "--max-steps 90 --draw reward --weight product --even --pretraining-weight 0.05 "
    "--prompt-dropout 0.2",
    "dpo": "--max-steps 90 --beta 50 --learning-rate 2e-4 --warmup-steps 5 --ema-decay 0.95 "
    "--prompt-dropout 0.2",
    "nft": "--max-steps 90 --beta 1 --learning-rate 2e-4 --warmup-steps 5 --ema-decay 0.95 "
    "--prompt-dropout 0.2",
    "kto": "--max-steps 90 --beta 50 --learning-rate 2e-4 --warmup-steps 5 --ema-decay 0.95 "
    "--prompt-dropout 0.2",
    "lair": "--max-steps 90 --beta 25 --learning-rate 2e-4 --warmup-steps 5 --ema-decay 0.95 "
    "--prompt-dropout 0.2",
    "grpo": "--max-steps 104 --images 128 --batch-size 384 --micro-batch-size 64 --warmup-steps 4 "
    "--ema-decay 0.9",
}
"""What each is run with. Of a batch's rows, dpo's are halves of pairs, grpo's steps of drawing: 384
are a whole rollout, three steps of each image."""


def run(line: str) -> float:
    """Run a command line and return its seconds."""
    started = time.perf_counter()
    cli.run(shlex.split(line))
    return time.perf_counter() - started


def prepare(study: str) -> None:
    """A study with rated images, a fitted reward, and the base's test images."""
    if not Path(study, "study.json").exists():
        run(f"new {study}")
    run(f"prompts {study} --train 320 --test 128 --fidelity 256")
    run(f"generate {study} --prompts train --per-prompt 8")
    run(f"rate {study} --simulated --prompts train")
    run(f"fit {study} {FIT}")
    run(f"generate {study} --prompts test --per-prompt 2")


def measured(study: str, aligner: str) -> str:
    """Train one aligner and measure it: a line of the table."""
    seconds = run(f"align {study} --aligner {aligner} {OPTIONS[aligner]}")
    model = f"runs/align-{aligner}"
    run(f"generate {study} --prompts test --per-prompt 2 --model {model}")
    run(f"evaluate {study} --model {model}")
    found = read_json(Path(study) / f"runs/evaluate-align-{aligner}/result.json")
    shares = [found["alignment"][name]["all"]["value"] for name in ("base", "aligned")]
    change = found["paired"]["all"]
    told = " → ".join(f"{share:.1%}" for share in shares)
    return f"{aligner:5} {told}  p {change['p_value']:.2g}  {seconds:.0f} s of training"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", nargs="?", help="folder to keep; default: none is kept")
    parser.add_argument("--only", nargs="+", choices=[*OPTIONS], default=[*OPTIONS])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        study = shlex.quote(options.study or f"{folder}/study")
        prepare(study)
        for aligner in options.only:
            print(measured(study, aligner), flush=True)


if __name__ == "__main__":
    main()
