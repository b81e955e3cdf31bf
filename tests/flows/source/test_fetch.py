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
from tests.corpus.serving import Served, serving

REPOSITORY = Path(__file__).parents[3]
CONTENT = random.Random(0).randbytes(1_000_000)


@pytest.fixture
def served() -> Iterator[Served]:
    with serving(CONTENT) as one:
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


def first_byte(served: Served) -> int:
    """First byte of the earliest range requested."""
    return min(first for first in served.asked if first is not None)


def write_partial(target: Path, served: Served) -> int:
    """Write the files of a transfer that was killed half-way; how many of its bytes count."""
    done = len(served.content) // 2
    files, address = open_files(served.address)
    now = module._Transfer(files, address, target)._probe()
    target.with_name("c.zip.part").write_bytes(served.content[:done] + b"bytes without fsync")
    state = {"source": now.source, "size": now.size, "identity": now.identity, "done": done}
    target.with_name("c.zip.part.json").write_text(json.dumps(state), encoding="utf-8")
    return done


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("etag", [True, False])
def test_the_target_is_the_served_file_and_nothing_is_left_beside_it(
    tmp_path: Path, served: Served, ranges: bool, etag: bool
) -> None:
    served.ranges = ranges
    served.etag = etag
    target = tmp_path / "deep" / "c.zip"
    fetch_url(served.address, target, Checksum("sha256", hashlib.sha256(CONTENT).hexdigest()))
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
    tmp_path: Path, served: Served, size: int, ranges: bool
) -> None:
    served.content = CONTENT[:size]
    served.ranges = ranges
    fetch_url(served.address, tmp_path / "c.zip")
    assert (tmp_path / "c.zip").read_bytes() == CONTENT[:size]


def test_received_bytes_are_not_fetched_again(tmp_path: Path, served: Served) -> None:
    done = write_partial(tmp_path / "c.zip", served)
    fetch_url(served.address, tmp_path / "c.zip")
    assert (tmp_path / "c.zip").read_bytes() == CONTENT
    assert first_byte(served) == done


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
def test_a_transfer_that_cannot_resume_restarts(tmp_path: Path, served: Served, case: str) -> None:
    target = tmp_path / "c.zip"
    state = tmp_path / "c.zip.part.json"
    if case == "no etag":
        served.etag = False
    write_partial(target, served)
    if case == "changed":
        served.content = CONTENT[:1000:-1][:90_000]  # shorter than the partial file
    served.ranges = case != "no ranges"
    if case == "no state":
        state.unlink()
    elif case == "corrupt state":
        state.write_text("{")
    elif case == "another source":
        state.write_text(state.read_text().replace('"source": "', '"source": "0'))
    elif case == "shorter part":
        target.with_name("c.zip.part").write_bytes(b"")
    fetch_url(served.address, target)
    assert target.read_bytes() == served.content
    assert is_only_file(target)


