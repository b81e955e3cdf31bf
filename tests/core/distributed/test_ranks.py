"""Ranks share all the work, and end when one fails or their parent is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from stages.core.distributed import ranks
from stages.core.errors import InputError
from tests.core.distributed.servers import until

WORKER = """
import os, sys, time
from pathlib import Path
rank = sys.argv[sys.argv.index("--rank") + 1]
Path(f"{rank}.pid").write_text(f"{os.getpid()} {os.environ.get('CUDA_VISIBLE_DEVICES')}")
while sys.argv[1] == "wait" and not (rank == "1" and Path("fail").exists()):
    time.sleep(0.02)
    if sys.argv[2] == "check":
        from stages.core.distributed.ranks import check_still_wanted
        check_still_wanted()
sys.exit(3 if Path("fail").exists() else 0)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "worker.py").write_text(WORKER, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[3]}")
    monkeypatch.setattr(ranks, "_POLL_INTERVAL_S", 0.02)
    return tmp_path


def pids(folder: Path, number: int = 2) -> list[int]:
    """Process ids of the ranks, once all have written theirs."""

    def written() -> list[list[str]]:
        return [path.read_text(encoding="utf-8").split() for path in sorted(folder.glob("*.pid"))]

    until(lambda: len(found := written()) == number and [] not in found, seconds=120)
    return [int(words[0]) for words in written()]


def gone(pid: int, within: float = 20.0) -> bool:
    end = time.monotonic() + within
    while Path(f"/proc/{pid}").exists() and time.monotonic() < end:
        time.sleep(0.02)
    return not Path(f"/proc/{pid}").exists()


def test_all_ranks_run_each_with_a_gpu_of_its_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    for visible, expected in ((None, ["0", "1", "2"]), ("4,GPU-7,6", ["4", "GPU-7", "6"])):
        if visible:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        else:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        ranks.run_ranks(["worker", "go", "on"], 3, lambda: reports.append(1))
        assert [
            path.read_text(encoding="utf-8").split()[1] for path in sorted(folder.glob("*.pid"))
        ] == expected
    assert reports


def test_one_that_fails_ends_the_others_and_is_named(folder: Path) -> None:
    def fail() -> None:
        pids(folder)
        (folder / "fail").touch()

    with pytest.raises(
        InputError,
        match=r"process 2 of 2 ended with exit status 3; .*: re-run the same command",
    ):
        ranks.run_ranks(["worker", "wait", "on"], 2, fail)
    assert all(gone(pid) for pid in pids(folder))


def test_one_that_is_killed_is_named_with_its_signal(folder: Path) -> None:
    with pytest.raises(InputError, match="process 1 of 2 was killed by signal 9"):
        ranks.run_ranks(
            ["worker", "wait", "on"], 2, lambda: os.kill(pids(folder)[0], signal.SIGKILL)
        )


def test_ranks_end_when_the_one_that_started_them_is_killed(folder: Path) -> None:
    code = (
        "from stages.core.distributed.ranks import run_ranks; run_ranks(['worker', 'wait',"
        " 'check'], 2, lambda: None)"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as parent:
        workers = pids(folder)
        parent.kill()
    assert all(gone(pid) for pid in workers)


def test_there_are_as_many_as_gpus_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ranks.PROCESSES, raising=False)
    for gpus, expected in ((0, 1), (1, 1), (4, 4)):
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        assert ranks.wanted_processes() == expected
    monkeypatch.setenv(ranks.PROCESSES, "2")
    assert ranks.wanted_processes() == 2
    monkeypatch.setenv(ranks.PROCESSES, "5")
    with pytest.raises(InputError, match=r"MED_R1_PROCESSES=5, but 4 GPUs are visible"):
        ranks.wanted_processes()
    for wrong in ("two", "0", "-1", ""):
        monkeypatch.setenv(ranks.PROCESSES, wrong)
        with pytest.raises(
            InputError, match=rf"MED_R1_PROCESSES='{wrong}' is not a number of processes"
        ):
            ranks.wanted_processes()
