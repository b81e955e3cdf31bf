"""A real Prefect server: dead runs, unused slots, and servers that do not answer."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import prefect
import psutil
import pytest
from prefect import flow, task
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, LogCreate
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling, Completed, Pending, Running

from flows.doctor.command import examine
from flows.doctor.findings import Finding
from flows.doctor.server import (
    leaked_slots,
    may_be_same_process,
    project_flows,
    server,
    worker_name,
    zombies,
)

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun, State


@flow(name="reproduce")
def reproduce() -> None:
    """A flow with the name of this project's flow."""


@flow(name="somebody-elses")
def other() -> None:
    """A flow of another project on the same server."""


@task
def train() -> None:
    """A task of either flow."""


@pytest.fixture(scope="module")
def client(prefect_api: str) -> Iterator[SyncPrefectClient]:
    """A client of the shared server, without the unfinished runs of other tests."""
    with get_client(sync_client=True) as client:
        finish_all(client)
        yield client


@pytest.fixture(autouse=True)
def finish_runs(client: SyncPrefectClient) -> Iterator[None]:
    """Finish unfinished runs after each test, and delete limits, which other tests would obey."""
    yield
    finish_all(client)
    for limit in client.read_global_concurrency_limits(limit=200, offset=0):
        client.delete_global_concurrency_limit_by_name(limit.name)
    for tag in client.read_concurrency_limits(limit=200, offset=0):
        client.delete_concurrency_limit_by_tag(tag.tag)


def finish_all(client: SyncPrefectClient) -> None:
    for run in client.read_flow_runs():
        if run.state is None or not run.state.is_final():
            client.set_flow_run_state(run.id, Completed(), force=True)


def after(minutes: float) -> datetime:
    """Time in the future of the server's clock, which stamps every state."""
    return datetime.now(UTC) + timedelta(minutes=minutes)


def start_run(
    client: SyncPrefectClient,
    state: State,
    name: str,
    function: object = reproduce,
    process: str | None = None,
    worker: str | None = None,
) -> FlowRun:
    run = client.create_flow_run(function, name=name)  # type: ignore[arg-type]
    client.set_flow_run_state(run.id, state, force=True)
    if process:
        client.update_flow_run(run.id, infrastructure_pid=process)
    if worker:
        client.update_flow_run_labels(run.id, {"prefect.worker.name": worker})
    return run


def problems(findings: list[Finding]) -> list[str]:
    return [finding.what for finding in findings if finding.level == "problem"]


def dead_pid() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_a_healthy_server_has_no_problems(client: SyncPrefectClient) -> None:
    start_run(client, Running(), "just begun")
    findings = server()
    assert [(finding.check, finding.level) for finding in findings] == [
        ("Prefect server", "ok"),
        ("flow runs", "ok"),
        ("Prefect slots", "ok"),
    ]
    assert "1 unfinished, each with signs of life" in findings[1].what


@pytest.mark.parametrize("state", [Running(), Pending(), Cancelling()])
def test_a_run_without_a_sign_of_life_is_a_zombie_and_is_marked_as_crashed(
    client: SyncPrefectClient, state: State
) -> None:
    silent = start_run(client, state, "silent")
    start_run(client, Running(), "not ours", other)
    assert problems(zombies(client, now=after(10))) == []
    (diagnosis,) = examine(
        Path(), fix=True, checks={"runs": lambda root: zombies(client, now=after(40))}
    )
    assert diagnosis.finding.what.startswith(
        f"'silent' ({silent.id}) is {state.name} for the server, but it gave no sign of life for 40"
        " minutes"
    )
    assert diagnosis.fix_result == "marked 'silent' and 0 of its tasks as crashed"
    assert client.read_flow_run(silent.id).state_name == "Crashed"
    assert problems(zombies(client, now=after(40))) == []
    assert [
        run.state_name
        for run in client.read_flow_runs()
        if run.name == "not ours" and run.state_name != "Completed"
    ] == ["Running"]


def test_tasks_of_a_zombie_are_marked_too(client: SyncPrefectClient) -> None:
    run = start_run(client, Running(), "with a task")
    task = client.create_task_run(train, flow_run_id=run.id, dynamic_key="1", state=Running())
    (diagnosis,) = examine(
        Path(), fix=True, checks={"runs": lambda root: zombies(client, now=after(40))}
    )
    assert diagnosis.fix_result == "marked 'with a task' and 1 of its tasks as crashed"
    assert client.read_task_run(task.id).state_name == "Crashed"


def test_a_line_in_the_log_is_a_sign_of_life(client: SyncPrefectClient) -> None:
    run = start_run(client, Running(), "talkative")
    line = LogCreate.model_validate(
        {
            "name": "prefect.flow_runs",
            "level": 20,
            "message": "step 1",
            "timestamp": after(35),
            "flow_run_id": run.id,
        }
    )
    client.create_logs([line])
    assert problems(zombies(client, now=after(40))) == []
    assert len(problems(zombies(client, now=after(60)))) == 1


def test_a_heartbeat_is_a_sign_of_life(client: SyncPrefectClient) -> None:
    run = start_run(client, Running(), "beating")
    beat = {
        "occurred": after(35).isoformat(),
        "event": "prefect.flow-run.heartbeat",
        "id": str(uuid4()),
        "payload": {},
        "related": [],
    }
    client.request(
        "POST",
        "/events",
        json=[beat | {"resource": {"prefect.resource.id": f"prefect.flow-run.{run.id}"}}],
    )
    deadline = time.monotonic() + 60
    while problems(zombies(client, now=after(40))) and time.monotonic() < deadline:
        time.sleep(0.2)  # the server stores events by and by
    assert problems(zombies(client, now=after(40))) == []
    assert len(problems(zombies(client, now=after(60)))) == 1


