"""The real app on a port of this machine, for tests that drive it with a browser."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from rating_studies import BASE, TUNED, RatingApp, make_study
from sqlalchemy import RowMapping, select, update

from sayso.feedback import vote_tables, work_tables
from sayso.web.work import people
from sayso.web.work.tasks import TaskOptions

PROMPTS = 10


class WallClock:
    """The real time, also for the clients that `rating_studies` makes."""

    @property
    def now(self) -> float:
        return time.time()

    def __call__(self) -> float:
        return self.now


@dataclass
class Served:
    """A running app and what its store holds."""

    app: RatingApp
    url: str = ""

    @property
    def link(self) -> str:
        return self.link_of("ann")

    def link_of(self, name: str) -> str:
        return f"{self.url}/in/{self.app.links[name]}"

    def rows(self) -> list[RowMapping]:
        """Every row of every vote, in the order stored."""
        kind = self.app.options.kind
        table = vote_tables.comparisons if kind == "compare" else vote_tables.ratings
        with self.app.site.read() as db:
            return list(db.execute(select(table).order_by(table.c.seq)).mappings())

    def live(self) -> dict[str, str]:
        """Item → the answer that counts."""
        heads = {row["item_id"]: row["value"] for row in self.rows()}
        return {item: value for item, value in heads.items() if value != "retracted"}

    def set_state(self, state: str) -> None:
        with self.app.site.write() as db:
            db.execute(update(work_tables.tasks).values(state=state))

    def write_guideline(self, text: str, base_version: int = 0) -> None:
        with self.app.site.write() as db:
            people.write_guideline(db, text, "boss", base_version)

    def refused(self) -> int:
        """How many items were handed out and never come to their rater again."""
        with self.app.site.read() as db:
            given = select(work_tables.assignments).filter_by(state="refused")
            return len(db.execute(given).all())


@contextmanager
def serve(
    folder: Path, names: tuple[str, ...] = ("ann",), n: int = 70, root_path: str = "",
    **task: object,
) -> Iterator[Served]:  # fmt: skip
    """Serve a study of about `n` pictures to rate, or as many comparisons with `kind="compare"`."""
    options = TaskOptions(attention_share=0.0, **task)  # type: ignore[arg-type]
    if options.kind == "compare":
        study = make_study(folder, 4, options.set_size, (BASE, TUNED))
    else:
        study = make_study(folder, PROMPTS, -(-n // PROMPTS))
    clock = WallClock()
    app = RatingApp(study, options, names=names, clock=clock, root_path=root_path)  # type: ignore[arg-type]
    with running(app.asgi) as url:
        yield Served(app, url)


@contextmanager
def running(app: FastAPI) -> Iterator[str]:
    """Run an app in a thread of this process; yields its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()
