"""The dashboard: who may reach it, that it serves what infra/prefect.yaml says, and that it ends whole."""

from __future__ import annotations

import importlib
import inspect
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from prefect import Flow

from flows.serve import PASSWORD, is_loopback, serve, variables_for
from stages.errors import InputError
from tests.flows.tiny import ENVIRONMENT, REPOSITORY, run

DEPLOYMENTS = yaml.safe_load((REPOSITORY / "infra" / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]


@pytest.fixture
def port() -> int:
    """One that is free, and the next one too."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            number = int(first.getsockname()[1])
            try:
                second.bind(("127.0.0.1", number + 1))
            except OSError:
                continue
            return number


@pytest.mark.parametrize(
    ("host", "only_here"), [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("gpu-7", False)]
)
def test_addresses_that_others_can_reach_are_known(host: str, only_here: bool) -> None:
    assert is_loopback(host) is only_here


def test_others_need_a_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv(PASSWORD, raising=False)
    for password in ("", "no-colon"):
        monkeypatch.setenv(PASSWORD, password)
        with pytest.raises(InputError, match=f"set {PASSWORD} to user:password"):
            serve(tmp_path, "0.0.0.0", 4200)
    monkeypatch.setenv(PASSWORD, "somebody:secret")
    variables = variables_for(tmp_path, "0.0.0.0", 4200)
    assert variables["PREFECT_API_AUTH_STRING"] == "somebody:secret"
    assert variables["PREFECT_API_URL"] == "http://127.0.0.1:4200/api"
    assert "secret" not in "".join(capfd.readouterr())


def test_a_port_in_use_is_named_before_anything_starts(tmp_path: Path, port: int) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        with pytest.raises(InputError, match=rf"port {port} of 127.0.0.1 cannot be used .*--port"):
            serve(tmp_path, "127.0.0.1", port)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda each: f"{each['entrypoint']}:{each['name']}")
def test_every_deployment_is_of_a_flow_that_takes_its_parameters(deployment: dict[str, Any]) -> None:
    file, name = deployment["entrypoint"].split(":")
    found = getattr(importlib.import_module(file.removesuffix(".py").replace("/", ".")), name)
    assert isinstance(found, Flow)
    assert set(deployment.get("parameters", {})) <= set(inspect.signature(found.fn).parameters)
    assert deployment["work_pool"]["name"] in ("local", "gpu")
    assert deployment["description"]


def test_the_dashboard_serves_all_deployments_and_ends_whole_when_it_is_killed(tmp_path: Path, port: int) -> None:
    for name in run(
        "git", "ls-files", "--cached", "--others", "--exclude-standard", "flows", "stages", "infra/prefect.yaml", cwd=REPOSITORY
    ).split():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, tmp_path / name)
    environment = {key: value for key, value in ENVIRONMENT.items() if not key.startswith("PREFECT_")} | {PASSWORD: "somebody:secret"}
    command = [sys.executable, "-m", "flows.serve", "--port", str(port)]
    dashboard = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert dashboard.stdout
    said = ""
    for line in dashboard.stdout:
        said += line
        if line.startswith("Interrupt"):
            break
    try:
        assert f"Dashboard: http://127.0.0.1:{port}\n" in said, said
        api = httpx.Client(base_url=f"http://127.0.0.1:{port}/api", auth=("somebody", "secret"))
        assert httpx.get(f"{api.base_url}deployments/").status_code in (401, 404, 405)
        assert httpx.post(f"{api.base_url}deployments/filter", json={}).status_code == 401
        served = api.post("/deployments/filter", json={}).json()
        assert len(served) == len(DEPLOYMENTS)
        assert {pool["name"] for pool in api.post("/work_pools/filter", json={}).json()} >= {"local", "gpu"}
        assert httpx.get(f"http://127.0.0.1:{port + 1}/").status_code == 200
        assert "secret" not in said + "".join(path.read_text(encoding="utf-8", errors="replace") for path in tmp_path.rglob("*.log"))
    finally:
        dashboard.kill()
        dashboard.wait()
    deadline = time.monotonic() + 60
    while (left := _ours(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left


def _ours(root: Path) -> list[str]:
    """Processes that were started for this folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get("MED_R1_ROOT") == str(root):
                found.append(" ".join(process.cmdline()))
        except (psutil.Error, OSError):
            continue
    return found
