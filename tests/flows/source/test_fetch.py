"""Transfers: complete or absent, resumed after any interruption."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from flows.source import fetch as module
from flows.source.fetch import Checksum, fetch, open_files, remove_state
from stages.core.errors import DiskFullError, InputError
from stages.core.file_lock import exclusive_lock
from tests.commands import MED_R1
from tests.corpus.serving import FileServer, serve

REPOSITORY = Path(__file__).parents[3]
CONTENT = random.Random(0).randbytes(1_000_000)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serve(CONTENT) as one:
        yield one


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many blocks per small file, and no pauses."""
    monkeypatch.setattr(module, "BLOCK", 50_000)
    monkeypatch.setattr(module, "SAFE", 100_000)
    monkeypatch.setattr(module, "PAUSE", 0.001)


def fetch_url(
    address: str, target: Path, checksum: Checksum | None = None, *, keep_state: bool = False
) -> None:
    files, path = open_files(address)
    fetch(files, path, target, checksum, keep_state=keep_state)


def is_only_file(target: Path) -> bool:
    return [path.name for path in target.parent.iterdir()] == [target.name]


def first_byte(server: FileServer) -> int:
    """First byte of the earliest range requested."""
    return min(first for first in server.requested_starts if first is not None)


def write_partial(target: Path, server: FileServer) -> int:
    """Write the files of a transfer that was killed half-way; how many of its bytes count."""
    done = len(server.content) // 2
    files, address = open_files(server.address)
    now = module._Transfer(files, address, target)._probe()
    target.with_name("c.zip.part").write_bytes(server.content[:done] + b"bytes without fsync")
    state = {"source": now.source, "size": now.size, "identity": now.identity, "done": done}
    target.with_name("c.zip.part.json").write_text(json.dumps(state), encoding="utf-8")
    return done


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("etag", [True, False])
def test_the_target_is_the_served_file_and_nothing_is_left_beside_it(
    tmp_path: Path, server: FileServer, ranges: bool, etag: bool
) -> None:
    server.ranges = ranges
    server.etag = etag
    target = tmp_path / "deep" / "c.zip"
    fetch_url(server.address, target, Checksum("sha256", hashlib.sha256(CONTENT).hexdigest()))
    assert target.read_bytes() == CONTENT
    assert is_only_file(target)


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_local_file_is_fetched(tmp_path: Path, scheme: str) -> None:
    (tmp_path / "source").write_bytes(CONTENT)
    target = tmp_path / "to" / "c.zip"
    checksum = Checksum("md5", hashlib.md5(CONTENT).hexdigest())
    fetch_url(f"{scheme}{tmp_path}/source", target, checksum)
    assert target.read_bytes() == CONTENT
    assert is_only_file(target)


@pytest.mark.parametrize("size", [0, 1, 50_000, 100_000, 100_001])
@pytest.mark.parametrize("ranges", [True, False])
def test_files_of_any_size_are_complete(
    tmp_path: Path, server: FileServer, size: int, ranges: bool
) -> None:
    server.content = CONTENT[:size]
    server.ranges = ranges
    fetch_url(server.address, tmp_path / "c.zip")
    assert (tmp_path / "c.zip").read_bytes() == CONTENT[:size]


def test_received_bytes_are_not_fetched_again(tmp_path: Path, server: FileServer) -> None:
    done = write_partial(tmp_path / "c.zip", server)
    fetch_url(server.address, tmp_path / "c.zip")
    assert (tmp_path / "c.zip").read_bytes() == CONTENT
    assert first_byte(server) == done


@pytest.mark.parametrize(
    "case",
    [
        "changed",
        "no etag",
        "no state",
        "corrupt state",
        "another source",
        "no ranges",
        "shorter part",
    ],
)
def test_a_transfer_that_cannot_resume_restarts(
    tmp_path: Path, server: FileServer, case: str
) -> None:
    target = tmp_path / "c.zip"
    state = tmp_path / "c.zip.part.json"
    if case == "no etag":
        server.etag = False
    write_partial(target, server)
    if case == "changed":
        server.content = CONTENT[:1000:-1][:90_000]  # shorter than the partial file
    server.ranges = case != "no ranges"
    if case == "no state":
        state.unlink()
    elif case == "corrupt state":
        state.write_text("{")
    elif case == "another source":
        state.write_text(state.read_text().replace('"source": "', '"source": "0'))
    elif case == "shorter part":
        target.with_name("c.zip.part").write_bytes(b"")
    fetch_url(server.address, target)
    assert target.read_bytes() == server.content
    assert is_only_file(target)


