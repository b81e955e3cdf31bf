"""Fetching the corpus source gives the result of `dvc update`, and is resumable."""

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
from flows.source.probe import read_pin, update
from stages.core.errors import InputError
from tests.corpus.serving import FileServer, serve
from tests.flows.tiny import init_repository, run

REPOSITORY = Path(__file__).parents[3]
CONTENT = random.Random(0).randbytes(40 * 2**20)
CORPUS = Path("data/raw/corpus.zip")


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serve(CONTENT[: 2**20]) as one:
        yield one


def workspace(root: Path, address: str) -> Path:
    (root / CORPUS.parent).mkdir(parents=True)
    (root / "data.dvc").write_text(
        f"deps:\n- path: {address}\nouts:\n- path: {CORPUS}\n", encoding="utf-8"
    )
    init_repository(root)
    return root


def raw_files(root: Path) -> set[str]:
    return {path.name for path in (root / CORPUS.parent).iterdir()} - {".gitignore"}


def assert_not_fetched(server: FileServer) -> None:
    """No request beyond the first byte: DVC itself reads the beginning of the file."""
    assert not [first for first in server.requested_starts if first]


@pytest.mark.parametrize("kind", ["file", "http with parts", "http without parts"])
def test_data_dvc_is_byte_for_byte_what_dvc_update_writes(
    tmp_path: Path, server: FileServer, kind: str
) -> None:
    source = tmp_path / "source.zip"
    server.ranges = kind == "http with parts"
    address = "../source.zip" if kind == "file" else server.address
    ours, plain = (workspace(tmp_path / name, address) for name in ("ours", "plain"))
    for content in (CONTENT[: 2**20], CONTENT[2**20 : 4 * 2**20]):
        source.write_bytes(content)
        server.content = content
        update(ours)
        dvc(plain, "update", "data.dvc")
        assert (ours / "data.dvc").read_bytes() == (plain / "data.dvc").read_bytes()
        assert (ours / CORPUS).read_bytes() == content
        assert raw_files(ours) == {"corpus.zip"}
        assert read_status(ours) == {}
    (ours / CORPUS).unlink()
    dvc(ours, "checkout", "data.dvc")
    assert (ours / CORPUS).read_bytes() == content, "it is in DVC's cache"


def test_the_corpus_must_match_the_sha256_in_data_dvc(tmp_path: Path, server: FileServer) -> None:
    root = workspace(tmp_path / "workspace", server.address)
    pin = root / "data.dvc"
    plain = pin.read_text(encoding="utf-8")
    pin.write_text(plain + f"meta:\n  sha256: {'f' * 64}\n", encoding="utf-8")
    before = pin.read_bytes()
    with pytest.raises(InputError, match=rf"has sha256 [0-9a-f]{{64}}, expected {'f' * 64}"):
        update(root)
    assert pin.read_bytes() == before
    assert raw_files(root) == set()
    digest = hashlib.sha256(server.content).hexdigest()
    pin.write_text(plain + f"meta:\n  sha256: {digest}\n", encoding="utf-8")
    update(root)
    assert (root / CORPUS).read_bytes() == server.content
    assert f"sha256: {digest}" in pin.read_text(encoding="utf-8"), "DVC keeps it"
    assert read_status(root) == {}


def test_an_invalid_sha256_is_refused_before_the_transfer(
    tmp_path: Path, server: FileServer
) -> None:
    root = workspace(tmp_path / "workspace", server.address)
    with (root / "data.dvc").open("a", encoding="utf-8") as pin:
        pin.write(f"meta:\n  sha256: {'0' * 64}\n")
    with pytest.raises(InputError, match=r"data\.dvc: meta\.sha256 = 0: .* in quotes"):
        update(root)
    assert raw_files(root) == set()


def test_a_corpus_pinned_again_after_another_one_comes_from_the_cache(
    tmp_path: Path, server: FileServer
) -> None:
    root = workspace(tmp_path / "workspace", server.address)
    other = tmp_path / "other.zip"
    other.write_bytes(b"another")
    server.content = CONTENT[: 12 * 2**20]
    update(root)
    assert [first for first in server.requested_starts if first], (
        "a transfer requests several ranges"
    )
    pin = (root / "data.dvc").read_bytes()
    corpus = (root / CORPUS).read_bytes()
    (root / "data.dvc").write_text(
        f"deps:\n- path: {other}\nouts:\n- path: {CORPUS}\n", encoding="utf-8"
    )
    update(root)
    assert (root / CORPUS).read_bytes() == b"another"
    (root / "data.dvc").write_bytes(pin)
    server.requested_starts.clear()
    update(root)
    assert (root / "data.dvc").read_bytes() == pin
    assert (root / CORPUS).read_bytes() == corpus
    assert_not_fetched(server)
    assert read_status(root) == {}


