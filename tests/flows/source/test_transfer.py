"""Fetching the corpus source gives `dvc update`'s result, and resumes where it stopped."""

from __future__ import annotations

import hashlib
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from flows.dvc_api.client import dvc, environment, read_status
from flows.source import transfer
from flows.source.probe import pinned, update
from stages.core.errors import InputError
from tests.corpus.serving import Served, serving
from tests.flows.tiny import run

REPOSITORY = Path(__file__).parents[3]
CONTENT = random.Random(0).randbytes(40 * 2**20)
CORPUS = Path("data/raw/corpus.zip")


@pytest.fixture
def served() -> Iterator[Served]:
    with serving(CONTENT[: 2**20]) as one:
        yield one


def workspace(root: Path, address: str) -> Path:
    (root / CORPUS.parent).mkdir(parents=True)
    (root / "data.dvc").write_text(
        f"deps:\n- path: {address}\nouts:\n- path: {CORPUS}\n", encoding="utf-8"
    )
    run("git", "init", "-q", cwd=root)
    run("dvc", "init", "-q", cwd=root)
    return root


def left(root: Path) -> set[str]:
    return {path.name for path in (root / CORPUS.parent).iterdir()} - {".gitignore"}


@pytest.mark.parametrize("kind", ["file", "http with parts", "http without parts"])
def test_data_dvc_is_byte_for_byte_what_dvc_update_writes(
    tmp_path: Path, served: Served, kind: str
) -> None:
    source = tmp_path / "source.zip"
    served.ranges = kind == "http with parts"
    address = "../source.zip" if kind == "file" else served.address
    ours, plain = (workspace(tmp_path / name, address) for name in ("ours", "plain"))
    for content in (CONTENT[: 2**20], CONTENT[2**20 : 4 * 2**20]):
        source.write_bytes(content)
        served.content = content
        update(ours)
        dvc(plain, "update", "data.dvc")
        assert (ours / "data.dvc").read_bytes() == (plain / "data.dvc").read_bytes()
        assert (ours / CORPUS).read_bytes() == content
        assert left(ours) == {"corpus.zip"}
        assert read_status(ours) == {}
    (ours / CORPUS).unlink()
    dvc(ours, "checkout", "data.dvc")
    assert (ours / CORPUS).read_bytes() == content, "it is in DVC's cache"


def test_the_corpus_is_held_to_the_sha256_that_data_dvc_gives(
    tmp_path: Path, served: Served
) -> None:
    root = workspace(tmp_path / "workspace", served.address)
    pin = root / "data.dvc"
    plain = pin.read_text(encoding="utf-8")
    pin.write_text(plain + f"meta:\n  sha256: {'f' * 64}\n", encoding="utf-8")
    before = pin.read_bytes()
    with pytest.raises(
        InputError,
        match=rf"has sha256 [0-9a-f]{{64}}, not {'f' * 64}: it is not the file that was meant",
    ):
        update(root)
    assert pin.read_bytes() == before
    assert left(root) == set()
    digest = hashlib.sha256(served.content).hexdigest()
    pin.write_text(plain + f"meta:\n  sha256: {digest}\n", encoding="utf-8")
    update(root)
    assert (root / CORPUS).read_bytes() == served.content
    assert f"sha256: {digest}" in pin.read_text(encoding="utf-8"), "it stays where DVC adds its own"
    assert read_status(root) == {}


def test_a_sha256_that_is_none_is_refused_before_anything_is_fetched(
    tmp_path: Path, served: Served
) -> None:
    root = workspace(tmp_path / "workspace", served.address)
    with (root / "data.dvc").open("a", encoding="utf-8") as pin:
        pin.write(f"meta:\n  sha256: {'0' * 64}\n")
    with pytest.raises(
        InputError, match=r"data\.dvc: meta\.sha256 = 0: write 64 hex digits, in quotes"
    ):
        update(root)
    assert left(root) == set()


def test_what_was_pinned_before_another_corpus_took_its_place_comes_from_the_cache(
    tmp_path: Path, served: Served
) -> None:
    root = workspace(tmp_path / "workspace", served.address)
    other = tmp_path / "other.zip"
    other.write_bytes(b"another")
    served.content = CONTENT[: 12 * 2**20]
    update(root)
    assert [first for first in served.asked if first], "a transfer asks for parts beyond the first"
    pin, corpus = (root / "data.dvc").read_bytes(), (root / CORPUS).read_bytes()
    (root / "data.dvc").write_text(
        f"deps:\n- path: {other}\nouts:\n- path: {CORPUS}\n", encoding="utf-8"
    )
    update(root)
    assert (root / CORPUS).read_bytes() == b"another"
    (root / "data.dvc").write_bytes(pin)
    served.asked.clear()
    update(root)
    assert ((root / "data.dvc").read_bytes(), (root / CORPUS).read_bytes()) == (pin, corpus)
    assert not [first for first in served.asked if first], (
        "not fetched again, if DVC's own looks at its beginning do not count"
    )
    assert read_status(root) == {}


