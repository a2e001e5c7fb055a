"""Open a study of 100,000 images in the rating app, and serve the next item of it.

    python benchmarks/rating_open.py [--images 100000]

Times from the start of `sayso rate` until its page loads: the first time, when the items are put
into the database, and later (the median of five); then single requests for the next item and for
its picture, in the fresh task and with half of its items done. Exits with 1 if opening again takes
1 s or more, or the 95th percentile of next item and picture together 50 ms or more.
"""

import argparse
import sqlite3
import tempfile
import time
import uuid
from contextlib import closing
from pathlib import Path
from statistics import median

import httpx2 as httpx
from made_up import finish, make_study, milliseconds, served

TURNS, OPENINGS = 300, 5
VOTE = {
    "question": "alignment", "value": "good", "shown_at": 1, "answered_at": 2, "latency_ms": 1,
}  # fmt: skip


def seconds_to_open(study: Path) -> float:
    """From the start of the command until the page loads."""
    with served(study) as (_, _, seconds):
        return seconds


def next_items(address: str) -> list[float]:
    """Seconds from asking for the next item until its picture is there, again and again."""
    with httpx.Client(base_url=address) as browser:
        browser.headers["X-CSRF-Token"] = browser.get("/api/session").json()["csrf"]
        times: list[float] = []
        for _ in range(TURNS):
            started = time.perf_counter()
            page = browser.post("/api/next", json={"n": 1}).raise_for_status().json()["pages"][0]
            browser.get(page["items"][0]["image"]["url"]).raise_for_status()
            times.append(time.perf_counter() - started)
            vote = {"id": uuid.uuid4().hex, "item_id": page["items"][0]["item_id"], **VOTE}
            browser.post("/api/votes", json=vote).raise_for_status()
    return times


def finish_half(study: Path) -> None:
    """Every other item has its rater."""
    with closing(sqlite3.connect(study / "feedback.db")) as db, db:
        db.execute("UPDATE items SET votes = overlap, open = 0 WHERE rank % 2 = 0")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        study = make_study(Path(folder) / "study", options.images).path
        first = seconds_to_open(study)
        again = [seconds_to_open(study) for _ in range(OPENINGS)]
        with served(study) as (address, _, _):
            fresh = next_items(address)
        finish_half(study)
        with served(study) as (address, _, _):
            half = next_items(address)
    figures = {
        "images": options.images, "first_open_s": round(first, 2),
        "open_s": round(median(again), 2), "next": milliseconds(fresh),
        "next_when_half_done": milliseconds(half),
    }  # fmt: skip
    limits = {"open_s": 1.0, "next/p95_ms": 50.0, "next_when_half_done/p95_ms": 50.0}
    finish("rating open", figures, limits)


if __name__ == "__main__":
    main()
