"""Local HTTP server of one file, with the faults that a test configures."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FileServer:
    """A served file, the behaviour of its server, and a record of its requests."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.ranges = True
        self.etag = True
        self.status = 200
        self.address = ""
        self.drops = 0
        """Responses that break off in the middle."""
        self.gate = threading.Event()
        """Until it is set, no byte from `pause_at` on is sent."""
        self.gate.set()
        self.pause_at = 0
        self.paused = threading.Event()
        """Set when a response waits at the gate."""
        self.requested_starts: list[int | None] = []
        """First byte of each GET; None for a whole file."""


class _Handler(BaseHTTPRequestHandler):
    file: FileServer

    def do_HEAD(self) -> None:
        self._answer(has_body=False)

    def do_GET(self) -> None:
        self._answer(has_body=True)

    def _answer(self, has_body: bool) -> None:
        file = self.file
        content = file.content
        if file.status != 200:
            self.send_error(file.status)
            return
        requested = self.headers.get("Range") if file.ranges else None
        start = 0
        end = len(content)
        if requested:
            first, _, last = requested.removeprefix("bytes=").partition("-")
            start = int(first)
            end = min(int(last) + 1, end) if last else end
        if has_body:
            file.requested_starts.append(start if requested else None)
        self.send_response(206 if requested else 200)
        if requested:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        self.send_header("Content-Length", str(end - start))
        if file.etag:
            digest = hashlib.sha256(content[:1000]).hexdigest()
            self.send_header("ETag", f'"{digest}-{len(content)}"')
        self.end_headers()
        if has_body:
            self._send(content[start:end], start)

    def _send(self, content: bytes, start: int) -> None:
        file = self.file
        try:
            if file.drops:
                file.drops -= 1
                self.wfile.write(content[: len(content) // 2])
                self.close_connection = True
                self.connection.close()
                return
            before_gate = max(0, file.pause_at - start)
            if not file.gate.is_set() and before_gate < len(content):
                self.wfile.write(content[:before_gate])
                content = content[before_gate:]
                file.paused.set()
                file.gate.wait(60)
            self.wfile.write(content)
        except OSError:
            self.close_connection = True  # the client has disconnected

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serve(content: bytes) -> Iterator[FileServer]:
    """Serve a file while the context is open."""
    file = FileServer(content)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"file": file}))
    server.daemon_threads = True
    # clients that disconnect are expected
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    file.address = f"http://127.0.0.1:{server.server_port}/corpus.zip"
    yield file
    file.gate.set()
    server.shutdown()
    thread.join()
    server.server_close()
