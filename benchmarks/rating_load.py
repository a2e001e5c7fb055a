"""Fifty raters vote once a second each through the real server; times of their votes.

    python benchmarks/rating_load.py [--raters 50] [--seconds 60] [--images 20000]
        [--db postgresql://USER@HOST/NAME --workers 2]

SQLite, if no other database is named; one that is must be empty.

Each does what the rating page does for an answer: POST the vote, fetch the picture of a page to
come, and ask for more pages when few are left. Exits with 1 if a request fails or the 95th
percentile of a vote is 50 ms or more.
"""

import argparse
import asyncio
import random
import tempfile
import time
import uuid
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2 as httpx
from made_up import finish, make_study, milliseconds, served, sign_in_links

AHEAD, BATCH, MOST = 10, 3, 10  # as the page: queue.js
LIMIT_MS = 50.0


@dataclass
class Times:
    """Seconds that requests took, and what failed."""

    vote: list[float] = field(default_factory=list)
    next: list[float] = field(default_factory=list)
    picture: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def clear(self) -> None:
        """Signing in and the first pages are not part of the measure."""
        for times in (self.vote, self.next, self.picture):
            times.clear()


class Rater:
    """One browser: it keeps pages ahead and answers at its own pace."""

    def __init__(self, address: str, link: str, times: Times) -> None:
        self._http = httpx.AsyncClient(base_url=address, timeout=30, follow_redirects=True)
        self._link, self._times = link, times
        self._pages: deque[dict[str, Any]] = deque()

    async def sign_in(self) -> None:
        await self._http.get(self._link)
        self._http.headers["X-CSRF-Token"] = (await self._http.get("/api/session")).json()["csrf"]
        await self._fill()

    async def work(self, seconds: float, pace: float) -> None:
        due = time.perf_counter() + random.random() * pace
        end = due + seconds
        while due < end:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            await self._answer()
            due += pace
        await self._http.aclose()

    async def _answer(self) -> None:
        page = self._pages.popleft()
        body = {
            "id": uuid.uuid4().hex, "item_id": page["items"][0]["item_id"],
            "question": page["question"], "value": random.choice(("good", "bad")),
            "shown_at": 1.0, "answered_at": 2.0, "latency_ms": 1.0,
        }  # fmt: skip
        await self._timed(self._times.vote, "POST", "/api/votes", body)
        if len(self._pages) <= AHEAD:
            await self._fill()

    async def _fill(self) -> None:
        have = [page["page_id"] for page in self._pages]
        ask = {"have": have, "n": min(MOST, AHEAD + BATCH - len(have))}
        answer = await self._timed(self._times.next, "POST", "/api/next", ask)
        for page in answer.json()["pages"]:
            await self._timed(self._times.picture, "GET", page["items"][0]["image"]["url"])
            self._pages.append(page)

    async def _timed(
        self, times: list[float], method: str, path: str, body: object = None
    ) -> httpx.Response:
        started = time.perf_counter()
        answer = await self._http.request(method, path, json=body)
        times.append(time.perf_counter() - started)
        if answer.status_code != 200:
            self._times.errors.append(f"{answer.status_code} {path} {answer.text[:200]}")
        return answer


async def _work(address: str, links: list[str], seconds: float, times: Times) -> None:
    raters = [Rater(address, link, times) for link in links]
    for rater in raters:
        await rater.sign_in()
    times.clear()
    await asyncio.gather(*(rater.work(seconds, 1.0) for rater in raters))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--raters", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--db", default="")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    times = Times()
    with tempfile.TemporaryDirectory() as folder:
        study = make_study(Path(folder) / "study", options.images)
        if options.db:
            study.use_database(options.db)
        links = sign_in_links(study.path, options.raters)
        task = ("--overlap", 3, "--workers", options.workers)
        with served(study.path, *task) as (address, pid, _):
            asyncio.run(_work(address, links, options.seconds, times))
            busy = sum(map(int, Path(f"/proc/{pid}/stat").read_text().split()[13:15])) / 100
        stored = len(study.feedback.ratings())
    figures = {
        "raters": options.raters, "seconds": options.seconds, "stored": stored,
        "vote": milliseconds(times.vote), "next": milliseconds(times.next),
        "picture": milliseconds(times.picture), "server_cpu_s": busy,
        "errors": len(times.errors), "first_errors": times.errors[:3],
        "lost": len(times.vote) - stored,
    }  # fmt: skip
    finish("rating load", figures, {"vote/p95_ms": LIMIT_MS, "errors": 0, "lost": 0})


if __name__ == "__main__":
    main()