def test_a_dropped_connection_is_retried(
    tmp_path: Path, served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    served.drops = 3
    fetch_url(served.address, tmp_path / "c.zip")
    assert (tmp_path / "c.zip").read_bytes() == CONTENT
    assert "corpus.zip: " in (stderr := capsys.readouterr().err)
    assert "0.001 s from 0.0 MiB" in stderr


def test_received_bytes_survive_a_server_that_never_recovers(
    tmp_path: Path, served: Served
) -> None:
    write_partial(tmp_path / "c.zip", served)
    served.drops = 10_000
    with pytest.raises(InputError, match=r"corpus\.zip .* 6 times; 0\.5 MiB .*re-run"):
        fetch_url(served.address, tmp_path / "c.zip")
    served.drops = 0
    served.asked.clear()
    fetch_url(served.address, tmp_path / "c.zip")
    assert (tmp_path / "c.zip").read_bytes() == CONTENT
    assert first_byte(served) == 500_000


def test_only_server_errors_are_retried(tmp_path: Path, served: Served) -> None:
    for status in (404, 403, 401):
        served.status = status
        with pytest.raises(InputError, match=rf"corpus\.zip cannot be fetched: {status} "):
            fetch_url(served.address, tmp_path / "c.zip")
    served.status = 503
    with pytest.raises(InputError, match="503.* tried 6 times"):
        fetch_url(served.address, tmp_path / "c.zip")
    with pytest.raises(InputError, match="tried 6 times"):
        fetch_url("http://127.0.0.1:1/c.zip", tmp_path / "c.zip")
    with pytest.raises(InputError, match="nothing.zip cannot be fetched"):
        fetch_url(f"{tmp_path}/nothing.zip", tmp_path / "c.zip")
    assert not (tmp_path / "c.zip").exists()


def test_secrets_in_an_address_are_neither_reported_nor_written(
    tmp_path: Path, served: Served
) -> None:
    served.status = 403
    address = served.address.replace("http://", "http://me:secret@") + "?signature=secret"
    with pytest.raises(InputError) as error:
        fetch_url(address, tmp_path / "c.zip")
    assert "secret" not in str(error.value)
    assert all(b"secret" not in path.read_bytes() for path in tmp_path.iterdir())


def test_a_wrong_hash_leaves_the_old_file(tmp_path: Path, served: Served) -> None:
    (tmp_path / "c.zip").write_bytes(b"old")
    with pytest.raises(InputError, match=r"corpus\.zip has sha256 [0-9a-f]{64}, expected 00"):
        fetch_url(served.address, tmp_path / "c.zip", Checksum("sha256", "00"))
    assert (tmp_path / "c.zip").read_bytes() == b"old"
    assert is_only_file(tmp_path / "c.zip")


def test_a_source_that_changes_during_the_transfer_is_fetched_again(
    tmp_path: Path, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive = module._Transfer._receive

    def changes(self: module._Transfer, *arguments: object) -> None:
        receive(self, *arguments)  # type: ignore[arg-type]
        served.content = CONTENT[::-1]

    monkeypatch.setattr(module._Transfer, "_receive", changes)
    fetch_url(served.address, tmp_path / "c.zip")
    assert (tmp_path / "c.zip").read_bytes() == CONTENT[::-1]


def test_a_disk_that_is_too_small_is_reported_before_the_transfer(
    tmp_path: Path, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(DiskFullError, match=r"corpus\.zip needs 65 MiB .* 0 MiB free"):
        fetch_url(served.address, tmp_path / "c.zip")
    assert served.asked == []


def test_concurrent_transfers_to_one_target_are_refused(tmp_path: Path, served: Served) -> None:
    with (
        exclusive_lock(tmp_path / "c.zip.part"),
        pytest.raises(InputError, match=r"another process .*/c\.zip\.part"),
    ):
        fetch_url(served.address, tmp_path / "c.zip")


def test_a_folder_and_an_unknown_scheme_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        fetch_url(str(tmp_path), tmp_path / "to" / "c.zip")
    with pytest.raises(InputError, match="nosuch://x/y cannot be opened"):
        fetch_url("nosuch://x/y", tmp_path / "c.zip")


def test_with_its_state_kept_an_unchanged_file_is_not_fetched_again(
    tmp_path: Path, served: Served
) -> None:
    target = tmp_path / "c.zip"
    fetch_url(served.address, target, keep_state=True)
    served.asked.clear()
    fetch_url(served.address, target, keep_state=True)
    assert served.asked == []
    target.write_bytes(CONTENT[::-1])
    fetch_url(served.address, target, keep_state=True)
    assert target.read_bytes() == CONTENT
    served.content = CONTENT[::-1]
    fetch_url(served.address, target, keep_state=True)
    assert target.read_bytes() == CONTENT[::-1]
    remove_state(target)
    assert is_only_file(target)


def test_a_transfer_that_was_killed_half_way_resumes(tmp_path: Path) -> None:
    content = random.Random(1).randbytes(60 * 2**20)
    target = tmp_path / "c.zip"
    target.write_bytes(b"old")
    command = [*MED_R1, "fetch-file"]
    checksum = ["--sha256", hashlib.sha256(content).hexdigest()]
    with serving(content) as served:
        served.gate.clear()
        served.held_at = 40 * 2**20
        command += [served.address, str(target), *checksum]
        with subprocess.Popen(command, cwd=REPOSITORY) as process:
            assert served.held.wait(60), "the transfer did not reach the gate"
            process.send_signal(signal.SIGKILL)
        assert target.read_bytes() == b"old"
        done = json.loads((tmp_path / "c.zip.part.json").read_text())["done"]
        assert done >= 16 * 2**20
        served.gate.set()
        served.asked.clear()
        subprocess.run(command, cwd=REPOSITORY, check=True)
        assert first_byte(served) == done
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
    with serving(os.urandom(150 * 2**20)) as large:
        process = subprocess.run(
            [sys.executable, "-c", program, large.address],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            check=True,
        )
    assert int(process.stdout) < 80 * 2**10, "KiB, of a file of 150 MiB"
