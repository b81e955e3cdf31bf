"""The local dashboard: Prefect's server, a worker, deployments and the report in one command.

    med-r1 dashboard [--host 127.0.0.1] [--port 4200]          (make dashboard)

Everything ends with this command, for whatever reason it ends. The server's database is SQLite in
.scratch/prefect, or PREFECT_API_DATABASE_CONNECTION_URL. At start, runs whose process is gone, e.g.
because the last dashboard was killed, are marked as crashed, since they would block new ones. Only
this machine can reach the server; any other --host requires a password in the environment
(PREFECT_SERVER_API_AUTH_STRING), which is never printed. The report is served without a password,
and therefore only to this machine.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

from flows.doctor.server import worker_name, zombies
from flows.dvc_api.client import environment
from flows.dvc_api.processes import guarded
from flows.prefect_api.artifacts import REPORT_URL
from flows.prefect_api.client import (
    CLIENT_PASSWORD,
    create_work_pools,
    is_loopback,
    open_client,
    server_responds,
)
from flows.prefect_api.environment import HOME, NO_TELEMETRY, prefect_home
from stages.core import layout
from stages.core.errors import InputError
from stages.core.file_lock import exclusive_lock

POOLS: Final = ("local", "gpu")
DEPLOYMENTS: Final = Path("infra") / "prefect.yaml"
SERVER_PASSWORD: Final = "PREFECT_SERVER_API_AUTH_STRING"  # noqa: S105  (name of a variable)
REPORT_HOST: Final = "127.0.0.1"
STARTUP_SECONDS: Final = 120.0
"""Time within which a server must respond."""


def run(root: Path, host: str, port: int) -> int:
    """Serve until interrupted or terminated; the exit code."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        return serve(root, host, port)
    except KeyboardInterrupt:
        print("\nthe dashboard has ended; its database remains", file=sys.stderr)
        return 0


def serve(root: Path, host: str, port: int) -> int:
    """Start everything, print the addresses and wait. InputError if a part cannot start or ends."""
    variables = variables_for(root, host, port)
    address = f"http://{_url_host(host)}:{port}"
    with _dashboard_lock(root, address) as lock_fd:
        _check_free(host, port, address)
        _check_free(REPORT_HOST, port + 1, address)
        log = root / HOME / "serve.log"
        print(
            f"Starting Prefect's server (half a minute the first time); its log is {log}",
            flush=True,
        )
        children: list[subprocess.Popen[bytes]] = []

        def start(name: str, *command: str) -> None:
            children.append(_spawn(root, log, variables, lock_fd, name, command))

        try:
            start("server", _prefect(), "server", "start", "--host", host, "--port", str(port))
            _await_server(variables, children[0], log)
            for message in end_dead_runs(variables):
                print(message, flush=True)
            with open_client(variables) as client:
                create_work_pools(client, POOLS)
            _run(root, variables, "deploy", "--all", "--prefect-file", str(DEPLOYMENTS))
            (root / layout.REPORT).mkdir(exist_ok=True)
            served = (str(layout.REPORT), REPORT_HOST, str(port + 1))
            start("files", sys.executable, "-m", "flows.report_server", *served)
            _await_port(REPORT_HOST, port + 1, log)
            name = worker_name("local", os.getpid())
            pool_options = ("--pool", "local", "--type", "process", "--name", name)
            start("worker", _prefect(), "worker", "start", *pool_options)
            print(
                f"Dashboard: {address}\nReport:    {variables[REPORT_URL]}/index.html\nInterrupt"
                " (Ctrl-C) ends both.",
                flush=True,
            )
            while all(child.poll() is None for child in children):
                time.sleep(0.5)
            raise InputError(
                "the server, the worker or the report's server ended unexpectedly: see the end of"
                f" {log}"
            )
        finally:
            for child in reversed(children):
                assert child.stdin
                child.stdin.close()
            for child in children:
                child.wait()


