"""Probing the corpus source, a file or an HTTP resource, without fetching it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from flows.dvc_api.client import read_status
from flows.source.probe import Probe, debounce, probe, read_pin, update
from stages.core.errors import InputError
from tests.flows.tiny import init_repository


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder with ETags made of the content, and records the request methods."""

    methods: list[str]

    def end_headers(self) -> None:
        path = Path(self.translate_path(self.path))
        if path.is_file():
            self.send_header("ETag", f'"{path.read_text().strip()}"')
        super().end_headers()

    def log_message(self, *_: Any) -> None:
        self.methods.append(self.command)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """An address, the file behind it, and the methods of the requests for it."""
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "corpus.zip").write_text("one")
    methods: list[str] = []
    handler = type("RecordingHandler", (Handler,), {"methods": methods})
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(handler, directory=str(tmp_path / "served"))
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield (
        f"http://127.0.0.1:{server.server_port}/corpus.zip",
        tmp_path / "served" / "corpus.zip",
        methods,
    )
    server.shutdown()
    thread.join()
    server.server_close()


def workspace(root: Path, address: str) -> Path:
    root.mkdir()
    (root / "data" / "raw").mkdir(parents=True)
    (root / "data.dvc").write_text(
        f"deps:\n- path: {address}\nouts:\n- path: data/raw/corpus.zip\n", encoding="utf-8"
    )
    init_repository(root)
    update(root)
    return root


def test_a_changed_file_is_detected_and_fetched_on_update(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.zip"
    corpus.write_text("one")
    root = workspace(tmp_path / "workspace", "../corpus.zip")
    before = probe(root)
    assert (before.source, before.changed) == ("../corpus.zip", False)
    corpus.write_text("two")
    after = probe(root)
    assert after.changed
    assert after.identity != before.identity
    assert (root / "data/raw/corpus.zip").read_text() == "one", "a probe fetches nothing"
    assert read_status(root) == {}, "the pinned version is up to date"
    update(root)
    assert (root / "data/raw/corpus.zip").read_text() == "two"
    assert not probe(root).changed
    pin = read_pin(root)
    assert (pin.path, pin.source, pin.size) == ("data/raw/corpus.zip", "../corpus.zip", 3)
    assert pin.md5 == probe(root).identity


def test_over_http_only_head_requests_are_sent(
    tmp_path: Path, served: tuple[str, Path, list[str]]
) -> None:
    address, corpus, methods = served
    root = workspace(tmp_path / "workspace", address)
    methods.clear()
    assert probe(root) == Probe(address, False, '"one"')
    corpus.write_text("two")
    assert probe(root) == Probe(address, True, '"two"')
    assert set(methods) == {"HEAD"}
    corpus.unlink()
    with pytest.raises(InputError, match=f"the source {address} of data.dvc .*404"):
        probe(root)


def test_the_error_of_an_unreachable_server_is_not_that_of_a_missing_file(
    tmp_path: Path, served: tuple[str, Path, list[str]]
) -> None:
    address, _, _ = served
    root = workspace(tmp_path / "workspace", address)
    text = (root / "data.dvc").read_text()
    (root / "data.dvc").write_text(text.replace(address, "http://127.0.0.1:1/corpus.zip"))
    with pytest.raises(InputError, match=r"http://127.0.0.1:1/corpus.zip of data.dvc .*[Cc]onnect"):
        probe(root)


def test_a_file_that_imports_nothing_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "corpus.zip").write_text("one")
    root = workspace(tmp_path / "workspace", "../corpus.zip")
    (root / "data.dvc").write_text("outs:\n- path: data/raw/corpus.zip\n", encoding="utf-8")
    with pytest.raises(InputError, match="data.dvc imports nothing.*`dvc import-url`"):
        probe(root)
    with pytest.raises(InputError, match="data.dvc does not pin an import"):
        read_pin(root)
    (root / "data.dvc").unlink()
    with pytest.raises(InputError, match="data.dvc imports nothing"):
        probe(root)


def test_debouncing_waits_until_the_source_stops_changing() -> None:
    probes = iter([Probe("x", True, "2"), Probe("x", True, "3"), Probe("x", True, "3")])
    first = Probe("x", True, "1")
    messages: list[str] = []
    assert debounce(lambda: next(probes), first, 0.001, messages.append) == Probe("x", True, "3")
    assert len(messages) == 3
    assert debounce(lambda: next(probes), first, 0, messages.append) is first
