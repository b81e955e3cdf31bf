"""A local Hugging Face hub, as far as huggingface_hub needs it, with injectable failures."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "c" * 40


@dataclass
class Repository:
    """One repository at one commit; files with a name in `large` are in LFS."""

    files: dict[str, bytes]
    private: bool = False
    gated: bool = False
    commits: list[str] = field(default_factory=list)
    """Messages."""

    def large(self, name: str) -> bool:
        return name.endswith((".safetensors", ".parquet"))


@dataclass
class Hub:
    """What is there, and what was asked for."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    """LFS contents that were uploaded, by sha256."""
    token: str | None = None
    """That writing needs."""
    address: str = ""
    status: int = 200
    cut_at: int | None = None
    """Bytes of a large file after which the next answer is broken off."""
    fail_uploads: int = 0
    """How many uploads of contents are refused before one is taken."""
    asked: list[str] = field(default_factory=list)
    """"GET /path", with the range if one was asked for."""
    uploaded: list[str] = field(default_factory=list)
    """sha256 of each content that came."""

    def environment(self, cache: Path) -> dict[str, str]:
        """What points huggingface_hub here, with a cache of its own."""
        return {
            "HF_ENDPOINT": self.address,
            "HF_HUB_CACHE": str(cache),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._read()

    def do_GET(self) -> None:
        self._read()

    def _read(self) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        wanted = self.headers.get("Range")
        hub.asked.append(f"{self.command} {path}" + (f" {wanted}" if wanted else ""))
        if hub.status != 200:
            return self._json(hub.status, {"error": "down"})
        if path.startswith("/api/models/"):
            owner, name, *rest = path.removeprefix("/api/models/").split("/")
            repository = self._repository(f"{owner}/{name}", rest[1] if len(rest) > 1 else None)
            if repository is None:
                return None
            if rest and rest[0] == "tree":
                return self._json(
                    200, [self._entry(repository, each) for each in sorted(repository.files)]
                )
            siblings = [{"rfilename": each} for each in sorted(repository.files)]
            return self._json(
                200,
                {
                    "id": f"{owner}/{name}",
                    "sha": COMMIT,
                    "private": repository.private,
                    "siblings": siblings,
                },
            )
        owner, name, _, revision, file = path[1:].split("/", 4)
        repository = self._repository(f"{owner}/{name}", revision)
        if repository is None:
            return None
        return self._file(repository, file, wanted)

    def do_POST(self) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub.asked.append(f"POST {path}")
        if path == "/api/validate-yaml":
            return self._json(200, {"errors": [], "warnings": []})
        if hub.token is not None and self.headers.get("Authorization") != f"Bearer {hub.token}":
            return self._json(
                401,
                {"error": "no"},
                {"X-Error-Message": "Invalid credentials in Authorization header"},
            )
        if path == "/api/repos/create":
            given = json.loads(body)
            name = f"{given['organization']}/{given['name']}"
            if name in hub.repositories:
                return self._json(409, {"error": "exists", "url": f"{hub.address}/{name}"})
            hub.repositories[name] = Repository(
                {}, private=given.get("private", given.get("visibility") == "private")
            )
            return self._json(200, {"url": f"{hub.address}/{name}"})
        if path.endswith("/info/lfs/objects/batch"):
            objects = []
            for each in json.loads(body)["objects"]:
                there = each["oid"] in hub.stored
                upload = {"upload": {"href": f"{hub.address}/lfs/{each['oid']}"}}
                objects.append(each | ({} if there else {"actions": upload}))
            return self._json(
                200,
                {"objects": objects, "transfer": "basic"},
                {"Content-Type": "application/vnd.git-lfs+json"},
            )
        owner, name, what, *_ = path.removeprefix("/api/models/").split("/")
        repository = hub.repositories[f"{owner}/{name}"]
        if what == "preupload":
            modes = [
                {
                    "path": each["path"],
                    "uploadMode": "lfs" if repository.large(each["path"]) else "regular",
                    "shouldIgnore": False,
                }
                for each in json.loads(body)["files"]
            ]
            return self._json(200, {"files": modes})
        assert what == "commit", path
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                repository.commits.append(value["summary"])
            elif entry["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                repository.files[value["path"]] = hub.stored[value["oid"]]
            elif entry["key"] == "deletedFile":
                del repository.files[value["path"]]
        return self._json(
            200, {"commitUrl": f"{hub.address}/{owner}/{name}/commit/{COMMIT}", "commitOid": COMMIT}
        )

    def do_PUT(self) -> None:
        hub, sha = self.hub, self.path.rpartition("/")[2]
        content = self.rfile.read(int(self.headers["Content-Length"]))
        hub.asked.append(f"PUT {self.path}")
        if hub.fail_uploads:
            hub.fail_uploads -= 1
            return self._json(400, {"error": "broken off"})
        assert hashlib.sha256(content).hexdigest() == sha
        hub.stored[sha] = content
        hub.uploaded.append(sha)
        return self._json(200, {})

    def _repository(self, name: str, revision: str | None) -> Repository | None:
        repository = self.hub.repositories.get(name)
        if repository is None:
            self._json(
                401, {"error": "Invalid username or password."}, {"X-Error-Code": "RepoNotFound"}
            )
            return None
        if repository.gated:
            self._json(403, {"error": "gated"}, {"X-Error-Code": "GatedRepo"})
            return None
        if revision not in (None, COMMIT, "main"):
            self._json(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
            return None
        return repository

    def _entry(self, repository: Repository, name: str) -> dict[str, Any]:
        content = repository.files[name]
        entry = {
            "type": "file",
            "path": name,
            "size": len(content),
            "oid": hashlib.sha1(content).hexdigest(),
        }
        if repository.large(name):
            entry["lfs"] = {
                "oid": hashlib.sha256(content).hexdigest(),
                "size": len(content),
                "pointerSize": 130,
            }
        return entry

    def _file(self, repository: Repository, name: str, wanted: str | None) -> None:
        if name not in repository.files:
            return self._json(404, {"error": "none"}, {"X-Error-Code": "EntryNotFound"})
        content, large = repository.files[name], repository.large(name)
        start = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
        kind = hashlib.sha256 if large else hashlib.sha1
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("ETag", f'"{kind(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if self.command == "HEAD":
            return None
        cut = self.hub.cut_at
        if large and cut is not None and start < cut < len(content):
            self.hub.cut_at = None
            self.wfile.write(content[start:cut])
            self.close_connection = True
            return None
        self.wfile.write(content[start:])
        return None

    def _json(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        for key, each in ({"Content-Type": "application/json"} | (headers or {})).items():
            self.send_header(key, each)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def hub_serving(**repositories: Repository) -> Iterator[Hub]:
    """A hub that runs until this is left. Repositories by name, "owner__name"."""
    hub = Hub({name.replace("__", "/"): each for name, each in repositories.items()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a connection that a test broke
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    hub.address = f"http://127.0.0.1:{server.server_port}"
    yield hub
    server.shutdown()
    thread.join()
    server.server_close()