def test_a_dead_local_process_is_found_at_once_and_a_live_one_may_be_silent(
    client: SyncPrefectClient,
) -> None:
    here = socket.gethostname()
    dead = dead_pid()
    start_run(client, Running(), "gone", process=f"{here}:{dead}")
    start_run(client, Running(), "alive", process=f"{here}:{os.getpid()}")
    start_run(client, Running(), "elsewhere", process=f"not-{here}:{dead}")
    (problem,) = problems(zombies(client))
    assert problem.startswith("'gone'")
    assert f"its process {dead} is gone" in problem
    assert {each.split("'")[1] for each in problems(zombies(client, now=after(600)))} == {
        "gone",
        "elsewhere",
    }


def test_the_host_of_a_process_worker_is_read_from_its_name(
    client: SyncPrefectClient,
) -> None:
    dead = dead_pid()
    start_run(client, Running(), "gone", process=str(dead), worker=worker_name("gpu", 1))
    start_run(client, Running(), "alive", process=str(os.getpid()), worker=worker_name("gpu", 2))
    for name, worker in {
        "elsewhere": f"gpu-not-{socket.gethostname()}-1",
        "on a host of a longer name": f"gpu-{socket.gethostname()}-2-1",
        "on an unknown host": "ProcessWorker 1",
    }.items():
        start_run(client, Running(), name, process=str(dead), worker=worker)
    (problem,) = problems(zombies(client))
    assert problem.startswith("'gone'")


def test_a_process_younger_than_the_run_only_reuses_its_id() -> None:
    created = datetime.fromtimestamp(psutil.Process().create_time(), UTC)
    assert may_be_same_process(os.getpid(), created + timedelta(hours=1))
    assert may_be_same_process(os.getpid(), None)
    assert not may_be_same_process(os.getpid(), created - timedelta(hours=1))
    assert not may_be_same_process(dead_pid(), None)


def test_leaked_slots_of_global_limits_are_found(client: SyncPrefectClient) -> None:
    client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name="gpu", limit=2))
    assert [finding.level for finding in leaked_slots(client)] == ["ok"]
    client.increment_concurrency_slots(["gpu"], slots=1, mode="concurrency")
    run = start_run(client, Running(), "uses it")
    assert [finding.level for finding in leaked_slots(client)] == ["ok"]
    client.set_flow_run_state(run.id, Completed(), force=True)
    (finding,) = leaked_slots(client)
    assert (finding.level, finding.fix) == ("warning", None)
    assert "1 of 2 slots of 'gpu'" in finding.what
    assert finding.remedy == "prefect gcl update gpu --active-slots 0"


def test_leaked_slots_of_a_tag_are_found_although_another_run_is_active(
    client: SyncPrefectClient,
) -> None:
    run = start_run(client, Running(), "has tasks")
    finished, busy = (
        client.create_task_run(train, flow_run_id=run.id, dynamic_key=key, state=Running())
        for key in ("1", "2")
    )
    client.create_concurrency_limit("train", 3)
    for each in (finished, busy):
        client.increment_v1_concurrency_slots(["train"], each.id)
    assert [finding.level for finding in leaked_slots(client)] == ["ok"]
    client.set_task_run_state(finished.id, Completed(), force=True)
    leaks = [finding for finding in leaked_slots(client) if finding.level == "warning"]
    assert [finding.what.partition(" are used")[0] for finding in leaks] == [
        "1 of 3 slots of tag 'train'"
    ]
    assert leaks[0].remedy == "prefect concurrency-limit reset train"


def test_the_flows_of_this_project_are_read_from_its_code() -> None:
    assert "reproduce" in project_flows()


def test_no_server_is_ok_if_none_is_configured() -> None:
    with temporary_settings(restore_defaults=[PREFECT_API_URL]):
        assert [finding.level for finding in server()] == ["ok"]


def test_an_unreachable_address_is_a_problem_and_its_password_is_not_printed() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with temporary_settings({PREFECT_API_URL: f"http://user:secret@127.0.0.1:{port}/api"}):
        (finding,) = server()
    assert (finding.check, finding.level) == ("Prefect server", "problem")
    assert (
        f"PREFECT_API_URL is http://127.0.0.1:{port}/api, where no Prefect answers" in finding.what
    )
    assert "secret" not in finding.what + finding.remedy


@pytest.mark.parametrize(
    ("code", "version", "level", "message"),
    [
        (200, "3.0.1", "problem", "version 3.0.1; this is"),
        (200, "{ours}.dev9", "warning", "requests may be refused"),
        (401, "", "problem", "refuses this user"),
        (404, "", "problem", "no Prefect answers"),
    ],
)
def test_a_server_of_another_version_or_kind_is_named(
    code: int, version: str, level: str, message: str
) -> None:
    ours = ".".join(prefect.__version__.split(".")[:2])

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = (
                "true" if self.path.endswith("/health") else f'"{version.format(ours=ours)}"'
            ).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"[]")

        def log_message(self, format: str, *args: object) -> None:
            """Print nothing."""

    with HTTPServer(("127.0.0.1", 0), Answer) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        try:
            with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{http.server_port}/api"}):
                finding = server()[0]
        finally:
            http.shutdown()
            thread.join()
    assert finding.level == level
    assert message in finding.what
