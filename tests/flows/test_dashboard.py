"""The dashboard: access, deployments of infra/prefect.yaml, and a complete shutdown."""

from __future__ import annotations

import importlib
import inspect
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prefect import Flow

from flows.dashboard import SERVER_PASSWORD, serve, variables_for
from flows.prefect_api.artifacts import REPORT_URL
from stages.core.errors import InputError
from stages.core.yaml_files import read_yaml
from tests.commands import MED_R1
from tests.flows.tiny import ENVIRONMENT, REPOSITORY, make_workspace, run

DEPLOYMENTS = read_yaml(REPOSITORY / "infra" / "prefect.yaml")["deployments"]

SERVED = ("flows", "stages", "infra/prefect.yaml")
FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


@pytest.fixture
def port() -> int:
    """A free port, the next one being free too."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            number = int(first.getsockname()[1])
            try:
                second.bind(("127.0.0.1", number + 1))
            except OSError:
                continue
            return number


def test_an_address_that_other_machines_reach_needs_a_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(SERVER_PASSWORD, raising=False)
    for password in ("", "no-colon", "no-password:", ":no-user"):
        monkeypatch.setenv(SERVER_PASSWORD, password)
        with pytest.raises(InputError, match=f"set {SERVER_PASSWORD} to user:password"):
            serve(tmp_path, "0.0.0.0", 4200)
    monkeypatch.setenv(SERVER_PASSWORD, "somebody:secret")
    variables = variables_for(tmp_path, "0.0.0.0", 4200)
    assert variables["PREFECT_API_AUTH_STRING"] == "somebody:secret"
    assert variables["PREFECT_API_URL"] == "http://127.0.0.1:4200/api"
    assert variables[REPORT_URL] == "http://127.0.0.1:4201", "served without a password"
    assert "secret" not in "".join(capfd.readouterr())


def test_an_ipv6_address_is_in_brackets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SERVER_PASSWORD, raising=False)
    assert variables_for(tmp_path, "::1", 4200)["PREFECT_API_URL"] == "http://[::1]:4200/api"


def test_a_port_in_use_is_named_before_anything_starts(tmp_path: Path, port: int) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        with pytest.raises(InputError, match=rf"port {port} of 127.0.0.1 cannot be used .*--port"):
            serve(tmp_path, "127.0.0.1", port)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["serve.lock"]


@pytest.mark.parametrize(
    "deployment", DEPLOYMENTS, ids=lambda each: f"{each['entrypoint']}:{each['name']}"
)
def test_every_deployment_has_a_flow_that_accepts_its_parameters(
    deployment: dict[str, Any],
) -> None:
    file, name = deployment["entrypoint"].split(":")
    flow = getattr(importlib.import_module(file.removesuffix(".py").replace("/", ".")), name)
    assert isinstance(flow, Flow)
    assert set(deployment.get("parameters", {})) <= set(inspect.signature(flow.fn).parameters)
    assert deployment["work_pool"]["name"] in ("local", "gpu")
    assert deployment["description"]


def test_the_dashboard_serves_all_deployments_and_survives_being_killed(
    tmp_path: Path, port: int
) -> None:
    make_workspace(tmp_path, ["a"])
    for name in run(
        "git", "ls-files", "--cached", "--others", "--exclude-standard", *SERVED, cwd=REPOSITORY
    ).split():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, tmp_path / name)
    (tmp_path / "hold" / "a").touch()
    dashboard, output = start(tmp_path, port)
    try:
        assert f"Dashboard: http://127.0.0.1:{port}\n" in output, output
        api = httpx.Client(
            base_url=f"http://127.0.0.1:{port}/api", auth=("somebody", "secret"), timeout=30
        )
        assert httpx.post(f"{api.base_url}deployments/filter", json={}).status_code == 401
        served = api.post("/deployments/filter", json={}).json()
        assert len(served) == len(DEPLOYMENTS)
        schedules = chain.from_iterable(each["schedules"] for each in served)
        assert not any(schedule["active"] for schedule in schedules)
        assert {pool["name"] for pool in api.post("/work_pools/filter", json={}).json()} >= {
            "local",
            "gpu",
        }
        (automation,) = api.post("/automations/filter", json={}).json()
        assert automation["trigger"]["expect"] == ["dataset.updated"]
        assert "No report yet" in httpx.get(f"http://127.0.0.1:{port + 1}/").text
        assert not _allows_origin(api, "http://other.example")
        assert _allows_origin(api, f"http://127.0.0.1:{port}")
        with pytest.raises(InputError, match=rf"runs already: http://127.0.0.1:{port}"):
            serve(tmp_path, "127.0.0.1", port + 2)
        first = start_run(api)
        until(lambda: list(tmp_path.glob("seen-models-a.log")) or state_of(api, first) in FINAL)
        assert state_of(api, first) == "RUNNING"
        second = start_run(api)
        until(lambda: state_of(api, second) == "CANCELLED")
        logs = [
            path.read_text(encoding="utf-8", errors="replace") for path in tmp_path.rglob("*.log")
        ]
        assert "secret" not in output + "".join(logs)
    finally:
        dashboard.kill()
        dashboard.wait()
    until(lambda: not _processes_of(tmp_path))
    (tmp_path / "hold" / "a").unlink()
    dashboard, output = start(tmp_path, port)
    try:
        assert "as crashed" in output, output
        assert state_of(api, first) == "CRASHED"
        third = start_run(api)
        until(lambda: state_of(api, third) in FINAL)
        assert state_of(api, third) == "COMPLETED"
        assert len(api.post("/automations/filter", json={}).json()) == 1
    finally:
        dashboard.terminate()
        assert dashboard.wait() == 0


def start(root: Path, port: int) -> tuple[subprocess.Popen[str], str]:
    """Start the dashboard of a workspace; returns it, ready or failed, with its output."""
    environment = {
        key: value for key, value in ENVIRONMENT.items() if not key.startswith("PREFECT_")
    } | {SERVER_PASSWORD: "somebody:secret"}
    command = [*MED_R1, "dashboard", "--port", str(port)]
    dashboard = subprocess.Popen(
        command,
        cwd=root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert dashboard.stdout
    output = ""
    for line in dashboard.stdout:
        output += line
        if line.startswith("Interrupt"):
            break
    return dashboard, output


def _allows_origin(api: httpx.Client, origin: str) -> bool:
    """Whether the server lets a page of that origin send it JSON (CORS preflight)."""
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type",
    }
    response = api.options("/deployments/filter", headers=headers)
    return response.headers.get("access-control-allow-origin") in (origin, "*")


def start_run(api: httpx.Client) -> str:
    """Start train@a through the API, retrying while the server's database is busy; the run's id."""
    deployment = api.get("/deployments/name/reproduce/whole-pipeline").json()
    url = f"/deployments/{deployment['id']}/create_flow_run"
    parameters = {"parameters": {"only": ["train@a"]}}
    responses: list[httpx.Response] = []

    def is_accepted() -> bool:
        responses.append(api.post(url, json=parameters))
        return responses[-1].status_code != httpx.codes.SERVICE_UNAVAILABLE

    until(is_accepted)
    assert responses[-1].is_success, responses[-1].text
    return str(responses[-1].json()["id"])


def state_of(api: httpx.Client, flow_run: str) -> str:
    return str(api.get(f"/flow_runs/{flow_run}").json()["state"]["type"])


def until(condition: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.3)


def _processes_of(root: Path) -> list[str]:
    """Commands of the processes that were started for this folder."""
    commands = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get("MED_R1_ROOT") == str(root):
                commands.append(" ".join(process.cmdline()))
        except (psutil.Error, OSError):
            continue
    return commands
