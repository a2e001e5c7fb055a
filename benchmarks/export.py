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
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from made_up import finish, make_study, sayso

from sayso.base import files
from sayso.base.types import Rating, Sample
from sayso.study.study import Study


def add_votes(study: Study, votes: int) -> None:
    """Rate each image by as many raters as it takes."""
    samples = study.samples()
    first = Rating("first", samples[0].id, "maker", "alignment", "good", False, 0.0, 0.0)
    study.feedback.add_ratings([first])
    with closing(sqlite3.connect(study.path / "feedback.db")) as db, db:
        db.execute("PRAGMA synchronous=OFF")
        db.executemany(
            "INSERT INTO ratings (id, sample_id, reason, rater, question, value, simulated, "
            "shown_at, answered_at, shown) VALUES (?, ?, '', ?, 'alignment', ?, 0, ?, ?, ?)",
            _votes(samples, votes - 1),
        )


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
        study = make_study(Path(folder) / "study", options.images)
        add_votes(study, options.votes)
        started = time.perf_counter()
        command = sayso("export", study.path, "--format", options.format)
        subprocess.run(command, check=True, capture_output=True)
        seconds = time.perf_counter() - started
        manifest = files.read_json(study.export_path(options.format) / "manifest.json")
    counts = manifest["counts"]
    figures = {
        "votes": counts["votes"], "images": counts["images"], "format": options.format,
        "seconds": round(seconds, 1), "lost": options.votes - counts["votes"],
        "peak_mib": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024),
    }  # fmt: skip
    finish("export", figures, {"peak_mib": options.limit_mib, "lost": 0})


if __name__ == "__main__":
    main()
