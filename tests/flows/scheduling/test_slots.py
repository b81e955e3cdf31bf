"""A slot has one user at a time, and is free when its user has ended."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from flows.scheduling.slots import Slots, find_slots, visible_gpus
from stages.core.errors import InputError
from tests.flows.tiny import REPOSITORY


def never() -> bool:
    return False


def at_once() -> bool:
    return True


def test_two_users_have_different_slots_and_a_third_gets_none(tmp_path: Path) -> None:
    slots = Slots(("0", "1"), tmp_path, True)
    with slots.acquire(1, never) as (first, _), slots.acquire(1, never) as (second, _):
        assert {*first, *second} == {"0", "1"}
        with pytest.raises(TimeoutError), slots.acquire(1, at_once):
            pass
    with slots.acquire(2, at_once) as (both, locks):
        assert both == ("0", "1")
        assert len(locks) == 2
    with slots.acquire(1, at_once):
        pass


def test_a_user_that_cannot_lock_all_slots_locks_none(tmp_path: Path) -> None:
    slots = Slots(("0", "1", "2"), tmp_path, True)
    with slots.acquire(2, never):
        with pytest.raises(TimeoutError), slots.acquire(2, at_once):
            pass
        with slots.acquire(1, at_once) as (names, _):
            assert names == ("2",)


def test_a_slot_is_free_when_its_user_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from flows.scheduling.slots import"
        f" Slots\nwith Slots(('0',), Path({str(tmp_path)!r}), True).acquire(1, lambda: False):"
        " print('locked', flush=True); time.sleep(300)"
    )
    user = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    )
    assert user.stdout
    assert user.stdout.readline() == "locked\n"
    slots = Slots(("0",), tmp_path, True)
    with pytest.raises(TimeoutError), slots.acquire(1, at_once):
        pass
    user.kill()
    user.wait()
    with slots.acquire(1, at_once) as (names, _):
        assert names == ("0",)


def test_a_stage_sees_only_the_devices_of_its_slots(tmp_path: Path) -> None:
    assert Slots(("0", "3"), tmp_path, True).environment(["3"]) == {"CUDA_VISIBLE_DEVICES": "3"}
    assert Slots(("cpu-0", "cpu-1"), tmp_path, False).environment(["cpu-1"]) == {
        "OMP_WAIT_POLICY": "PASSIVE"
    }
    assert Slots(("cpu-0",), tmp_path, False).environment(["cpu-0"]) == {}


def test_slots_are_the_visible_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 5")
    assert visible_gpus() == ["2", "5"]
    assert find_slots(tmp_path).names == ("2", "5")
    assert find_slots(tmp_path, 1).names == ("2",)
    assert find_slots(tmp_path, gpus=["5"]).names == ("5",)
    with pytest.raises(InputError, match="3 slots on 2 GPUs"):
        find_slots(tmp_path, 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert find_slots(tmp_path).names == ("cpu-0",)
    assert find_slots(tmp_path, 2).names == ("cpu-0", "cpu-1")
    with pytest.raises(InputError, match="at least one"):
        find_slots(tmp_path, 0)
    with (
        pytest.raises(InputError, match="4 slots are needed, but there are 1"),
        find_slots(tmp_path).acquire(4, never),
    ):
        pass


@pytest.mark.parametrize(
    ("cores", "gigabytes", "threads", "count"),
    [(2, 24, 1, 2), (2, 24, 2, 1), (8, 64, 3, 2), (16, 7, 1, 3), (2, 1, 1, 1), (1, 8, 4, 1)],
)
def test_without_gpus_cores_and_memory_decide_how_many_stages_run_at_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cores: int,
    gigabytes: int,
    threads: int,
    count: int,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    memory = SimpleNamespace(available=gigabytes * 2**30)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    (tmp_path / "params.yaml").write_text(f"base: {{threads: {threads}}}\n", encoding="utf-8")
    assert len(find_slots(tmp_path).names) == count
    (tmp_path / "params.yaml").write_text("rate: 1\n", encoding="utf-8")
    assert len(find_slots(tmp_path).names) == 1
