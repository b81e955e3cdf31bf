"""The source of the corpus, a file or behind HTTP, looked at without being fetched."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from flows.dvc_api.client import read_status
from flows.source.probe import Probe, debounce, pinned, probe, update
from stages.core.errors import InputError
from tests.flows.tiny import run


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder with ETags made of the content, and remembers what was asked."""

    asked: list[str]

    def end_headers(self) -> None:
        path = Path(self.translate_path(self.path))
        if path.is_file():
            self.send_header("ETag", f'"{path.read_text().strip()}"')
        super().end_headers()

    def log_message(self, *_: Any) -> None:
        self.asked.append(self.command)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """An address, the file behind it, and the methods by which it was asked for."""
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "corpus.zip").write_text("one")
    asked: list[str] = []
    handler = type("Told", (Handler,), {"asked": asked})
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(handler, directory=str(tmp_path / "served"))
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield (
        f"http://127.0.0.1:{server.server_port}/corpus.zip",
        tmp_path / "served" / "corpus.zip",
        asked,
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
    run("git", "init", "-q", cwd=root)
    run("dvc", "init", "-q", cwd=root)
    update(root)
    return root


def test_a_file_that_changed_is_seen_and_taken(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.zip"
    corpus.write_text("one")
    root = workspace(tmp_path / "workspace", "../corpus.zip")
    before = probe(root)
    assert (before.source, before.changed) == ("../corpus.zip", False)
    corpus.write_text("two")
    after = probe(root)
    assert after.changed
    assert after.identity != before.identity
    assert (root / "data/raw/corpus.zip").read_text() == "one", "a look fetches nothing"
    assert read_status(root) == {}, "what is pinned is up to date"
    update(root)
    assert (root / "data/raw/corpus.zip").read_text() == "two"
    assert not probe(root).changed
    assert (pinned(root).path, pinned(root).source, pinned(root).size) == (
        "data/raw/corpus.zip",
        "../corpus.zip",
        3,
    )
    assert pinned(root).md5 == probe(root).identity


def test_behind_http_only_the_head_is_asked_for(
    tmp_path: Path, served: tuple[str, Path, list[str]]
) -> None:
    address, corpus, asked = served
    root = workspace(tmp_path / "workspace", address)
    asked.clear()
    assert probe(root) == Probe(address, False, '"one"')
    corpus.write_text("two")
    assert probe(root) == Probe(address, True, '"two"')
    assert set(asked) == {"HEAD"}
    corpus.unlink()
    with pytest.raises(
        InputError,
        match=f"the source {address} of data.dvc is gone, or cannot be reached.*404.*: mend it",
    ):
        probe(root)


def test_a_server_that_is_down_is_told_from_a_file_that_is_gone(
    tmp_path: Path, served: tuple[str, Path, list[str]]
) -> None:
    address, _, _ = served
    root = workspace(tmp_path / "workspace", address)
    text = (root / "data.dvc").read_text()
    (root / "data.dvc").write_text(text.replace(address, "http://127.0.0.1:1/corpus.zip"))
    with pytest.raises(
        InputError,
        match=(
            r"the source http://127.0.0.1:1/corpus.zip of data.dvc is gone, or cannot be reached"
            r" \(.*[Cc]onnect"
        ),
    ):
        probe(root)


def test_a_file_that_imports_nothing_is_named(tmp_path: Path) -> None:
    (tmp_path / "corpus.zip").write_text("one")
    root = workspace(tmp_path / "workspace", "../corpus.zip")
    (root / "data.dvc").write_text("outs:\n- path: data/raw/corpus.zip\n", encoding="utf-8")
    with pytest.raises(InputError, match="data.dvc imports nothing: make it with `dvc import-url`"):
        probe(root)
    with pytest.raises(InputError, match="data.dvc does not pin an import"):
        pinned(root)
    (root / "data.dvc").unlink()
    with pytest.raises(InputError, match="data.dvc imports nothing"):
        probe(root)


def test_a_source_that_goes_on_changing_is_waited_for() -> None:
    looks = iter([Probe("x", True, "2"), Probe("x", True, "3"), Probe("x", True, "3")])
    said: list[str] = []
    assert debounce(lambda: next(looks), Probe("x", True, "1"), 0.001, said.append) == Probe(
        "x", True, "3"
    )
    assert len(said) == 3
    first = Probe("x", True, "1")
    assert debounce(lambda: next(looks), first, 0, said.append) is first
