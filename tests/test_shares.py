"""One stage's work in several processes: how many, and what happens when one of them dies."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
import torch

from stages import shares
from stages.errors import InputError
from stages.shares import PROCESSES, Parent, run_shares, wanted_processes

SHARE = """\
import os, signal, sys, time
from pathlib import Path
share, number = sys.argv[sys.argv.index("--share") + 1].split("/")
Path(f"started-{share}").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
how = Path("how").read_text().split()[int(share)]
if how == "fails":
    sys.exit(3)
if how == "is-killed":
    os.kill(os.getpid(), signal.SIGKILL)
if how == "hangs":
    time.sleep(600)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "a_share.py").write_text(SHARE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "a_share"


def gpus(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: number)


def test_all_shares_run_until_they_are_done(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("how").write_text("works works works", encoding="utf-8")
    gpus(monkeypatch, 0)
    told: list[float] = []
    run_shares([module], 3, lambda: told.append(time.monotonic()))
    assert sorted(path.name for path in Path().glob("started-*")) == ["started-0", "started-1", "started-2"]
    assert told


@pytest.mark.parametrize(("visible", "given"), [(None, ["0", "1"]), ("5,2", ["5", "2"]), ("GPU-aa,GPU-bb", ["GPU-aa", "GPU-bb"])])
def test_each_share_sees_a_gpu_of_its_own(module: str, monkeypatch: pytest.MonkeyPatch, visible: str | None, given: list[str]) -> None:
    Path("how").write_text("works works", encoding="utf-8")
    gpus(monkeypatch, 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    run_shares([module], 2, lambda: None)
    assert [Path(f"started-{share}").read_text(encoding="utf-8") for share in range(2)] == given


@pytest.mark.parametrize(("how", "said"), [("fails", "ended with exit status 3"), ("is-killed", "was killed by signal 9")])
def test_one_that_dies_ends_the_others_and_is_named(module: str, monkeypatch: pytest.MonkeyPatch, how: str, said: str) -> None:
    Path("how").write_text(f"hangs {how}", encoding="utf-8")
    gpus(monkeypatch, 0)
    start = time.monotonic()
    with pytest.raises(InputError, match=rf"process 2 of 2 {said}; .*run the same command again to go on"):
        run_shares([module], 2, lambda: None)
    assert time.monotonic() - start < 60, "the one that hangs was ended"


def test_as_many_processes_as_gpus_or_as_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PROCESSES, raising=False)
    gpus(monkeypatch, 0)
    assert wanted_processes() == 1
    gpus(monkeypatch, 4)
    assert wanted_processes() == 4
    monkeypatch.setenv(PROCESSES, "2")
    assert wanted_processes() == 2
    for wrong in ("0", "-1", "two", ""):
        monkeypatch.setenv(PROCESSES, wrong)
        with pytest.raises(InputError, match=f"{PROCESSES}='{wrong}' is no number of processes: set it to 1 or more"):
            wanted_processes()
    monkeypatch.setenv(PROCESSES, "5")
    with pytest.raises(InputError, match=r"=5, but 4 GPUs are visible: set it to no more than that"):
        wanted_processes()
    gpus(monkeypatch, 0)
    assert wanted_processes() == 5


def test_a_share_whose_starter_is_gone_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    parent = Parent()
    parent.check()
    monkeypatch.setattr(shares.os, "getppid", lambda: os.getpid() + 1)
    with pytest.raises(InputError, match="the process that shared out the work is gone"):
        parent.check()


def test_the_shares_are_started_with_this_python(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("how").write_text("works", encoding="utf-8")
    gpus(monkeypatch, 0)
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(FileNotFoundError):
        run_shares([module], 1, lambda: None)
