"""Serves the report beside the dashboard, or before there is one a page that says how to make it.

python -m flows.report_server FOLDER ADDRESS PORT
"""

from __future__ import annotations

import sys
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

NO_REPORT: Final = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>No report yet</title>
<meta http-equiv="refresh" content="30">
<style>
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 40rem; margin: 4rem auto; padding: 0 1rem }
</style>
</head><body><h1>No report yet</h1>
<p>The report is the last stage of the pipeline. To make it, start the deployment
<code>reproduce/whole-pipeline</code> in the dashboard (Deployments, Quick run), or run
<code>make repro</code> in the workspace. This page shows it as soon as it is there.</p>
</body></html>
"""
"""Page instead of report/index.html; browsers load it again every 30 seconds."""


class ReportHandler(SimpleHTTPRequestHandler):
    """Files of a folder, and a page of its own for a report that is missing."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer with `NO_REPORT` if it was asked for, and otherwise as usual."""
        path = self.path.partition("?")[0]
        if code != HTTPStatus.NOT_FOUND or path not in ("/", "/index.html"):
            super().send_error(code, message, explain)
            return
        body = NO_REPORT.encode()
        self.send_response(HTTPStatus.NOT_FOUND)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def list_directory(self, path: object) -> None:
        """No list of files: the folder is there before its page is."""
        self.send_error(HTTPStatus.NOT_FOUND)


def make_server(folder: Path, address: str, port: int) -> ThreadingHTTPServer:
    """A server of the files in `folder`; `port` 0 is any free one."""
    return ThreadingHTTPServer((address, port), partial(ReportHandler, directory=str(folder)))


if __name__ == "__main__":
    make_server(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])).serve_forever()