def test_a_folder_is_left_to_dvc(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "q.csv").write_text("one")
    root = workspace(tmp_path / "workspace", "../source")
    update(root)
    assert (root / CORPUS / "q.csv").read_text() == "one"
    assert pinned(root).md5.endswith(".dir")


def test_a_transfer_that_fails_leaves_all_as_it_was(tmp_path: Path, served: Served) -> None:
    root = workspace(tmp_path / "workspace", served.address)
    update(root)
    before = (root / "data.dvc").read_bytes()
    served.content, served.status = CONTENT, 404
    with pytest.raises(
        InputError, match=r"the source http.* of data\.dvc is gone, or cannot be reached \(404"
    ):
        update(root)
    assert (root / "data.dvc").read_bytes() == before
    assert (root / CORPUS).read_bytes() == CONTENT[: 2**20]
    assert read_status(root) == {}


def test_a_source_that_changes_between_transfer_and_pinning_is_not_pinned(
    tmp_path: Path, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = workspace(tmp_path / "workspace", served.address)
    update(root)
    before = (root / "data.dvc").read_bytes()
    served.content = CONTENT[: 2 * 2**20]

    def changed_first(*arguments: object) -> str:
        served.content = CONTENT[: 3 * 2**20][::-1]
        return dvc(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(transfer, "dvc", changed_first)
    with pytest.raises(
        InputError, match=r"the source of data\.dvc changed from .* while it was fetched: run again"
    ):
        update(root)
    assert (root / "data.dvc").read_bytes() == before
    monkeypatch.undo()
    update(root)
    assert (root / CORPUS).read_bytes() == served.content


def test_killed_in_the_middle_nothing_goes_on_alone_and_the_next_run_goes_on(
    tmp_path: Path, served: Served
) -> None:
    root = workspace(tmp_path / "workspace", served.address)
    update(root)
    before = (root / "data.dvc").read_bytes()
    served.content, served.held_at = CONTENT, 30 * 2**20
    served.gate.clear()
    program = (
        "import sys; from pathlib import Path; from flows.source.probe import update;"
        " update(Path(sys.argv[1]))"
    )
    paths = environment({"PYTHONPATH": str(REPOSITORY)})
    with subprocess.Popen([sys.executable, "-c", program, str(root)], env=paths) as process:
        assert served.held.wait(60), "it did not come to the middle"
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []
    assert (root / "data.dvc").read_bytes() == before
    assert (root / CORPUS).read_bytes() == CONTENT[: 2**20]
    assert read_status(root) == {}
    served.gate.set()
    served.asked.clear()
    update(root)
    assert (root / CORPUS).read_bytes() == CONTENT
    assert 16 * 2**20 in served.asked, "where it stopped"
    assert left(root) == {"corpus.zip"}


def test_killed_before_it_is_pinned_it_is_not_fetched_again(
    tmp_path: Path, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = workspace(tmp_path / "workspace", served.address)
    update(root)
    served.content = CONTENT[: 3 * 2**20]

    def killed(*_: object) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(transfer, "dvc", killed)
        update(root)
    status = dvc(root, "status", "data.dvc")
    assert "corpus.zip" in status, "DVC tells that what lies there is not what is pinned"
    served.asked.clear()
    update(root)
    assert not [first for first in served.asked if first], (
        "not fetched again, if DVC's own looks at its beginning do not count"
    )
    assert read_status(root) == {}
    assert pinned(root).size == 3 * 2**20


def test_an_archive_that_was_changed_by_hand_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "source.zip").write_bytes(b"one")
    root = workspace(tmp_path / "workspace", "../source.zip")
    update(root)
    content = root / CORPUS
    content.unlink()
    content.write_bytes(b"two")
    assert read_status(root) == {"data.dvc": {"changed outs": {str(CORPUS): "modified"}}}
    shutil.rmtree(root / "data")
    dvc(root, "checkout", "data.dvc")
    assert content.read_bytes() == b"one"
