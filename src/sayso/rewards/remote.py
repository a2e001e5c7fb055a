"""A reward behind a server: an image and its prompt are sent, a number comes back."""

import base64
import http.client
import io
import json
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from urllib.parse import quote, urlsplit

import torch
from jaxtyping import Float
from torch import Tensor

from sayso.base import files
from sayso.base.errors import UserError
from sayso.data.clip import to_picture
from sayso.rewards import PretrainedReward

WANTED = 'a number, or {"score": a number, "model": "what computes it"}'
LONGEST_WAIT_S = 1e6
"""Seconds; systems' sockets take at most 24 days."""
LARGEST = float(torch.finfo(torch.float32).max)
PLAIN = "%/:?#[]@!$&'()*+,;=~"
"""What is not encoded in a path and its query."""


class _Response(NamedTuple):
    score: float
    model: str


def in_ascii(url: str) -> str:
    """An address as HTTP writes it: other letters percent-encoded, those of the host as IDNA.

    What is percent-encoded already stays as it is.

    Raises: ValueError: if it is malformed, with what is wrong.
    """
    parts = urlsplit(url)
    if parts.username is not None:
        raise ValueError("it holds a user name, which is not sent")
    if not parts.hostname:
        raise ValueError("it has no host")
    # brackets hold a numerical address
    literal = f"[{parts.hostname}]" if ":" in parts.hostname else ""
    host = literal or parts.hostname.encode("idna").decode()
    port = "" if parts.port is None else f":{parts.port}"
    query = f"?{parts.query}" if parts.query else ""
    return f"{parts.scheme}://{host}{port}{quote(parts.path + query, safe=PLAIN)}"


@dataclass
class Remote(PretrainedReward):
    """Asks a server over HTTP for the score of each image; whatever is no number ends the command.

    The server gets POST with JSON {"prompt": text, "image": a PNG in base64} and responds with a
    number, or {"score": number, "model": text}. The text should change whenever scores do: it is
    recorded when the reward is added, and another one is refused later.
    """

    differentiable: ClassVar[bool] = False

    url: str = ""
    """Address of the server, such as http://127.0.0.1:8000/score."""
    timeout_s: float = 60.0
    """Seconds to wait for a response."""
    parallel: int = 4
    """Images sent at the same time."""

    def __post_init__(self) -> None:
        if self.url and not self.url.startswith(("http://", "https://")):
            raise UserError(f"url {self.url!r} does not begin with http:// or https://")
        try:
            self._address = self.url and in_ascii(self.url)
        except ValueError as error:
            raise UserError(
                f"url {self.url!r} is not an address ({error}); give one such as "
                "http://127.0.0.1:8000/score"
            ) from None
        if not 0 < self.timeout_s <= LONGEST_WAIT_S:
            raise UserError(
                f"timeout_s {self.timeout_s} is not allowed; give seconds up to "
                f"{LONGEST_WAIT_S:,.0f}, such as 60"
            )
        if not 1 <= self.parallel <= 256:
            raise UserError(f"parallel {self.parallel} is not from 1 to 256; 4 is usual")

    def places(self) -> Mapping[str, str | None]:
        return {}

    def convert(self, found: Mapping[str, Path], folder: Path) -> None:  # noqa: ARG002
        """Ask about a grey image, and record which model scores."""
        if not self.url:
            raise UserError("reward remote needs the address of its server: give --url")
        response = self._ask(torch.full((3, 64, 64), 0.5), "a photo")
        files.write_json(folder / "remote.json", {"model": response.model})

    def load(self, weights: Path, device: torch.device | str) -> None:  # noqa: ARG002 (the server has its own)
        """Read which model has to score."""
        self._model: str = files.read_json(weights / "remote.json")["model"]

    def score(
        self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[str]
    ) -> Float[Tensor, " b"]:
        """The server's score of each image, RGB in [0, 1], rounded to 8 bits.

        Raises: UserError: if the server does not respond in time, or with an error, another model
            or anything but a finite number.
        """
        with ThreadPoolExecutor(self.parallel) as threads:
            responses = list(threads.map(self._ask, images, prompts))
        for response in responses:
            if response.model != self._model:
                raise UserError(
                    f"{self.url} scores with model {response.model!r}, but the reward was "
                    f"added with {self._model!r}; start that model, or add the reward under "
                    "another --name"
                )
        return torch.tensor([r.score for r in responses], device=images.device)

    def _ask(self, image: Float[Tensor, "3 h w"], prompt: str) -> _Response:
        file = io.BytesIO()
        to_picture(image).save(file, "PNG")
        body = {"prompt": prompt, "image": base64.b64encode(file.getvalue()).decode()}
        request = urllib.request.Request(
            self._address, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_s) as response:
                # a number of bytes to read would take a response cut short for a whole one
                content = response.read()
        except urllib.error.HTTPError as error:
            raise UserError(
                f"{self.url} responded {error.code} {error.reason}; look at the server's log"
            ) from None
        # a ValueError is a malformed address that the server redirects to
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._unreached(error) from None
        return self._read(content)

    def _unreached(self, error: Exception) -> UserError:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, TimeoutError):
            return UserError(
                f"{self.url} did not respond within {self.timeout_s:g} s; look whether it works, "
                "or add the reward with a larger --timeout-s"
            )
        said = str(reason) or type(reason).__name__
        return UserError(f"{self.url} cannot be reached ({said}); start the server")

    def _read(self, content: bytes) -> _Response:
        response = _response(content)
        if response is None:
            said = content[:80].decode(errors="replace")
            raise UserError(f"{self.url} responded {said!r}, which is not {WANTED}")
        return response


def _response(content: bytes) -> _Response | None:
    """What a server responded; None if it is not what is wanted."""
    try:
        found: Any = json.loads(content)
    except (ValueError, RecursionError):
        return None
    found = found if isinstance(found, dict) else {"score": found}
    score, model = found.get("score"), found.get("model", "")
    number = isinstance(score, int | float) and not isinstance(score, bool)
    # scores are kept in float32, and integers may be too large for any float
    if not number or not -LARGEST <= score <= LARGEST:
        return None
    # JSON can hold halves of letters, which no file can
    whole = isinstance(model, str) and not any("\ud800" <= letter <= "\udfff" for letter in model)
    return _Response(float(score), model) if whole else None