def variables_for(root: Path, host: str, port: int) -> dict[str, str]:
    """Environment of server, worker and flows.

    InputError if other machines can reach `host` and no password is set.
    """
    password = os.environ.get(SERVER_PASSWORD, "")
    user, _, secret = password.partition(":")
    if not is_loopback(host) and not (user and secret):
        raise InputError(
            f"--host {host} is reachable from other machines, and whoever reaches the server can"
            f" run flows: set {SERVER_PASSWORD} to user:password in the environment of the"
            f" server, and {CLIENT_PASSWORD} in that of its clients"
        )
    return environment(
        {
            **NO_TELEMETRY,
            "PREFECT_HOME": str(prefect_home(root)),
            "PREFECT_API_URL": f"http://{_url_host(host)}:{port}/api",
            # the page sends requests to the address it was opened at; pages of other sites may send
            # none, which without a password they could
            "PREFECT_UI_API_URL": "/api",
            "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"http://{_url_host(host)}:{port}",
            # in memory, leases of concurrency slots would be lost with the server
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": (
                "prefect.server.concurrency.lease_storage.filesystem"
            ),
            "MED_R1_ROOT": str(root.resolve()),
            "PYTHONPATH": str(root.resolve()),
            REPORT_URL: f"http://{REPORT_HOST}:{port + 1}",
        }
        | ({CLIENT_PASSWORD: password} if password else {})
    )


def end_dead_runs(variables: Mapping[str, str]) -> list[str]:
    """Mark runs whose process is gone as crashed, freeing their slots; one line per run."""
    with open_client(variables) as client:
        return [finding.fix() for finding in zombies(client) if finding.fix]


def _url_host(host: str) -> str:
    """The host part of a URL by which this machine reaches the address."""
    if host in ("0.0.0.0", "::"):  # noqa: S104  (compared, not bound)
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


@contextmanager
def _dashboard_lock(root: Path, address: str) -> Iterator[int]:
    """Lock this workspace's dashboard; yields the descriptor, which child processes inherit.

    InputError if a dashboard runs already.
    """

    def locked(other: str) -> InputError:
        return InputError(
            f"the dashboard of {root} runs already: {other}. If it was just ended, retry in half a"
            " minute"
        )

    with exclusive_lock(root / HOME / "serve.lock", on_conflict=locked, holder=address) as lock_fd:
        yield lock_fd


def _check_free(host: str, port: int, address: str) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InputError(
                f"port {port} of {host} cannot be used ({error.strerror}). If a dashboard runs"
                f" already, it is at {address}; otherwise choose another port with --port (make"
                " dashboard PORT=4300)"
            ) from error


def _spawn(
    root: Path,
    log: Path,
    variables: Mapping[str, str],
    lock_fd: int,
    name: str,
    command: Sequence[str],
) -> subprocess.Popen[bytes]:
    """Start a command behind a guard: it ends with this process, and so do its children."""
    record = (root / HOME / f"{name}.pid").resolve()
    with log.open("ab") as handle:
        return subprocess.Popen(
            guarded(command, record),
            cwd=root,
            env=dict(variables),
            stdin=subprocess.PIPE,
            stdout=handle,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=[lock_fd],
        )


def _await_server(variables: Mapping[str, str], server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + STARTUP_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        if server_responds(variables):
            return
        time.sleep(0.3)
    raise InputError(f"Prefect's server does not respond: see the end of {log}")


def _await_port(host: str, port: int, log: Path) -> None:
    deadline = time.monotonic() + STARTUP_SECONDS
    while time.monotonic() < deadline:
        try:
            with socket.create_connection((_url_host(host), port), timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    raise InputError(f"the report's server does not respond on port {port}: see the end of {log}")


def _run(root: Path, variables: Mapping[str, str], *arguments: str) -> None:
    command = [_prefect(), "--no-prompt", *arguments]
    process = subprocess.run(
        command,
        cwd=root,
        env=dict(variables),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    if process.returncode:
        output = (process.stdout + process.stderr).strip()
        raise InputError(f"`prefect {' '.join(arguments)}` failed: {output[-1500:]}")


def _prefect() -> str:
    return str(Path(sys.executable).parent / "prefect")


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
