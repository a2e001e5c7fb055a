"""What the benchmarks share: made-up studies, the real server beside them, the printed result."""

import json
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import numpy as np
from PIL import Image
from sqlalchemy import Connection, select, text, update

from sayso.base import files
from sayso.base.types import Prompt, Sample, Sampler, Size, digest
from sayso.feedback import work_tables as work
from sayso.study.info import StudyInfo
from sayso.study.study import Study
from sayso.web.work import people
from sayso.web.work.tasks import QUESTIONS_OF

FILES, PER_PROMPT = 200, 4
SAMPLER = Sampler(image_size=Size(64, 64))


def make_study(path: Path, images: int, size_px: int = 64) -> Study:
    """A study with records of `images` images of noise; at most `FILES` files lie under them."""
    study = Study.create(path, StudyInfo("benchmark", sampler=SAMPLER))
    study.write_prompts(
        Prompt(f"p{i}", f"a {i}", "count", {}, "train") for i in range(-(-images // PER_PROMPT))
    )
    rng = np.random.default_rng(0)
    (path / "images").mkdir(exist_ok=True)
    for i in range(min(FILES, images)):
        noise = rng.integers(0, 256, (size_px, size_px, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path / "images" / f"{i}.png")
    samples = (
        Sample(digest(i), f"p{i // PER_PROMPT}", "base", i, SAMPLER, f"images/{i % FILES}.png", "")
        for i in range(images)
    )
    files.append_lines(path / "samples.jsonl", (asdict(sample) for sample in samples))
    return study


def sayso(*arguments: object) -> list[str]:
    """The command line of the program as it is installed beside this Python."""
    return [sys.executable, "-m", "sayso", *map(str, arguments)]


def sign_in_links(study: Path, raters: int) -> list[str]:
    """Add raters; the paths of their sign-in links."""
    with Study.open(study).feedback.database.write() as db:
        return [f"/in/{people.add(db, f'rater-{i}', 'rater')}" for i in range(raters)]


@contextmanager
def served(study: Path, *options: object) -> Iterator[tuple[str, int, float]]:
    """`sayso rate` in a process of its own: address, process id, seconds until it responded."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    started = time.perf_counter()
    command = sayso("rate", study, "--no-browser", "--port", port, *options)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        while not _responds(port):
            assert process.poll() is None, "the server has stopped"
            time.sleep(0.005)
        yield address, process.pid, time.perf_counter() - started
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _responds(port: int) -> bool:
    # the standard library's client, because the other one takes some 30 ms to begin
    try:
        with closing(HTTPConnection("127.0.0.1", port, timeout=30)) as line:
            line.request("GET", "/healthz")
            return line.getresponse().status == 200
    except (OSError, HTTPException):
        return False


def milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    """Number, median, 95th percentile and maximum."""
    ms = np.asarray(seconds) * 1000
    middle, high = np.percentile(ms, [50, 95])
    values = {"median_ms": middle, "p95_ms": high, "max_ms": ms.max()}
    return {"n": len(ms), **{key: round(float(value), 1) for key, value in values.items()}}


def finish(what: str, figures: Mapping[str, object], limits: Mapping[str, float]) -> None:
    """Print figures, machine and commit as JSON; exit with 1 if a figure is over its limit.

    Args:
        limits: name of a figure, "/" for one inside another → the most it may be.
    """
    over = {
        name: figure for name, limit in limits.items() if (figure := _find(figures, name)) > limit
    }
    row = {
        "benchmark": what, **figures, "limits": limits, "over": over,
        "machine": f"{os.cpu_count()} × {platform.machine()}", "commit": _commit(),
    }  # fmt: skip
    print(json.dumps(row, indent=1), flush=True)
    sys.exit(bool(over))


def _find(figures: Mapping[str, object], name: str) -> float:
    for part in name.split("/"):
        figures = figures[part]  # type: ignore[assignment]
    return float(figures)  # type: ignore[arg-type]


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    here = Path(__file__).parent
    return subprocess.run(command, capture_output=True, text=True, cwd=here).stdout.strip()


_NUMBERS = "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < :last) "
_RATER = "full-rater-"


def fill(db: Connection, task: str, votes: int, overlap: int = 3, raters: int = 50) -> None:
    """Put finished items into an open task, in the middle of whose work the database then is.

    Args:
        votes: how many; each item has `overlap` of them, of different raters.
    """
    row = db.execute(select(work.tasks).where(work.tasks.c.id == task)).mappings().one()
    items, rank = votes // overlap, row["n_ranks"]
    common = {"task": task, "overlap": overlap, "raters": raters, "rank": rank, "yes": True,
              "no": False, "questions": len(QUESTIONS_OF[row["kind"]])}  # fmt: skip
    db.execute(text(_NUMBERS + _FULL_RATERS), {**common, "last": raters - 1})
    db.execute(text(_NUMBERS + _FULL_ITEMS), {**common, "last": items - 1})
    given = {**common, "last": items * overlap - 1}
    db.execute(text(_NUMBERS + _ASSIGNMENTS), given)
    db.execute(text(_NUMBERS + _VOTES[row["kind"]]), given)
    more = {
        "n_items": row["n_items"] + items, "n_ranks": rank + items,
        "wanted": row["wanted"] + items * overlap, "votes": row["votes"] + items * overlap,
        "all_votes": row["all_votes"] + items * overlap,
    }  # fmt: skip
    db.execute(update(work.tasks).where(work.tasks.c.id == task).values(more))


def _insert(table: str, values: Mapping[str, str]) -> str:
    # SQLite wants the recursive part before INSERT, PostgreSQL takes it there too
    return f"INSERT INTO {table} ({', '.join(values)}) SELECT {', '.join(values.values())} FROM n"


_ITEM = "('full-item-' || (i / :overlap))"
_BY = f"('{_RATER}' || ((i / :overlap + i % :overlap) % :raters))"
_FULL_RATERS = _insert("raters", {
    "id": f"'{_RATER}' || i", "name": f"'{_RATER}' || i", "role": "'rater'", "simulated": ":no",
    "active": ":yes", "created_at": "0",
})  # fmt: skip
_FULL_ITEMS = _insert("items", {
    "id": "'full-item-' || i", "task": ":task", "content": "'alignment:full-' || i",
    "pair": "'full-pair-' || (i / :questions)", "control": "''", "rank": ":rank + i", "slot": "0",
    "page": "'full-page-' || i", "question": "'alignment'", "prompt_id": "'full-prompt'",
    "prompt": "'a prompt'", "samples": "'[]'", "images": "'[]'", "models": "'[]'",
    "expected": "''", "overlap": ":overlap", "votes": ":overlap", "open": ":no",
})  # fmt: skip
_ASSIGNMENTS = _insert("assignments", {
    "item": _ITEM, "rater": _BY, "task": ":task", "key": "'full-key-' || i",
    "state": f"'{work.VOTED}'", "until": "0", "swapped": ":no", "position": "0",
    "vote": "'full-vote-' || i",
})  # fmt: skip
_VOTE = {
    "id": "'full-vote-' || i", "rater": _BY, "question": "'alignment'", "simulated": ":no",
    "shown_at": "0", "answered_at": "1", "task_id": ":task", "item_id": _ITEM,
    "shown": """'{"latency_ms": 1000, "received_at": 1}'""",
}  # fmt: skip
_VOTES = {
    "rate": _insert("ratings", {
        **_VOTE, "value": "'good'", "reason": "''", "sample_id": "'full-sample-' || (i / :overlap)",
    }),
    "compare": _insert("comparisons", {
        **_VOTE, "value": "'left'", "prompt_id": "'full-prompt'",
        "pair": "'full-pair-' || (i / :overlap / :questions)", "left_model": "'base'",
        "right_model": "'other'", "left_ids": "'[]'", "right_ids": "'[]'",
        "question": "CASE WHEN i / :overlap % 2 = 0 THEN 'alignment' ELSE 'fidelity' END",
    }),
}  # fmt: skip