def test_a_folder_is_left_to_dvc(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "q.csv").write_text("one")
    root = workspace(tmp_path / "workspace", "../source")
    update(root)
    assert (root / CORPUS / "q.csv").read_text() == "one"
    assert read_pin(root).md5.endswith(".dir")


def test_released_split_files_are_fetched_at_their_commit_and_once(
    tmp_path: Path,
) -> None:
    (tmp_path / "source.zip").write_bytes(CONTENT[:100])
    theirs = tmp_path / "theirs"
    split = theirs / "Splits/modality/test/CT(Computed Tomography)_test.json"
    split.parent.mkdir(parents=True)
    split.write_text("[1]", encoding="utf-8")
    run("git", "init", "-q", cwd=theirs)
    run("git", "add", "-A", cwd=theirs)
    run("git", "commit", "-q", "-m", "first", cwd=theirs)
    commit = run("git", "rev-parse", "--short", "HEAD", cwd=theirs).strip()
    split.write_text("[2]", encoding="utf-8")
    run("git", "commit", "-qam", "second", cwd=theirs)
    root = workspace(tmp_path / "workspace", "../source.zip")
    (root / "infra").mkdir()
    (root / "infra/released.dvc").write_text(
        "wdir: ..\nfrozen: true\ndeps:\n- path: Splits\n  repo:\n"
        f"    url: {theirs.as_uri()}\n    rev: '{commit}'\nouts:\n- path: data/released\n",
        encoding="utf-8",
    )
    update(root)
    fetched = root / "data/released/modality/test" / split.name
    assert fetched.read_text(encoding="utf-8") == "[1]"
    assert read_status(root) == {}
    pinned = (root / "infra/released.dvc").read_bytes()
    shutil.rmtree(theirs)
    update(root)
    assert (root / "infra/released.dvc").read_bytes() == pinned, "it is here, and not asked again"


def test_a_failed_transfer_changes_nothing(tmp_path: Path, server: FileServer) -> None:
    root = workspace(tmp_path / "workspace", server.address)
    update(root)
    before = (root / "data.dvc").read_bytes()
    server.content = CONTENT
    server.status = 404
    with pytest.raises(InputError, match=r"the source http.* of data\.dvc .*\(404"):
        update(root)
    assert (root / "data.dvc").read_bytes() == before
    assert (root / CORPUS).read_bytes() == CONTENT[: 2**20]
    assert read_status(root) == {}


def test_a_source_that_changes_between_transfer_and_pinning_is_not_pinned(
    tmp_path: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = workspace(tmp_path / "workspace", server.address)
    update(root)
    before = (root / "data.dvc").read_bytes()
    server.content = CONTENT[: 2 * 2**20]

    def changed_first(*arguments: object) -> str:
        server.content = CONTENT[: 3 * 2**20][::-1]
        return dvc(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(transfer, "dvc", changed_first)
    with pytest.raises(InputError, match=r"the source of data\.dvc changed from "):
        update(root)
    assert (root / "data.dvc").read_bytes() == before
    monkeypatch.undo()
    update(root)
    assert (root / CORPUS).read_bytes() == server.content


def test_a_killed_fetch_leaves_no_process_and_the_next_one_resumes(
    tmp_path: Path, server: FileServer
) -> None:
    root = workspace(tmp_path / "workspace", server.address)
    update(root)
    before = (root / "data.dvc").read_bytes()
    server.content = CONTENT
    server.pause_at = 30 * 2**20
    server.gate.clear()
    program = (
        "import sys; from pathlib import Path; from flows.source.probe import update;"
        " update(Path(sys.argv[1]))"
    )
    paths = environment({"PYTHONPATH": str(REPOSITORY)})
    with subprocess.Popen([sys.executable, "-c", program, str(root)], env=paths) as process:
        assert server.paused.wait(60), "the transfer did not reach the gate"
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []
    assert (root / "data.dvc").read_bytes() == before
    assert (root / CORPUS).read_bytes() == CONTENT[: 2**20]
    assert read_status(root) == {}
    server.gate.set()
    server.requested_starts.clear()
    update(root)
    assert (root / CORPUS).read_bytes() == CONTENT
    assert 16 * 2**20 in server.requested_starts, "it resumes there"
    assert raw_files(root) == {"corpus.zip"}


def test_a_file_fetched_before_a_kill_but_not_pinned_is_not_fetched_again(
    tmp_path: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = workspace(tmp_path / "workspace", server.address)
    update(root)
    server.content = CONTENT[: 3 * 2**20]

    def killed(*_: object) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(transfer, "dvc", killed)
        update(root)
    status = dvc(root, "status", "data.dvc")
    assert "corpus.zip" in status, "DVC detects that the file is not the pinned one"
    server.requested_starts.clear()
    update(root)
    assert_not_fetched(server)
    assert read_status(root) == {}
    assert read_pin(root).size == 3 * 2**20


def test_an_archive_that_was_changed_by_hand_is_detected(tmp_path: Path) -> None:
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
