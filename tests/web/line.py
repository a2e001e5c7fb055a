"""A line of a given speed between a browser and a server here, shared by all connections."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

PART = 4096


@dataclass
class Line:
    """What comes down takes its time; `rate` in bits a second, at 0 nothing moves."""

    upstream: int
    rate: float
    listener: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))
    down: int = 0
    _busy: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _ends: list[socket.socket] = field(default_factory=list[socket.socket], repr=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def seconds(self, n_bytes: float) -> float:
        """The line's own time for so many bytes."""
        return 8 * n_bytes / self.rate

    def accept(self) -> None:
        """Connect browsers until the listener is closed."""
        with suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                far = socket.create_connection(("127.0.0.1", self.upstream))
                # no more than a moment of it waits in the kernel, as on a real line
                near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * PART)
                self._ends += [near, far]
                for source, sink, slow in ((near, far, False), (far, near, True)):
                    carry = (source, sink, slow)
                    threading.Thread(target=self._carry, args=carry, daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, slow: bool) -> None:
        with suppress(OSError):
            while part := source.recv(PART):
                if slow:
                    self._take_time(len(part))
                sink.sendall(part)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def _take_time(self, n_bytes: int) -> None:
        """One part after the other, of whichever connection."""
        with self._busy:
            while self.rate == 0:
                time.sleep(0.02)
            time.sleep(self.seconds(n_bytes))
            self.down += n_bytes

    def close(self) -> None:
        self.rate = self.rate or 1e9
        for end in (self.listener, *self._ends):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@contextmanager
def line_to(url: str, rate: float) -> Iterator[Line]:
    """A line to a server, open while the block runs."""
    line = Line(urlsplit(url).port or 80, rate)
    thread = threading.Thread(target=line.accept, daemon=True)
    thread.start()
    try:
        yield line
    finally:
        line.close()
        thread.join()
