"""A web server of images, and of what else a URL may lead to."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class ImageServer:
    """It listens on every loopback address, so that 127.0.0.2 leads to it as well."""

    image: bytes
    port: int = 0
    seen: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    """Path and headers of each request."""

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}/{path}"


class Handler(BaseHTTPRequestHandler):
    server: Any

    def do_GET(self) -> None:
        known: ImageServer = self.server.known
        known.seen.append((self.path, dict(self.headers)))
        kind, _, rest = self.path[1:].partition("/")
        match kind:
            case "image":
                self._answer(200, known.image, "Set-Cookie: who=you")
            case "missing":
                self._answer(404, b"")
            case "redirect":
                self._answer(302, b"", f"Location: {rest}")
            case "flood":  # a redirect whose own body has no end
                self._drip(b"x" * 4096, "Location: /image", status=302, seconds=0)
            case "loop":
                self._answer(302, b"", "Location: /loop")
            case "compressed":
                self._answer(200, known.image, "Content-Encoding: gzip")
            case "endless":
                self._drip(b"x" * 4096, seconds=0)
            case "slow":
                self._drip(b"x", seconds=0.05)
            case "dead":
                self.close_connection = True

    def _answer(self, status: int, content: bytes, *headers: str) -> None:
        self.send_response(status)
        for header in headers:
            self.send_header(*header.split(": ", 1))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _drip(self, chunk: bytes, *headers: str, status: int = 200, seconds: float) -> None:
        self.send_response(status)
        for header in headers:
            self.send_header(*header.split(": ", 1))
        self.end_headers()
        try:
            while True:
                self.wfile.write(chunk)
                time.sleep(seconds)
        except OSError:
            self.close_connection = True  # the other side has had enough

    def log_message(self, format: str, *args: Any) -> None:
        """Quietly."""


@contextmanager
def image_server(image: bytes) -> Iterator[ImageServer]:
    known = ImageServer(image)
    with ThreadingHTTPServer(("0.0.0.0", 0), Handler) as server:
        server.daemon_threads = True
        known.port = server.server_port
        server.known = known  # pyright: ignore[reportAttributeAccessIssue]
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield known
        finally:
            server.shutdown()
