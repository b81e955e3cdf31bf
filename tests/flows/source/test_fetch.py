"""Transfers: whole or not there at all, gone on with after anything that stops them."""

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
from flows.source.fetch import Checksum, fetch, forget, open_files
from stages.core.errors import InputError
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
def small_and_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks small enough for a small file to have many, and no pauses."""
    monkeypatch.setattr(module, "BLOCK", 50_000)
    monkeypatch.setattr(module, "SAFE", 100_000)
    monkeypatch.setattr(module, "PAUSE", 0.001)


def take(
    address: str, target: Path, checksum: Checksum | None = None, *, noted: bool = False
) -> None:
    files, path = open_files(address)
    fetch(files, path, target, checksum, noted=noted)


def only(target: Path) -> bool:
    """Is nothing but the target there."""
    return [path.name for path in target.parent.iterdir()] == [target.name]


def half_fetched(target: Path, served: Served, share: float = 0.5) -> int:
    """What a transfer that was killed leaves; how many bytes of it count."""
    done = int(len(served.content) * share)
    files, address = open_files(served.address)
    now = module._Transfer(files, address, target)._look()
    target.with_name("c.zip.part").write_bytes(
        served.content[:done] + b"bytes that never got to the disk for certain"
    )
    note = {"source": now.source, "size": now.size, "identity": now.identity, "done": done}
    target.with_name("c.zip.part.json").write_text(json.dumps(note), encoding="utf-8")
    return done


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("etag", [True, False])
def test_what_is_served_is_there_and_nothing_else(
    tmp_path: Path, served: Served, ranges: bool, etag: bool
) -> None:
    served.ranges, served.etag = ranges, etag
    take(
        served.address,
        tmp_path / "deep" / "c.zip",
        Checksum("sha256", hashlib.sha256(CONTENT).hexdigest()),
    )
    assert (tmp_path / "deep" / "c.zip").read_bytes() == CONTENT
    assert only(tmp_path / "deep" / "c.zip")


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_file_is_fetched_and_gone_on_with(tmp_path: Path, scheme: str) -> None:
    (tmp_path / "source").write_bytes(CONTENT)
    target = tmp_path / "to" / "c.zip"
    take(f"{scheme}{tmp_path}/source", target, Checksum("md5", hashlib.md5(CONTENT).hexdigest()))
    assert target.read_bytes() == CONTENT
    assert only(target)


@pytest.mark.parametrize("size", [0, 1, 50_000, 100_000, 100_001])
@pytest.mark.parametrize("ranges", [True, False])
def test_files_of_every_size_come_whole(
    tmp_path: Path, served: Served, size: int, ranges: bool
) -> None:
    served.content, served.ranges = CONTENT[:size], ranges
    take(served.address, tmp_path / "c.zip")
    assert (tmp_path / "c.zip").read_bytes() == CONTENT[:size]


def test_what_has_come_is_not_fetched_again(tmp_path: Path, served: Served) -> None:
    done = half_fetched(tmp_path / "c.zip", served)
    take(served.address, tmp_path / "c.zip")
    assert (tmp_path / "c.zip").read_bytes() == CONTENT
    assert served.asked
    assert min(first for first in served.asked if first is not None) == done


@pytest.mark.parametrize(
    "how",
    ["changed", "no etag", "no note", "broken note", "another source", "no ranges", "shorter part"],
)
def test_what_cannot_be_gone_on_with_is_begun_anew(
    tmp_path: Path, served: Served, how: str
) -> None:
    target, note = tmp_path / "c.zip", tmp_path / "c.zip.part.json"
    if how == "no etag":
        served.etag = False
    half_fetched(target, served)
    served.content = (
        CONTENT[:1000:-1][:90_000] if how == "changed" else CONTENT
    )  # and less than has come
    served.ranges = how != "no ranges"
    if how == "no note":
        note.unlink()
    elif how == "broken note":
        note.write_text("{")
    elif how == "another source":
        note.write_text(note.read_text().replace('"source": "', '"source": "0'))
    elif how == "shorter part":
        target.with_name("c.zip.part").write_bytes(b"")
    take(served.address, target)
    assert target.read_bytes() == served.content
    assert only(target)


def test_a_server_that_breaks_off_is_asked_again_from_there(
    tmp_path: Path, served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    served.drops = 3
    take(served.address, tmp_path / "c.zip")
    assert (tmp_path / "c.zip").read_bytes() == CONTENT
    assert "tried again in 0.001 s, from 0.0 MiB on" in capsys.readouterr().err


def test_a_server_that_never_recovers_is_given_up_and_what_came_is_kept(
    tmp_path: Path, served: Served
) -> None:
    half_fetched(tmp_path / "c.zip", served)
    served.drops = 10_000
    with pytest.raises(
        InputError,
        match=(
            r"corpus\.zip cannot be fetched \(.*\), tried 6 times; 0\.5 MiB have come and are kept:"
            r" run again"
        ),
    ):
        take(served.address, tmp_path / "c.zip")
    served.drops = 0
    served.asked.clear()
    take(served.address, tmp_path / "c.zip")
    assert (tmp_path / "c.zip").read_bytes() == CONTENT
    assert min(first for first in served.asked if first is not None) == 500_000


def test_a_server_that_is_down_is_told_from_a_file_that_is_gone(
    tmp_path: Path, served: Served
) -> None:
    for status in (404, 403, 401):
        served.status = status
        with pytest.raises(
            InputError,
            match=f"cannot be fetched: {status} .*is it still there, and may you read it",
        ):
            take(served.address, tmp_path / "c.zip")
    served.status = 503
    with pytest.raises(InputError, match="503.* tried 6 times"):
        take(served.address, tmp_path / "c.zip")
    with pytest.raises(InputError, match="tried 6 times"):
        take("http://127.0.0.1:1/c.zip", tmp_path / "c.zip")
    with pytest.raises(InputError, match="nothing.zip cannot be fetched"):
        take(f"{tmp_path}/nothing.zip", tmp_path / "c.zip")
    assert not (tmp_path / "c.zip").exists()


def test_secrets_in_an_address_are_not_told(tmp_path: Path, served: Served) -> None:
    served.status = 403
    address = served.address.replace("http://", "http://me:secret@") + "?signature=secret"
    with pytest.raises(InputError) as caught:
        take(address, tmp_path / "c.zip")
    assert "secret" not in str(caught.value)
    assert all(b"secret" not in path.read_bytes() for path in tmp_path.iterdir())


def test_a_wrong_hash_leaves_nothing(tmp_path: Path, served: Served) -> None:
    (tmp_path / "c.zip").write_bytes(b"old")
    with pytest.raises(
        InputError,
        match=r"corpus\.zip has sha256 [0-9a-f]{64}, not 00: it is not the file that was meant",
    ):
        take(served.address, tmp_path / "c.zip", Checksum("sha256", "00"))
    assert (tmp_path / "c.zip").read_bytes() == b"old"
    assert only(tmp_path / "c.zip")


def test_a_source_that_changes_meanwhile_is_fetched_again(
    tmp_path: Path, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive = module._Transfer._receive

    def changes(self: module._Transfer, *arguments: object) -> None:
        receive(self, *arguments)  # type: ignore[arg-type]
        served.content = CONTENT[::-1]

    monkeypatch.setattr(module._Transfer, "_receive", changes)
    take(served.address, tmp_path / "c.zip")
    assert (tmp_path / "c.zip").read_bytes() == CONTENT[::-1]


def test_too_small_a_disk_is_found_before_anything_comes(
    tmp_path: Path, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(
        InputError,
        match=r"corpus\.zip needs 65 MiB more in .*, which has 0 MiB free: free some space",
    ):
        take(served.address, tmp_path / "c.zip")
    assert served.asked == []


def test_two_transfers_to_one_place_do_not_mix(tmp_path: Path, served: Served) -> None:
    with (
        exclusive_lock(tmp_path / "c.zip.part"),
        pytest.raises(InputError, match=r"another process .*/c\.zip\.part"),
    ):
        take(served.address, tmp_path / "c.zip")


def test_a_folder_and_an_unknown_scheme_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder: only single files"):
        take(str(tmp_path), tmp_path / "to" / "c.zip")
    with pytest.raises(InputError, match="nosuch://x/y cannot be opened"):
        take("nosuch://x/y", tmp_path / "c.zip")


def test_what_was_fetched_and_noted_is_not_fetched_again_while_nothing_changes(
    tmp_path: Path, served: Served
) -> None:
    target = tmp_path / "c.zip"
    take(served.address, target, noted=True)
    served.asked.clear()
    take(served.address, target, noted=True)
    assert served.asked == []
    target.write_bytes(CONTENT[::-1])
    take(served.address, target, noted=True)
    assert target.read_bytes() == CONTENT
    served.content = CONTENT[::-1]
    take(served.address, target, noted=True)
    assert target.read_bytes() == CONTENT[::-1]
    forget(target)
    assert only(target)


def test_a_process_that_is_killed_in_the_middle_loses_little_and_the_next_goes_on(
    tmp_path: Path,
) -> None:
    content = random.Random(1).randbytes(60 * 2**20)
    target = tmp_path / "c.zip"
    target.write_bytes(b"old")
    command = [*MED_R1, "fetch-file"]
    checked = ["--sha256", hashlib.sha256(content).hexdigest()]
    with serving(content) as served:
        served.gate.clear()
        served.held_at = 40 * 2**20
        with subprocess.Popen(
            [*command, served.address, str(target), *checked], cwd=REPOSITORY
        ) as process:
            assert served.held.wait(60), "it did not come to the middle"
            process.send_signal(signal.SIGKILL)
        assert target.read_bytes() == b"old"
        kept = json.loads((tmp_path / "c.zip.part.json").read_text())["done"]
        assert kept >= 16 * 2**20
        served.gate.set()
        served.asked.clear()
        subprocess.run(
            [*command, served.address, str(target), *checked], cwd=REPOSITORY, check=True
        )
        assert min(first for first in served.asked if first is not None) == kept
    assert target.read_bytes() == content
    assert only(target)


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
        done = subprocess.run(
            [sys.executable, "-c", program, large.address],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            check=True,
        )
    assert int(done.stdout) < 80 * 2**10, "KiB, of a file of 150 MiB"
