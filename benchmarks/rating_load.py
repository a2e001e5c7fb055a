"""Raters vote through the real server; what a vote takes, empty or full, and how many it can bear.

    python benchmarks/rating_load.py [--seconds 30] [--votes 100000] [--images 20000]
        [--db postgresql://USER@HOST/NAME --workers 2]

Each rater does what the rating page does for a vote: POST the vote, fetch the picture of a page
to come, and ask for more pages when few are left.

1. Fifty raters, one vote a second each, on an empty database and on one that holds `--votes` votes:
   two servers, a few seconds in turn, so that whatever else the machine does meets both.
2. The knee, on the full one: more and more votes a second, until a request fails, the 95th
   percentile of a vote is 100 ms or more, or the server lags behind. What else the machine does can
   only lower it, so a step is borne if one of three tries is.

Exits with 1 if a request fails, a vote is lost, the 95th percentile of a vote is 50 ms or more, or
median or 95th percentile on the full database are more than 1.2 times those on the empty one.
Prints a table, then all figures as JSON. SQLite, if no other database is named; one that is must be
empty, and is measured full, by itself.
"""

import argparse
import asyncio
import json
import random
import tempfile
import time
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from made_up import fill, finish, make_study, milliseconds, served, sign_in_links
from sqlalchemy import select

from sayso.feedback import work_tables as work
from sayso.study.study import Study

AHEAD, BATCH, MOST = 10, 3, 10  # as the page: queue.js
RATERS, PER_SECOND = 50, 50.0
TURN_S, STEP_S, TRIES = 5.0, 8.0, 3
LIMIT_MS, KNEE_MS, RATIO = 50.0, 100.0, 1.2


@dataclass
class Times:
    """Seconds that requests took and the server was busy, and what failed."""

    busy: float = 0.0
    acknowledged: int = 0
    vote: list[float] = field(default_factory=list)
    next: list[float] = field(default_factory=list)
    picture: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


