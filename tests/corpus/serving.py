"""An HTTP server on this machine that gives one file, as well or as badly as a test asks."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Served:
    """A served file and its options; `asked`: the first byte of each GET, None for a whole file."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.ranges = True
        self.etag = True
        self.status = 200
        self.address = ""
        self.drops = 0
        """How many answers are broken off in the middle."""
        self.gate = threading.Event()
        """Until it is set, nothing beyond `held_at` is given."""
        self.gate.set()
        self.held_at = 0
        self.held = threading.Event()
        """Set when somebody waits at the gate."""
        self.asked: list[int | None] = []


class _Handler(BaseHTTPRequestHandler):
    served: Served

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        served, content = self.served, self.served.content
        if served.status != 200:
            self.send_error(served.status)
            return
        asked = self.headers.get("Range") if served.ranges else None
        start, end = 0, len(content)
        if asked:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last) + 1, len(content)) if last else len(content)
        if body:
            served.asked.append(start if asked else None)
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        self.send_header("Content-Length", str(end - start))
        if served.etag:
            self.send_header(
                "ETag", f'"{hashlib.sha256(content[:1000]).hexdigest()}-{len(content)}"'
            )
        self.end_headers()
        if body:
            self._send(content[start:end], start)

    def _send(self, content: bytes, start: int) -> None:
        served = self.served
        try:
            if served.drops:
                served.drops -= 1
                self.wfile.write(content[: len(content) // 2])
                self.close_connection = True
                self.connection.close()
                return
            free = max(0, served.held_at - start)
            if not served.gate.is_set() and free < len(content):
                self.wfile.write(content[:free])
                content = content[free:]
                served.held.set()
                served.gate.wait(60)
            self.wfile.write(content)
        except OSError:
            self.close_connection = True  # whoever asked is gone

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving(content: bytes) -> Iterator[Served]:
    """A server that runs until this is left."""
    served = Served(content)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"served": served}))
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a connection that a test broke
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    served.address = f"http://127.0.0.1:{server.server_port}/corpus.zip"
    yield served
    served.gate.set()
    server.shutdown()
    thread.join()
    server.server_close()
