"""Cancelling a worker's flow in the dashboard stops its stages and frees their slots."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from benchmarks.chaos import Services
from flows.dvc_api.processes import RECORDS, guarded_processes
from flows.scheduling.slots import find_slots
from tests.commands import MED_R1
from tests.flows.conftest import RunByDvc
from tests.flows.tiny import locked, make_workspace


def eventually(condition: Callable[[], bool], seconds: float = 90) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.2)
    return condition()


def test_a_cancelled_flow_stops_its_stages_frees_their_slots_and_resumes_when_re_run(
    tmp_path: Path, run_by_dvc: RunByDvc
) -> None:
    services = Services(tmp_path)
    root = make_workspace(tmp_path / "workspace")
    (root / "hold" / "a").touch()
    try:
        services.start()
        services.run_flow(root)
        assert eventually((root / "seen-models-a.log").exists), "the stage never started"
        api = services.environment["PREFECT_API_URL"]
        (latest,) = httpx.post(
            f"{api}/flow_runs/filter", json={"limit": 1, "sort": "START_TIME_DESC"}
        ).json()
        assert latest["name"] == "reproduce everything"
        # the request that the button of the dashboard sends
        cancelling = {"state": {"type": "CANCELLING", "name": "Cancelling"}}
        httpx.post(f"{api}/flow_runs/{latest['id']}/set_state", json=cancelling).raise_for_status()
        assert eventually(
            lambda: httpx.get(f"{api}/flow_runs/{latest['id']}").json()["state_type"] == "CANCELLED"
        )
        assert eventually(
            lambda: not [1 for _, record in guarded_processes() if record.startswith(str(root))]
        )
        assert not list((root / RECORDS).iterdir())
        with find_slots(root, 2).acquire(2, lambda: True):
            pass

        def is_stopped() -> bool:
            tasks = httpx.post(f"{api}/task_runs/filter", json={}).json()
            return any(task["state_name"] == "Stopped" for task in tasks)

        assert eventually(is_stopped)
        (root / "hold" / "a").unlink()
        process = subprocess.run(
            [*MED_R1, "reproduce"],
            cwd=root,
            env=services.environment,
            capture_output=True,
            text=True,
        )
        assert process.returncode == 0, process.stderr
    finally:
        services.stop()
    assert "split" not in process.stdout, "a finished stage is not run again"
    assert locked(root) == locked(run_by_dvc())
