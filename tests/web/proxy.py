"""A reverse proxy on a port of this machine, as raters' networks and hosts have them."""

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


@contextmanager
def proxy_to(
    url: str, prefix: str = "", keep: bool = False, host: bool = False, chunked: bool = False
) -> Iterator[str]:
    """Serve the site at `url` under another address, which is yielded.

    Args:
        prefix: path under which it stands here; it is taken off on the way.
        keep: leave the prefix on.
        host: write the upstream's name into the Host header.
        chunked: send bodies on without a length.
    """
    upstream = urlsplit(url).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _carry(self) -> None:
            if not f"{self.path}/".startswith(f"{prefix}/"):
                return self._respond(404, [], b"not this site")
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            hop = (
                ("connection", "content-length", "host")
                if host
                else ("connection", "content-length")
            )
            headers = {k: v for k, v in self.headers.items() if k.lower() not in hop}
            if host:
                headers["Host"] = upstream
            parts = (body[i : i + 50] for i in range(0, len(body), 50))
            link = http.client.HTTPConnection(upstream, timeout=30)
            send = parts if chunked and body else body or None
            if chunked and body:
                headers["Transfer-Encoding"] = "chunked"
            path = self.path if keep else self.path.removeprefix(prefix)
            link.request(self.command, path, send, headers, encode_chunked=chunked)
            with link.getresponse() as response:
                self._respond(response.status, response.getheaders(), response.read())
            return link.close()

        def _respond(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
            self.send_response_only(status)
            own = ("transfer-encoding", "content-length", "connection")
            for name, value in headers:
                if name.lower() not in own:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

        do_GET = do_POST = _carry

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}{prefix}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
