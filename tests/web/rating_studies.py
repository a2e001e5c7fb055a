"""Studies of plain pictures, and signed-in clients of the real app, for tests of the rating app."""

import io
import itertools
import json
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient
from PIL import Image, PngImagePlugin

from sayso.base.types import Prompt, Sample, Sampler, Size, sample_id
from sayso.feedback.database import Database
from sayso.study.info import StudyInfo
from sayso.study.study import Study
from sayso.web.app import create_app
from sayso.web.site import Site
from sayso.web.work import people
from sayso.web.work.opening import open_task
from sayso.web.work.tasks import TaskOptions

BASE, TUNED = "base", "runs/align-secretmodel"
SAMPLER = Sampler(num_inference_steps=2, image_size=Size(16, 16))
OBJECTS = ("dog", "cat", "tree", "house", "boat", "fish", "bird", "car")
SECRET = "5a" * 32
ADDRESS = "http://127.0.0.1:8321"


def make_study(
    folder: Path, prompts: int = 4, per_prompt: int = 3, models: tuple[str, ...] = (BASE,)
) -> Study:
    """A study with tiny pictures whose metadata tells the model, as some tools write it."""
    study = Study.create(folder / "study", StudyInfo("meadow", 3, sampler=SAMPLER))
    set_secret(study, SECRET)
    texts = [f"{i // len(OBJECTS) + 1} {OBJECTS[i % len(OBJECTS)]}s" for i in range(prompts)]
    study.write_prompts(
        Prompt(f"prompt-{i}", text, "count", {"object": text.split()[1][:-1]}, "train")
        for i, text in enumerate(texts)
    )
    for model in models:
        add_images(study, model, per_prompt)
    return study


def set_secret(study: Study, secret: str) -> None:
    """Orders depend on it, so tests want the same one each time."""
    path = study.path / "server.secret"
    path.write_text(secret)
    path.chmod(0o600)


def add_images(study: Study, model: str, per_prompt: int, first: int = 0) -> None:
    """Draw one-coloured pictures of a model for every prompt."""
    colours = itertools.count(100 if model == TUNED else 0)
    with (study.path / "samples.jsonl").open("a") as records:
        for prompt in study.prompts():
            for seed in range(first, first + per_prompt):
                key = sample_id(prompt.id, model, seed, SAMPLER)
                sample = Sample(key, prompt.id, model, seed, SAMPLER, study.image_path(key), "l")
                path = study.path / sample.path
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(picture(next(colours), model))
                records.write(json.dumps(asdict(sample)) + "\n")


def picture(number: int, model: str) -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("Model", model)
    target = io.BytesIO()
    colour = (number % 256, number // 256 % 256, 80)
    Image.new("RGB", (16, 16), colour).save(target, "PNG", pnginfo=info)
    return target.getvalue()


@dataclass
class Clock:
    """Seconds since the epoch, moved by hand."""

    now: float = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class RatingApp:
    """A served study: its app, and the people who sign in."""

    study: Study
    options: TaskOptions = field(default_factory=lambda: TaskOptions(attention_share=0.0))
    url: str = ""
    clock: Clock = field(default_factory=Clock)
    names: tuple[str, ...] = ("ann",)
    local: bool = False
    busy_timeout_s: float = 10.0
    root_path: str = ""

    def __post_init__(self) -> None:
        if self.url:
            self.study.use_database(self.url)
        url = self.study.feedback.database.url
        database = Database(url, self.busy_timeout_s, keep_open=True)
        with database.write() as db:
            self.links = {
                name: people.add(db, name, _role(name), "simulated" in name) for name in self.names
            }
        task = open_task(database, self.study, self.options)
        self.site = Site(
            self.study, database, task, self.local, self.clock, split_tie=self.options.split_tie,
            root_path=self.root_path,
        )  # fmt: skip
        self.asgi = create_app(self.site)

    def client(self, name: str = "ann") -> "Rater":
        return Rater(self, name)

    def table(self, sql: str) -> list[Any]:
        with self.site.read() as db:
            return list(db.exec_driver_sql(sql))


def _role(name: str) -> str:
    return {"boss": "admin", "eve": "reviewer"}.get(name, "rater")


class Rater:
    """A browser of one rater: cookie, token, and the calls of the page."""

    def __init__(self, app: RatingApp, name: str) -> None:
        self.app, self.name = app, name
        self.http = TestClient(app.asgi, base_url=ADDRESS, raise_server_exceptions=False)
        if name in app.links:
            self.http.get(f"/in/{app.links[name]}")
        self.token = ""
        self.session()

    def session(self) -> dict[str, Any]:
        response = self.http.get("/api/session")
        if response.status_code == 200:
            self.token = response.json()["csrf"]
        return response.json()

    def post(self, path: str, body: object) -> Any:
        return self.http.post(path, json=body, headers={"X-CSRF-Token": self.token})

    def next(self, n: int = 1, have: tuple[str, ...] = ()) -> dict[str, Any]:
        response = self.post("/api/next", {"have": have, "n": n})
        assert response.status_code == 200, response.text
        return response.json()

    def pages(self, n: int = 1, have: tuple[str, ...] = ()) -> list[dict[str, Any]]:
        return self.next(n, have)["pages"]

    def body(self, item: str, value: str = "good", **more: object) -> dict[str, Any]:
        now = self.app.clock.now * 1000
        return {
            "id": uuid.uuid4().hex, "item_id": item, "question": "alignment",
            "value": value, "shown_at": now - 1500, "answered_at": now, "latency_ms": 1500,
            "hidden_ms": 0, "position": 0, **more,
        }  # fmt: skip

    def vote(self, item: str, value: str = "good", **more: object) -> Any:
        return self.post("/api/votes", self.body(item, value, **more))

    def vote_on(
        self, page: dict[str, Any], choose: Callable[[str], str] = lambda _: "good"
    ) -> None:
        """Answer every item of a page."""
        for item in items_of(page):
            done = self.vote(item, choose(item), question=page["question"])
            assert done.status_code == 200, done.text

    def work(self, choose: Callable[[str], str] = lambda _: "good", most: int = 10_000) -> int:
        """Answer until nothing is left: how many pages there were."""
        for done in range(most):
            pages = self.pages()
            if not pages:
                return done
            self.vote_on(pages[0], choose)
        return most


def items_of(page: dict[str, Any]) -> list[str]:
    if page["kind"] == "compare":
        return [page["item_id"]]
    return [item["item_id"] for item in page["items"]]
