"""Cancelling a worker's flow in the dashboard stops its stages and frees their slots."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from benchmarks.chaos import Services
from flows.dvc_api.processes import RECORDS, guarded_processes
from flows.reproduce.flow import reproduce
from flows.scheduling.slots import find_slots
from tests.flows.conftest import RunByDvc
from tests.flows.tiny import eventually, locked, make_workspace

KEYS = ("a", "b")


def test_a_cancelled_flow_stops_its_stages_frees_their_slots_and_resumes_when_re_run(
    tmp_path: Path, run_by_dvc: RunByDvc, prefect_api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    services = Services(tmp_path, api=prefect_api)
    root = make_workspace(tmp_path / "workspace", KEYS)
    (root / "hold" / "a").touch()
    try:
        services.start()
        run = services.run_flow(root)
        assert eventually((root / "seen-models-a.log").exists), "the stage never started"
        address = f"{prefect_api}/flow_runs/{run}"
        assert httpx.get(address).json()["name"] == "reproduce everything"
        # the request that the button of the dashboard sends
        cancelling = {"state": {"type": "CANCELLING", "name": "Cancelling"}}
        httpx.post(f"{address}/set_state", json=cancelling).raise_for_status()
        assert eventually(lambda: httpx.get(address).json()["state_type"] == "CANCELLED")
        assert eventually(
            lambda: not [1 for _, record in guarded_processes() if record.startswith(str(root))]
        )
        assert not list((root / RECORDS).iterdir())
        with find_slots(root, 2).acquire(2, lambda: True):
            pass

        def is_stopped() -> bool:
            of_run = {"flow_runs": {"id": {"any_": [str(run)]}}}
            tasks = httpx.post(f"{prefect_api}/task_runs/filter", json=of_run).json()
            return any(task["state_name"] == "Stopped" for task in tasks)

        assert eventually(is_stopped)
        (root / "hold" / "a").unlink()
    finally:
        services.stop()
    summary = reproduce(root=str(root))
    assert summary.clean
    assert "split" not in [each.name for each in summary.results], (
        "a finished stage is not run again"
    )
    assert locked(root) == locked(run_by_dvc(KEYS))
