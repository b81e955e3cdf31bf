"""Processes that guards started."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import psutil
import pytest

from flows.dvc_api.processes import RECORDS, end_processes, find_orphans
from tests.flows.tiny import make_workspace


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_workspace(tmp_path / "workspace", ["a", "b"])


def test_orphaned_processes_are_found_and_ended(root: Path) -> None:
    record = (root / RECORDS / "train@a.pid").resolve()
    orphan = subprocess.Popen(
        ["sleep", "300"], env={"FLOW_RECORD": str(record), "PATH": "/usr/bin:/bin"}
    )
    deadline = time.monotonic() + 10
    while not find_orphans(root) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert [(process.pid, path) for process, path in find_orphans(root)] == [
        (orphan.pid, str(record))
    ]
    end_processes([psutil.Process(orphan.pid)])
    assert not psutil.pid_exists(orphan.pid)
    assert find_orphans(root) == []
