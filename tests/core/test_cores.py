"""Cores that a process may use, of affinities and control groups as containers have them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stages.core import cores


@pytest.mark.parametrize(
    ("lines", "files", "expected"),
    [
        pytest.param("0::/", {"cpu.max": "400000 100000"}, 4, id="container of version 2"),
        pytest.param("0::/", {"cpu.max": "max 100000"}, 64, id="no limit"),
        pytest.param("0::/", {"cpu.max": "150000 100000"}, 2, id="one and a half"),
        pytest.param("0::/", {"cpu.max": "5000 100000"}, 1, id="a twentieth"),
        pytest.param("0::/", {"cpu.max": "9900000 100000"}, 64, id="more than there are"),
        pytest.param(
            "0::/slice/job",
            {"slice/cpu.max": "800000 100000", "slice/job/cpu.max": "max 100000"},
            8,
            id="limit of a parent",
        ),
        pytest.param(
            "0::/slice/job",
            {"slice/cpu.max": "800000 100000", "slice/job/cpu.max": "300000 100000"},
            3,
            id="the smallest limit",
        ),
        pytest.param(
            "0::/docker/0f3a", {"cpu.max": "200000 100000"}, 2, id="path of the host, not mounted"
        ),
        pytest.param(
            "5:memory:/\n4:cpu,cpuacct:/docker/0f3a\n0::/",
            {"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"},
            2,
            id="version 1",
        ),
        pytest.param(
            "4:cpu,cpuacct:/",
            {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
            64,
            id="version 1 without a limit",
        ),
        pytest.param("0::/", {"cpu.max": "nonsense"}, 64, id="unreadable limit"),
        pytest.param("0::/", {"cpu.max": "100000 0"}, 64, id="period of 0"),
        pytest.param(None, {}, 64, id="no control groups"),
    ],
)
def test_cores_are_those_of_the_affinity_and_the_quota(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lines: str | None,
    files: dict[str, str],
    expected: int,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(cores, "_PROCESS_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(cores, "_GROUPS", tmp_path / "mounted")
    if lines is not None:
        (tmp_path / "cgroup").write_text(f"{lines}\n", encoding="utf-8")
    for name, text in files.items():
        path = tmp_path / "mounted" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert cores.available_cores() == expected


def test_of_this_process_at_least_one_and_no_more_than_its_affinity() -> None:
    assert 1 <= cores.available_cores() <= len(os.sched_getaffinity(0))