def test_a_dropped_connection_is_retried(
    tmp_path: Path, server: FileServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.drops = 3
    fetch_url(server.address, tmp_path / "c.zip")
    assert (tmp_path / "c.zip").read_bytes() == CONTENT
    assert "corpus.zip: " in (stderr := capsys.readouterr().err)
    assert "0.001 s from 0.0 MiB" in stderr


def test_received_bytes_survive_a_server_that_never_recovers(
    tmp_path: Path, server: FileServer
) -> None:
    write_partial(tmp_path / "c.zip", server)
    server.drops = 10_000
    with pytest.raises(InputError, match=r"corpus\.zip .* 6 times; 0\.5 MiB .*re-run"):
        fetch_url(server.address, tmp_path / "c.zip")
    server.drops = 0
    server.requested_starts.clear()
    fetch_url(server.address, tmp_path / "c.zip")
    assert (tmp_path / "c.zip").read_bytes() == CONTENT
    assert first_byte(server) == 500_000


def test_only_server_errors_are_retried(tmp_path: Path, server: FileServer) -> None:
    for status in (404, 403, 401):
        server.status = status
        with pytest.raises(InputError, match=rf"corpus\.zip cannot be fetched: {status} "):
            fetch_url(server.address, tmp_path / "c.zip")
    server.status = 503
    with pytest.raises(InputError, match="503.* tried 6 times"):
        fetch_url(server.address, tmp_path / "c.zip")
    with pytest.raises(InputError, match="tried 6 times"):
        fetch_url("http://127.0.0.1:1/c.zip", tmp_path / "c.zip")
    with pytest.raises(InputError, match="nothing.zip cannot be fetched"):
        fetch_url(f"{tmp_path}/nothing.zip", tmp_path / "c.zip")
    assert not (tmp_path / "c.zip").exists()


def test_secrets_in_an_address_are_neither_reported_nor_written(
    tmp_path: Path, server: FileServer
) -> None:
    server.status = 403
    address = server.address.replace("http://", "http://me:secret@") + "?signature=secret"
    with pytest.raises(InputError) as error:
        fetch_url(address, tmp_path / "c.zip")
    assert "secret" not in str(error.value)
    assert all(b"secret" not in path.read_bytes() for path in tmp_path.iterdir())


def test_a_wrong_hash_leaves_the_old_file(tmp_path: Path, server: FileServer) -> None:
    (tmp_path / "c.zip").write_bytes(b"old")
    with pytest.raises(InputError, match=r"corpus\.zip has sha256 [0-9a-f]{64}, expected 00"):
        fetch_url(server.address, tmp_path / "c.zip", Checksum("sha256", "00"))
    assert (tmp_path / "c.zip").read_bytes() == b"old"
    assert is_only_file(tmp_path / "c.zip")


def test_a_source_that_changes_during_the_transfer_is_fetched_again(
    tmp_path: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive = module._Transfer._receive

    def changes(self: module._Transfer, *arguments: object) -> None:
        receive(self, *arguments)  # type: ignore[arg-type]
        server.content = CONTENT[::-1]

    monkeypatch.setattr(module._Transfer, "_receive", changes)
    fetch_url(server.address, tmp_path / "c.zip")
    assert (tmp_path / "c.zip").read_bytes() == CONTENT[::-1]


def test_a_disk_that_is_too_small_is_reported_before_the_transfer(
    tmp_path: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(DiskFullError, match=r"corpus\.zip needs 65 MiB .* 0 MiB free"):
        fetch_url(server.address, tmp_path / "c.zip")
    assert server.requested_starts == []


def test_concurrent_transfers_to_one_target_are_refused(tmp_path: Path, server: FileServer) -> None:
    with (
        exclusive_lock(tmp_path / "c.zip.part"),
        pytest.raises(InputError, match=r"another process .*/c\.zip\.part"),
    ):
        fetch_url(server.address, tmp_path / "c.zip")


def test_a_folder_and_an_unknown_scheme_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        fetch_url(str(tmp_path), tmp_path / "to" / "c.zip")
    with pytest.raises(InputError, match="nosuch://x/y cannot be opened"):
        fetch_url("nosuch://x/y", tmp_path / "c.zip")


def test_with_its_state_kept_an_unchanged_file_is_not_fetched_again(
    tmp_path: Path, server: FileServer
) -> None:
    target = tmp_path / "c.zip"
    fetch_url(server.address, target, keep_state=True)
    server.requested_starts.clear()
    fetch_url(server.address, target, keep_state=True)
    assert server.requested_starts == []
    target.write_bytes(CONTENT[::-1])
    fetch_url(server.address, target, keep_state=True)
    assert target.read_bytes() == CONTENT
    server.content = CONTENT[::-1]
    fetch_url(server.address, target, keep_state=True)
    assert target.read_bytes() == CONTENT[::-1]
    remove_state(target)
    assert is_only_file(target)


def test_a_transfer_that_was_killed_half_way_resumes(tmp_path: Path) -> None:
    content = random.Random(1).randbytes(60 * 2**20)
    target = tmp_path / "c.zip"
    target.write_bytes(b"old")
    command = [*MED_R1, "fetch-file"]
    checksum = ["--sha256", hashlib.sha256(content).hexdigest()]
    with serve(content) as server:
        server.gate.clear()
        server.pause_at = 40 * 2**20
        command += [server.address, str(target), *checksum]
        with subprocess.Popen(command, cwd=REPOSITORY) as process:
            assert server.paused.wait(60), "the transfer did not reach the gate"
            process.send_signal(signal.SIGKILL)
        assert target.read_bytes() == b"old"
        done = json.loads((tmp_path / "c.zip.part.json").read_text())["done"]
        assert done >= 16 * 2**20
        server.gate.set()
        server.requested_starts.clear()
        subprocess.run(command, cwd=REPOSITORY, check=True)
        assert first_byte(server) == done
    assert target.read_bytes() == content
    assert is_only_file(target)


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    program = (
        "import resource, sys\n"
        "from flows.source.fetch import fetch, open_files\n"
        "from pathlib import Path\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "fetch(*open_files(sys.argv[1]), Path('fetched'))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    with serve(os.urandom(150 * 2**20)) as large:
        process = subprocess.run(
            [sys.executable, "-c", program, large.address],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            check=True,
        )
    assert int(process.stdout) < 80 * 2**10, "KiB, of a file of 150 MiB"
