"""Time and peak memory of `sayso export` on a study of many votes; ends with 1 if over the limit.

    python benchmarks/export.py [--votes 1000000] [--images 100000] [--limit-mib 1024]

The votes are made up and put straight into SQLite; their images are few files under many records,
so that the measure is of the votes and not of the disk.
"""

import argparse
import json
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from sayso import files
from sayso.study import Study, StudyInfo
from sayso.types import Prompt, Rating, Sample, Sampler, digest

FILES, PER_PROMPT = 200, 4
SAMPLER = Sampler(image_size_px=64)


def make_study(path: Path, votes: int, images: int) -> Study:
    """A study of `images` records and `votes` ratings, each image rated by as many raters."""
    study = Study.create(path, StudyInfo("benchmark", sampler=SAMPLER))
    study.write_prompts(
        Prompt(f"p{i}", f"prompt {i} of a benchmark", "count", {}, "train")
        for i in range(-(-images // PER_PROMPT))
    )
    rng = np.random.default_rng(0)
    for i in range(min(FILES, images)):
        picture = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
        (path / "images").mkdir(exist_ok=True)
        picture.save(path / "images" / f"{i}.png")
    samples = [
        Sample(digest(i), f"p{i // PER_PROMPT}", "base", i, SAMPLER, f"images/{i % FILES}.png", "")
        for i in range(images)
    ]
    files.append_lines(path / "samples.jsonl", (asdict(s) for s in samples))
    study.feedback.add_ratings([Rating("first", samples[0].id, "maker", "alignment", "good",
                                       False, 0.0, 0.0)])  # fmt: skip
    with sqlite3.connect(path / "feedback.db") as db:
        db.execute("PRAGMA synchronous=OFF")
        db.executemany(
            "INSERT INTO ratings (id, sample_id, reason, rater, question, value, simulated, "
            "shown_at, answered_at, shown) VALUES (?, ?, '', ?, 'alignment', ?, 0, ?, ?, ?)",
            _votes(samples, votes - 1),
        )
    db.close()
    return study


def _votes(samples: list[Sample], n: int) -> Iterator[tuple[object, ...]]:
    shown = json.dumps({"position": 7, "session": "s", "latency_ms": 1850.0, "app_version": "0.2"})
    for i in range(n):
        turn, place = divmod(i, len(samples))
        value = ("good", "bad", "skip")[(turn + place) % 3]
        at = 1.7e9 + i
        yield f"{i:032x}", samples[place].id, f"rater-{turn}", value, at, at + 1.85, shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--votes", type=int, default=1_000_000)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--format", default="sayso")
    parser.add_argument("--limit-mib", type=float, default=1024)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        study = make_study(Path(folder) / "study", options.votes, options.images)
        made = time.perf_counter()
        command = [sys.executable, "-m", "sayso", "export", study.path, "--format", options.format]
        subprocess.run(command, check=True, capture_output=True)
        seconds = time.perf_counter() - made
        manifest = files.read_json(study.export_path(options.format) / "manifest.json")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(json.dumps({
        "votes": manifest["counts"]["votes"], "images": manifest["counts"]["images"],
        "format": options.format, "seconds": round(seconds, 1), "peak_mib": round(peak),
        "limit_mib": options.limit_mib, "seconds_to_make_the_study": round(made - started, 1),
    }))  # fmt: skip
    sys.exit(peak > options.limit_mib or manifest["counts"]["votes"] != options.votes)


if __name__ == "__main__":
    main()