class Line:
    """One connection that stays open; a client library's own cost would be measured, too."""

    def __init__(self, address: str) -> None:
        self._host, self._port = address.removeprefix("http://").split(":")
        self.headers: dict[str, str] = {"Host": f"{self._host}:{self._port}"}

    async def open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection(self._host, int(self._port))

    async def ask(self, method: str, path: str, body: object = None) -> tuple[int, bytes, bytes]:
        """Status, head and body of the response."""
        content = b"" if body is None else json.dumps(body).encode()
        head = {**self.headers, "Content-Length": str(len(content))}
        if content:
            head["Content-Type"] = "application/json"
        lines = [f"{method} {path} HTTP/1.1", *(f"{k}: {v}" for k, v in head.items()), "", ""]
        self._writer.write("\r\n".join(lines).encode() + content)
        said = await self._reader.readuntil(b"\r\n\r\n")
        length = int(said.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        return int(said[9:12]), said, await self._reader.readexactly(length)

    def close(self) -> None:
        self._writer.close()


class Rater:
    """One browser: it keeps pages ahead and votes at its own pace."""

    def __init__(self, address: str, link: str, times: Times) -> None:
        self._line, self._link, self.times = Line(address), link, times
        self._pages: deque[dict[str, Any]] = deque()

    async def sign_in(self) -> None:
        await self._line.open()
        _, head, _ = await self._line.ask("GET", self._link)
        cookie = head.lower().index(b"set-cookie:") + len("set-cookie:")
        self._line.headers["Cookie"] = head[cookie:].split(b";")[0].strip().decode()
        _, _, session = await self._line.ask("GET", "/api/session")
        self._line.headers["X-CSRF-Token"] = json.loads(session)["csrf"]
        await self._fill()

    async def work(self, seconds: float, pace: float) -> None:
        due = time.perf_counter() + random.random() * pace
        end = time.perf_counter() + seconds
        while due < end:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            await self._vote()
            due += pace

    def leave(self) -> None:
        self._line.close()

    async def _vote(self) -> None:
        if not self._pages:
            await self._fill()
        page = self._pages.popleft()
        body = {
            "id": uuid.uuid4().hex, "item_id": page["items"][0]["item_id"],
            "question": page["question"], "value": random.choice(("good", "bad")),
            "shown_at": 1.0, "answered_at": 2.0, "latency_ms": 1.0,
        }  # fmt: skip
        response = await self._timed(self.times.vote, "POST", "/api/votes", body)
        self.times.acknowledged += response is not None
        if len(self._pages) <= AHEAD:
            await self._fill()

    async def _fill(self) -> None:
        have = [page["page_id"] for page in self._pages]
        ask = {"have": have, "n": min(MOST, AHEAD + BATCH - len(have))}
        response = await self._timed(self.times.next, "POST", "/api/next", ask)
        for page in json.loads(response)["pages"] if response else []:
            await self._timed(self.times.picture, "GET", page["items"][0]["image"]["url"])
            self._pages.append(page)

    async def _timed(
        self, times: list[float], method: str, path: str, body: object = None
    ) -> bytes | None:
        """The body of the response; None, and an error noted, if there is none."""
        started = time.perf_counter()
        status, _, content = await self._line.ask(method, path, body)
        times.append(time.perf_counter() - started)
        if status == 200:
            return content
        self.times.errors.append(f"{status} {path} {content[:200]!r}")
        return None


@dataclass
class Store:
    """A server on its own database, and the raters who are signed in there."""

    study: Study
    pid: int
    raters: list[Rater]
    stored_before: int
    votes: int = 0

    async def load(self, times: Times, seconds: float, per_second: float) -> None:
        """All raters work."""
        for rater in self.raters:
            rater.times = times
        pace = len(self.raters) / per_second
        await asyncio.gather(*(rater.work(seconds, pace) for rater in self.raters))
        self.votes += times.acknowledged

    def busy_s(self) -> float:
        """Processor time of the server so far, without its workers'."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:13])) / 100

    def lost(self) -> int:
        return self.votes - (len(self.study.feedback.ratings()) - self.stored_before)


@contextmanager
def store(folder: Path, images: int, votes: int, db: str, workers: int) -> Iterator[Store]:
    """A study whose task is open, with `votes` votes."""
    study = make_study(folder, images)
    if db:
        study.use_database(db)
    links = sign_in_links(study.path, RATERS)
    task = ("--overlap", 3, "--workers", workers)
    with served(study.path, *task):
        pass
    if votes:
        with study.feedback.database.write() as connection:
            fill(connection, connection.scalar(select(work.tasks.c.id)) or "", votes)
    before = len(study.feedback.ratings())
    with served(study.path, *task) as (address, pid, _):
        yield Store(study, pid, [Rater(address, link, Times()) for link in links], before)


async def in_turn(stores: list[Store], seconds: float) -> list[Times]:
    """Load the stores one after the other, again and again."""
    for one in stores:
        for rater in one.raters:
            await rater.sign_in()
    times = [Times() for _ in stores]
    for _ in range(round(seconds / TURN_S)):
        for one, kept in zip(stores, times, strict=True):
            part, busy = Times(), one.busy_s()
            await one.load(part, TURN_S, PER_SECOND)
            kept.busy += one.busy_s() - busy
            for name in ("vote", "next", "picture", "errors"):
                getattr(kept, name).extend(getattr(part, name))
    return times


async def knee(full: Store) -> list[dict[str, float]]:
    """Steps of the load until it is too much; all but the last were borne."""
    steps: list[dict[str, float]] = []
    rate = PER_SECOND
    while not steps or steps[-1]["borne"]:
        for _ in range(TRIES):
            step = await _step(full, rate)
            if step["borne"]:
                break
        steps.append(step)
        rate *= 1.2
    return steps


async def _step(full: Store, rate: float) -> dict[str, float]:
    times, busy, started = Times(), full.busy_s(), time.perf_counter()
    await full.load(times, STEP_S, rate)
    got = len(times.vote) / (time.perf_counter() - started)
    p95_ms = milliseconds(times.vote)["p95_ms"]
    return {
        "asked": round(rate), "votes_per_s": round(got, 1), "p95_ms": p95_ms,
        "errors": len(times.errors), "server_cpu_ms": _per_vote(full.busy_s() - busy, times),
        "borne": p95_ms < KNEE_MS and not times.errors and got >= 0.9 * rate,
    }  # fmt: skip


def _per_vote(busy_s: float, times: Times) -> float:
    return round(busy_s / len(times.vote) * 1000, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--votes", type=int, default=100_000)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--db", default="")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    sizes = [options.votes] if options.db else [0, options.votes]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        stores = [
            stack.enter_context(
                store(Path(folder) / str(n), options.images, n, options.db, options.workers)
            )
            for n in sizes
        ]
        times, steps = asyncio.run(_measure(stores, options.seconds))
        lost = sum(one.lost() for one in stores)
    figures, limits = _figures(sizes, times, steps, lost)
    print(_table(sizes, times, figures))
    finish("rating load", figures, limits)


async def _measure(
    stores: list[Store], seconds: float
) -> tuple[list[Times], list[dict[str, float]]]:
    times = await in_turn(stores, seconds)
    steps = await knee(stores[-1])
    for one in stores:
        for rater in one.raters:
            rater.leave()
    return times, steps


def _figures(
    sizes: list[int], times: list[Times], steps: list[dict[str, float]], lost: int
) -> tuple[dict[str, object], dict[str, float]]:
    """What was measured, and the limits."""
    figures: dict[str, object] = {
        f"with_{size}_votes": {
            "vote": milliseconds(one.vote), "next": milliseconds(one.next),
            "picture": milliseconds(one.picture), "server_cpu_ms": _per_vote(one.busy, one),
        }
        for size, one in zip(sizes, times, strict=True)
    }  # fmt: skip
    errors = [error for one in times for error in one.errors]
    borne = [step["votes_per_s"] for step in steps if step["borne"]]
    figures |= {
        "raters": RATERS, "votes_per_s": PER_SECOND, "errors": len(errors),
        "first_errors": errors[:3], "lost": lost, "knee_votes_per_s": max(borne, default=0.0),
        "steps": steps,
    }  # fmt: skip
    limits = {f"with_{sizes[-1]}_votes/vote/p95_ms": LIMIT_MS, "errors": 0.0, "lost": 0.0}
    if len(sizes) > 1:
        empty, full = (milliseconds(one.vote) for one in times)
        for name in ("median", "p95"):
            ratio = full[f"{name}_ms"] / empty[f"{name}_ms"]
            figures[f"{name}_full_to_empty"] = round(ratio, 2)
            limits[f"{name}_full_to_empty"] = RATIO
    return figures, limits


def _table(sizes: list[int], times: list[Times], figures: dict[str, object]) -> str:
    """What matters most, for people: a line a figure."""
    votes = [milliseconds(one.vote) for one in times]
    known = [(name, [row[f"{name}_ms"] for row in votes]) for name in ("median", "p95")]
    rows = [(f"a vote, {name}, ms", values) for name, values in known]
    rows.append(("processor of the server a vote, ms", [_per_vote(t.busy, t) for t in times]))
    highest = [*("" for _ in sizes[1:]), figures["knee_votes_per_s"]]
    stored = [f"{n:,}" for n in sizes]
    lines = [_line(f"{RATERS} raters, {PER_SECOND:.0f} votes/s; votes stored:", stored, "ratio")]
    lines += [_line(name, values, _ratio(values)) for name, values in rows]
    return "\n".join([*lines, _line("votes/s at the knee", highest, "")])


def _line(name: str, values: Sequence[object], last: object) -> str:
    return f"{name:40}" + "".join(f"{value!s:>10}" for value in (*values, last))


def _ratio(values: list[float]) -> str:
    return f"{values[-1] / values[0]:.2f}" if len(values) > 1 else ""


if __name__ == "__main__":
    main()
