"""A server that scores images as the reward `remote` asks for it: brightness and length of text."""

import base64
import io
import json
import threading
import time
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image


def brightness(image: Image.Image, prompt: str) -> float:
    """What the server responds: the mean of all pixels in [0, 1], and 1 for 100 letters."""
    return float(np.asarray(image).mean() / 255 + len(prompt) / 100)


class RewardServer(ThreadingHTTPServer):
    """Responds at `url` with `brightness`, or as `status`, `content`, `location`, `wait_s` say.

    `path` is the one that it was asked for last.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status, self.content, self.wait_s = 200, "", 0.0
        self.model = "bright-1"
        self.url = f"http://127.0.0.1:{self.server_port}/score"
        self.path, self.location = "", ""
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    server: Any

    def do_POST(self) -> None:
        self.server.path = self.path
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        image = Image.open(io.BytesIO(base64.b64decode(asked["image"])))
        assert image.format == "PNG"
        score = brightness(image, asked["prompt"])
        body = self.server.content or json.dumps({"score": score, "model": self.server.model})
        time.sleep(self.server.wait_s)
        self.send_response(self.server.status)
        if self.server.location:
            self.send_header("Location", self.server.location)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        """Nothing."""


@cache
def shared_server() -> RewardServer:
    """One for all tests that change nothing of it; it ends with the process."""
    return RewardServer()
