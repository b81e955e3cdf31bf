"""A slot has one user at a time, and is free when its user has ended."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from fractions import Fraction
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from flows.scheduling.slots import PARTS, Slots, find_slots, lock_files, visible_gpus
from stages.core.distributed.devices import SLOTS_PER_GPU
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


def test_gpus_are_found_where_there_is_no_nvidia_smi(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container: its device files keep the numbers of the host, torch counts anew."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("flows.scheduling.slots.query_gpus", lambda _: [])
    files = [Path("/dev/nvidia2"), Path("/dev/nvidia5")]
    monkeypatch.setattr("flows.scheduling.slots.device_files", lambda: files)
    assert find_slots(tmp_path).names == ("0", "1")
    monkeypatch.setattr("flows.scheduling.slots.device_files", list)
    assert find_slots(tmp_path).names == ("cpu-0",)


@pytest.mark.parametrize(
    ("cores", "gigabytes", "threads", "count"),
    [
        (2, 24, 1, 3),
        (1, 24, 1, 2),
        (2, 24, 2, 1),
        (8, 64, 3, 2),
        (16, 7, 1, 3),
        (2, 1, 1, 1),
        (1, 8, 4, 1),
    ],
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
    monkeypatch.setattr("flows.scheduling.slots.available_cores", lambda: cores)
    memory = SimpleNamespace(available=gigabytes * 2**30)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    (tmp_path / "params.yaml").write_text(f"base: {{threads: {threads}}}\n", encoding="utf-8")
    assert len(find_slots(tmp_path).names) == count
    (tmp_path / "params.yaml").write_text("rate: 1\n", encoding="utf-8")
    assert len(find_slots(tmp_path).names) == 1


def test_slots_of_a_gpu_are_handed_out_over_all_gpus_first(tmp_path: Path) -> None:
    slots = Slots(("0", "3"), tmp_path, True, per_gpu=2)
    assert [(each.device, each.number) for each in slots.slots] == [
        ("0", 1),
        ("3", 1),
        ("0", 2),
        ("3", 2),
    ]
    visible = []
    with ExitStack() as stack:
        for _ in range(4):
            names, locks = stack.enter_context(slots.acquire(1, at_once))
            environment = slots.environment(names)
            assert environment[SLOTS_PER_GPU] == "2"
            visible.append(environment["CUDA_VISIBLE_DEVICES"])
            assert len(locks) == 1 + PARTS / 2
        assert visible == ["0", "3", "0", "3"]
        with pytest.raises(TimeoutError), slots.acquire(1, at_once):
            pass
    three = Slots(("0", "3"), tmp_path, True, per_gpu=2, limit=3)
    assert [(each.device, each.number) for each in three.slots] == [("0", 1), ("3", 1), ("0", 2)]


def test_a_stage_of_several_gpus_never_gets_two_slots_of_one(tmp_path: Path) -> None:
    slots = Slots(("0", "1"), tmp_path, True, per_gpu=2)
    with slots.acquire(2, at_once) as (names, _):
        assert slots.environment(names)["CUDA_VISIBLE_DEVICES"] == "0,1"
        with slots.acquire(2, at_once) as (others, _):
            assert slots.environment(others)["CUDA_VISIBLE_DEVICES"] == "0,1"
            assert not set(names) & set(others)
    with slots.acquire(1, at_once), slots.acquire(1, at_once), slots.acquire(1, at_once):
        with pytest.raises(TimeoutError), slots.acquire(2, at_once):
            pass
        with slots.acquire(1, at_once):
            pass
    one = Slots(("0",), tmp_path, True, per_gpu=2)
    refused = pytest.raises(InputError, match="2 slots are needed, but there are 1 GPUs")
    with refused, one.acquire(2, at_once):
        pass


def test_a_stage_that_needs_a_whole_gpu_shares_it_with_none(tmp_path: Path) -> None:
    whole = Slots(("0",), tmp_path, True)
    halves = Slots(("0",), tmp_path, True, per_gpu=2)
    with halves.acquire(1, at_once):
        with halves.acquire(1, at_once), pytest.raises(TimeoutError), whole.acquire(1, at_once):
            pass
        with pytest.raises(TimeoutError), whole.acquire(1, at_once):
            pass
    with whole.acquire(1, at_once), pytest.raises(TimeoutError), halves.acquire(1, at_once):
        pass
    with halves.acquire(1, at_once):
        pass


def test_flows_with_different_slots_per_gpu_never_take_more_than_a_gpu(tmp_path: Path) -> None:
    mixed = 0
    for order in permutations([1, 2, 3, 4, 6, 12]):
        waiting = [Slots(("0",), tmp_path, True, per_gpu=number) for number in order]
        taken = []
        with ExitStack() as stack:
            while waiting:
                for slots in list(waiting):
                    try:
                        stack.enter_context(slots.acquire(1, at_once))
                    except TimeoutError:
                        waiting.remove(slots)
                    else:
                        taken.append(Fraction(1, slots.per_gpu))
                    assert sum(taken) <= 1
        # whatever is left is less than any of them could use
        assert sum(taken) == 1
        mixed += len(set(taken)) > 1
    assert mixed > 300, "different shares were on the GPU at once"


def test_a_share_is_free_when_its_user_is_killed_and_the_other_share_is_not(
    tmp_path: Path,
) -> None:
    code = (
        "import sys, time; from pathlib import Path; from flows.scheduling.slots import"
        f" Slots\nwith Slots(('0',), Path({str(tmp_path)!r}), True, 2).acquire(1, lambda: False):"
        " print('locked', flush=True); time.sleep(300)"
    )
    user = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    )
    assert user.stdout
    assert user.stdout.readline() == "locked\n"
    halves = Slots(("0",), tmp_path, True, per_gpu=2)
    with halves.acquire(1, at_once) as (names, _):
        assert names == (halves.names[1],)
        with pytest.raises(TimeoutError), halves.acquire(1, at_once):
            pass
        user.kill()
        user.wait()
        with pytest.raises(TimeoutError), Slots(("0",), tmp_path, True).acquire(1, at_once):
            pass
        with halves.acquire(1, at_once) as (names, _):
            assert names == (halves.names[0],)


def test_the_number_of_slots_follows_from_the_slots_per_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert len(find_slots(tmp_path, slots_per_gpu=2).names) == 4
    assert len(find_slots(tmp_path, 3, slots_per_gpu=2).names) == 3
    with pytest.raises(InputError, match="5 slots on 2 GPUs .* use 1 to 4 slots"):
        find_slots(tmp_path, 5, slots_per_gpu=2)
    with pytest.raises(InputError, match="5 slots per GPU: use one of 1, 2, 3, 4, 6, 12"):
        find_slots(tmp_path, slots_per_gpu=5)
    with pytest.raises(InputError, match="0 slots per GPU"):
        find_slots(tmp_path, slots_per_gpu=0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(InputError, match="there is no GPU here"):
        find_slots(tmp_path, slots_per_gpu=2)


def test_the_lock_files_of_a_gpu_and_of_its_parts_name_it(tmp_path: Path) -> None:
    with Slots(("0",), tmp_path, True, per_gpu=6).acquire(1, at_once):
        files = lock_files(tmp_path)
    assert len(files) == 3
    assert set(files.values()) == {"0"}
