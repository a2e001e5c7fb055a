"""An in-memory server of the rating page's interface, for looking at the page while it is made."""

import hashlib
import io
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, FileSystemLoader
from PIL import Image

import sayso
from sayso.tinyworld.render import compose
from sayso.tinyworld.scenes import BACKGROUNDS, COLOURS, OBJECTS, Scene, plural

WEB = Path(sayso.__file__).parent / "web"
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
NUMBERS = ("", "one", "two", "three", "four", "five")


def scene(i: int) -> Scene:
    rng = np.random.default_rng(i)
    pick = lambda options: str(rng.choice(options))  # noqa: E731
    return Scene(pick(OBJECTS), pick(COLOURS), int(rng.integers(1, 6)), pick(BACKGROUNDS))


def text(s: Scene) -> str:
    noun = s.object if s.count == 1 else plural(s.object)
    return f"{NUMBERS[s.count]} {s.colour} {noun} {s.background}"


def picture(i: int, slot: int, size: int) -> bytes:
    s, rng = scene(i), np.random.default_rng([i, slot])
    colour = s.colour if slot % 2 == 0 else str(rng.choice(COLOURS))
    pixels, _ = compose([(s.object, colour)] * s.count, s.background, rng, min(size, 256))
    image = Image.fromarray(pixels)
    if size > 256:
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


@dataclass
class World:
    kind: str = "rate"
    images: int = 1
    pages: int = 200
    size: int = 64
    guideline: str = ""
    accepted: bool = False
    long: bool = False
    paused: bool = False
    closed: bool = False
    signed_in: bool = True
    fail: int = 0  # status that votes are answered with
    votes: list[dict] = field(default_factory=list)
    by_id: dict = field(default_factory=dict)
    head: dict = field(default_factory=dict)  # item → its last row
    broken: list = field(default_factory=list)

    def open_items(self, i: int) -> list[str]:
        return [k for k in self.items(i) if self.head.get(k, {}).get("value") in (None, "retracted")]

    def items(self, i: int) -> list[str]:
        return [f"item-{i}-{k}" for k in range(1 if self.kind == "compare" else self.images)]

    def progress(self) -> dict:
        mine = sum(row["value"] != "retracted" for row in self.head.values())
        n = sum(len(self.items(i)) for i in range(self.pages))
        return {"mine": mine, "mine_total": n, "project": mine + 1163, "project_total": 6000}

    def page(self, i: int) -> dict:
        def image(slot: int) -> dict:
            token = hashlib.sha256(f"{i}/{slot}".encode()).hexdigest()[:20]
            URLS[token] = (i, slot)
            return {"url": f"/i/{token}", "width": self.size, "height": self.size}

        prompt = text(scene(i))
        if self.long:
            prompt = ", ".join([prompt, "seen from above in the first light of the morning, soft "
                "mist between the trees, painted in oil with visible strokes, muted colours"] * 2)
        page = {"page_id": f"p{i}", "kind": self.kind, "prompt": prompt, "question": "alignment"}
        if self.kind == "compare":
            item = self.items(i)[0]
            page |= {"question": ("alignment", "fidelity")[i % 2], "item_id": item}
            page |= {"left": [image(k) for k in range(0, 2 * self.images, 2)]}
            return page | {"right": [image(k) for k in range(1, 2 * self.images, 2)]}
        items = []
        for k, item in enumerate(self.items(i)):
            row = self.head.get(item)
            entry = {"item_id": item, "image": image(k), "supersedes": None}
            if row and row["value"] == "retracted":
                entry["supersedes"] = row["id"]
            elif row:
                entry["answered"] = {"vote_id": row["id"], "value": row["value"]}
            items.append(entry)
        return page | {"items": items}


URLS: dict[str, tuple[int, int]] = {}


def error(status: int, code: str, message: str) -> JSONResponse:
    return JSONResponse({"error": {"code": code, "message": message}}, status)


def make_app(world: World) -> FastAPI:
    app = FastAPI()
    app.mount("/static", StaticFiles(directory=WEB / "static"))
    env = Environment(loader=FileSystemLoader(WEB / "templates"), autoescape=True)
    common = {"study_name": "Orchard", "rater": {"name": "Ada", "role": "admin"}, "csrf": "c0"}

    @app.middleware("http")
    async def headers(request: Request, call_next):
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = CSP
        return response

    @app.get("/")
    def rate():
        if not world.signed_in:
            return RedirectResponse("/sign-in?next=/")
        return HTMLResponse(env.get_template("rate.html").render(**common))

    @app.get("/page/{name}")
    def page(name: str):
        from sample_pages import SAMPLES

        template, context = SAMPLES[name]
        return HTMLResponse(env.get_template(template).render(**{**common, **context}))

    @app.get("/sign-in")
    def sign_in():
        return HTMLResponse(env.get_template("sign_in.html").render(**common | {"rater": None}))

    @app.get("/api/session")
    def session():
        if not world.signed_in:
            return error(401, "not_signed_in", "Sign in first.")
        answers = ["left", "right", "tie"] if world.kind == "compare" else ["good", "bad", "skip"]
        task = {
            "id": "t1", "kind": world.kind, "images_per_page": world.images, "answers": answers,
            "guideline_version": 2 if world.guideline else 0, "guideline_html": world.guideline,
            "guideline_accepted": world.accepted, "paused": world.paused, "closed": world.closed,
        }  # fmt: skip
        rater = {"name": "Ada", "role": "admin"}
        study = {"id": "s1", "name": "Orchard"}
        return {"rater": rater, "csrf": "c1", "study": study, "task": task,
                "progress": world.progress()}  # fmt: skip

    @app.post("/api/guideline/accept")
    def accept():
        world.accepted = True
        return {}

    @app.post("/api/next")
    async def more(request: Request):
        if not world.signed_in:
            return error(401, "not_signed_in", "Sign in first.")
        if world.paused:
            return error(423, "paused", "The task is paused.")
        body = await request.json()
        have = set(body["have"])
        free = [i for i in range(world.pages) if world.open_items(i)]
        free = [i for i in free if f"p{i}" not in world.broken]
        pages = [world.page(i) for i in free if f"p{i}" not in have][: body["n"]]
        done = not pages
        return {"pages": pages, "done": done, "progress": world.progress()}

    @app.post("/api/votes")
    async def vote(request: Request):
        if not world.signed_in:
            return error(401, "not_signed_in", "Sign in first.")
        if world.fail:
            return error(world.fail, "failed", "The store is not there at the moment.")
        row = await request.json()
        known = world.by_id.get(row["id"])
        if known is None:
            head = world.head.get(row["item_id"])
            if (head["id"] if head else None) != row["supersedes"]:
                return error(409, "vote_conflict", "You have already answered this.")
            world.votes.append(row)
            world.by_id[row["id"]] = row
            world.head[row["item_id"]] = row
        elif known != row:
            return error(409, "vote_conflict", "Another answer has this id.")
        return {"id": row["id"], "stored": True, "surplus": False, "progress": world.progress()}

    @app.post("/api/release")
    async def release(request: Request):
        world.broken += (await request.json())["page_ids"]
        return {}

    @app.get("/i/{token}")
    def image(token: str):
        return Response(picture(*URLS[token], world.size), media_type="image/png",
                        headers={"Cache-Control": "private, no-store"})  # fmt: skip

    return app


class Running:
    """A server in a thread of this process, on a free port of this machine."""

    def __init__(self, world: World) -> None:
        config = uvicorn.Config(make_app(world), port=0, log_level="warning", lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def __enter__(self) -> str:
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}"

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()
