"""Prefect's server on a real PostgreSQL, as infra/compose.yaml and infra/kubernetes run it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.commands import MED_R1
from tests.flows.tiny import ENVIRONMENT, REPOSITORY, make_workspace, run

BINARIES = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)
AS_ROOT = os.geteuid() == 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def as_database_user(*command: str) -> list[str]:
    """The command as a user other than root, as PostgreSQL requires."""
    if not AS_ROOT:
        return list(command)
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", *command]


@pytest.fixture
def database() -> Iterator[tuple[Path, int]]:
    """Binaries and port of a PostgreSQL with a database `prefect` and the extension pg_trgm."""
    initdb = shutil.which("initdb")
    binaries = BINARIES or (Path(initdb).resolve().parent if initdb else None)
    if binaries is None:
        pytest.skip("PostgreSQL is not installed here (apt-get install postgresql)")
    make_folder = as_database_user("mktemp", "-d", "-p", "/tmp")
    folder = Path(subprocess.check_output(make_folder, text=True).strip())
    port = free_port()
    data = folder / "data"
    try:
        subprocess.run(
            as_database_user(
                str(binaries / "initdb"), "-D", str(data), "-A", "trust", "-U", "prefect"
            ),
            check=True,
            capture_output=True,
        )
        options = (
            f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={folder}"
        )
        control = as_database_user(
            str(binaries / "pg_ctl"), "-D", str(data), "-w", "-l", str(folder / "log")
        )
        subprocess.run([*control, "-o", options, "start"], check=True, capture_output=True, cwd="/")
        try:
            query(binaries, port, "postgres", "CREATE DATABASE prefect")
            query(binaries, port, "prefect", "CREATE EXTENSION pg_trgm")
            yield binaries, port
        finally:
            subprocess.run(
                [*control, "-m", "immediate", "stop"], check=True, capture_output=True, cwd="/"
            )
    finally:
        shutil.rmtree(folder)


def query(binaries: Path, port: int, database: str, statement: str) -> str:
    connection = ["-h", "127.0.0.1", "-p", str(port), "-U", "prefect", "-d", database]
    command = [str(binaries / "psql"), *connection, "-tAc", statement]
    return subprocess.check_output(command, text=True).strip()


def test_the_flow_is_recorded_in_postgresql(database: tuple[Path, int], tmp_path: Path) -> None:
    binaries, database_port = database
    port = free_port()
    environment = ENVIRONMENT | {
        "PYTHONPATH": str(REPOSITORY),
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_API_DATABASE_CONNECTION_URL": (
            f"postgresql+asyncpg://prefect@127.0.0.1:{database_port}/prefect"
        ),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    log = tmp_path / "server.log"
    with log.open("wb") as handle:
        prefect = str(Path(sys.executable).parent / "prefect")
        options = ["--host", "127.0.0.1", "--port", str(port)]
        server = subprocess.Popen(
            [prefect, "server", "start", *options],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=handle,
            stderr=handle,
        )
    try:
        deadline = time.monotonic() + 120
        while not _responds(port):
            assert server.poll() is None, log.read_text(encoding="utf-8")[-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.3)
        root = make_workspace(tmp_path / "workspace", ["a"])
        command = [*MED_R1, "reproduce", "--only", "train@a"]
        flow = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
        assert flow.returncode == 0, flow.stderr
        finished = "SELECT count(*) FROM task_run WHERE state_name = 'Ran'"
        # the server records task runs shortly after they end
        while query(binaries, database_port, "prefect", finished) != "2":
            assert time.monotonic() < deadline + 60
            time.sleep(0.3)
        assert (
            query(binaries, database_port, "prefect", "SELECT name, state_type FROM flow_run")
            == "reproduce train@a|COMPLETED"
        )
        assert "up to date" in run("dvc", "repro", "train@a", cwd=root)
    finally:
        server.terminate()
        server.wait(60)
    assert not list((tmp_path / "prefect").glob("*.db")), "nothing is written to SQLite"


def _responds(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/api/health", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False
