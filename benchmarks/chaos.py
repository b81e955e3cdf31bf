"""Chaos test: kill the pipeline at random moments, re-run it, and compare the final results.

    python -m benchmarks.chaos [--quick] [--rounds N] [--seed N] [--json FILE]

A Prefect server, a worker and a small workspace with real DVC. Each round changes the corpus, so
that every stage is stale, has the worker run the reproduce flow in two slots, and after a random
time kills one of: worker, server, the flow's process, a guard, DVC, a stage. Server and worker are
restarted if killed, and `med-r1 reproduce` is re-run until it succeeds. Then dvc.lock must have the
hashes of plain `dvc repro` on the same corpus, no process of a stage may be running, and every slot
must be free.
"""

from __future__ import annotations

import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
from prefect import flow
from rich.console import Console

from benchmarks.command_line import build_parser
from flows.dvc_api.processes import guarded_processes
from flows.prefect_api.client import create_work_pools, open_client
from flows.scheduling.slots import find_slots
from stages.core.cli import exit_on_termination
from stages.core.outputs import write_json
from stages.core.provenance import collect_provenance
from tests.flows.tiny import ENVIRONMENT, REPOSITORY, locked, make_workspace, run

VICTIMS = ("worker", "server", "flow", "guard", "dvc", "stage")
POOL = "chaos"
MAX_DELAY = 14.0
"""Latest kill, in seconds; an undisturbed run takes about as long."""
VICTIM_TIMEOUT = 15.0
"""Seconds to wait for the victim to appear."""
ATTEMPTS = 30


def main() -> None:
    """Run the rounds, print and write their results; exit code 1 if a round failed."""
    parser = build_parser("chaos", __doc__, quick="1 round")
    parser.add_argument("--rounds", type=int, help="default: 20, with --quick 1")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    exit_on_termination()
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    services = Services(folder)
    rng = random.Random(arguments.seed)  # noqa: S311  (delays, no secrets)
    rounds = []
    try:
        services.start()
        root = _slow_workspace(folder / "workspace")
        plain = _slow_workspace(folder / "plain")
        for number in range(arguments.rounds or (1 if arguments.quick else 20)):
            victim = VICTIMS[number % len(VICTIMS)]
            delay = rng.uniform(1.0, MAX_DELAY)
            rounds.append(run_round(number, root, plain, services, victim, delay))
            Console().print(rounds[-1])
    finally:
        services.stop()
        shutil.rmtree(folder, ignore_errors=True)
    good = sum(
        each["same"] and each["recorded"] and not each["processes_left"] and not each["slots_held"]
        for each in rounds
    )
    kills = sum(each["killed"] is not None for each in rounds)
    Console().print(f"{good} of {len(rounds)} rounds recovered completely; {kills} kills hit")
    if arguments.json:
        result = {"good": good, "rounds": rounds, "provenance": collect_provenance({})}
        write_json(arguments.json, result)
    sys.exit(good != len(rounds))


def _slow_workspace(root: Path) -> Path:
    """A workspace whose stages take long enough to be killed."""
    make_workspace(root, ["a", "b", "c"])
    script = root / "work.sh"
    text = script.read_text(encoding="utf-8")
    script.write_text(text.replace("mkdir -p", "sleep 1.5\nmkdir -p"), encoding="utf-8")
    return root


def run_round(
    number: int, root: Path, plain: Path, services: Services, victim: str, delay: float
) -> dict[str, Any]:
    """One round: the killed process, the runs until success, and checks of the final state."""
    for workspace in (root, plain):
        (workspace / "corpus.txt").write_text(f"round {number}\n", encoding="utf-8")
    run("dvc", "repro", cwd=plain)
    services.run_flow(root)
    time.sleep(delay)
    killed = services.kill(victim, root)
    services.start()
    attempts = run_until_success(root, services)
    locked_slots = [name for name in find_slots(root, 2).names if not _is_free(root, name)]
    same = locked(root) == locked(plain)
    processes = [process for process, record in guarded_processes() if _is_below(record, root)]
    return {
        "victim": victim,
        "after_seconds": round(delay, 1),
        "killed": killed,
        "runs": attempts,
        "same": same,
        "recorded": "up to date" in run("dvc", "repro", cwd=root),
        "processes_left": [process.pid for process in processes],
        "slots_held": locked_slots,
    }


def run_until_success(root: Path, services: Services) -> int:
    """Run the flow until it succeeds; the number of runs, -1 if all ATTEMPTS failed."""
    for attempt in range(1, ATTEMPTS + 1):
        process = subprocess.run(
            [sys.executable, "-m", "flows", "reproduce", "--slots", "2"],
            cwd=root,
            env=services.environment,
            capture_output=True,
            text=True,
        )
        if process.returncode == 0:
            return attempt
        if "another flow" not in process.stderr:
            Console().print(process.stderr[-600:], markup=False)
        time.sleep(3)
    return -1


class Services:
    """A Prefect server, workers and flow runs of one deployment (named POOL) on loopback.

    `workers`: additional environment variables of each; of several, each runs one flow at a time.
    `api`: address of a server that runs already, which is then not started.
    """

    def __init__(
        self,
        folder: Path,
        entrypoint: str = "flows/reproduce/flow.py:reproduce",
        workers: Sequence[Mapping[str, str]] = ({},),
        api: str | None = None,
    ) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self._starts_server = api is None
        self._deployment: UUID | None = None
        self._folder = folder
        self._entrypoint = entrypoint
        self._worker_variables = workers
        self.environment = ENVIRONMENT | {
            "PYTHONPATH": str(REPOSITORY),
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_API_URL": api or f"http://127.0.0.1:{self._port}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_LOGGING_LEVEL": "WARNING",
            "CUDA_VISIBLE_DEVICES": "",
        }
        self._server: subprocess.Popen[bytes] | None = None
        self._workers: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start the server and the workers that are not running."""
        is_down = self._server is None or self._server.poll() is not None
        if self._starts_server and is_down:
            self._server = self._spawn(
                "server", "server", "start", "--host", "127.0.0.1", "--port", str(self._port)
            )
            _until(self._healthy, 90)
        if self._deployment is None:
            self._deployment = self._deploy()
        command = ["worker", "start", "--pool", POOL, "--type", "process"]
        if len(self._worker_variables) > 1:
            command += ["--limit", "1"]
        for number, variables in enumerate(self._worker_variables):
            if number == len(self._workers) or self._workers[number].poll() is not None:
                worker = self._spawn(f"worker-{number}", *command, extra=variables)
                self._workers[number : number + 1] = [worker]

    def _deploy(self) -> UUID:
        """Create the pool and the deployment, from this process; the deployment's id."""
        with open_client(self.environment) as client:
            create_work_pools(client, [POOL])
            source: Any = flow.from_source(str(REPOSITORY), self._entrypoint)
            deployment: UUID = source.deploy(POOL, work_pool_name=POOL, print_next_steps=False)
            return deployment

    def run_flow(self, root: Path) -> UUID:
        """Have the worker run the reproduce flow; the id of the flow run."""
        assert self._deployment
        with open_client(self.environment) as client:
            parameters = {"root": str(root), "slots": 2}
            return client.create_flow_run_from_deployment(
                self._deployment, parameters=parameters
            ).id

    def kill(self, victim: str, root: Path) -> str | None:
        """Send SIGKILL to the first process of a kind; its command line, None without one."""
        deadline = time.monotonic() + VICTIM_TIMEOUT
        while time.monotonic() < deadline:
            worker = self._workers[0] if self._workers else None
            process = _find(victim, root, worker, self._server)
            try:
                if process is not None:
                    command = " ".join(process.cmdline())[-80:]
                    process.send_signal(signal.SIGKILL)
                    for service in (*self._workers, self._server):
                        if service and service.pid == process.pid:
                            service.wait()
                    return command
            except psutil.Error:
                continue
            time.sleep(0.05)
        return None

    def stop(self) -> None:
        """Stop the server and all workers with their children."""
        for process in (*self._workers, self._server):
            if process and process.poll() is None:
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.terminate()
                process.terminate()
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def _spawn(
        self, name: str, *arguments: str, extra: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        with (self._folder / f"{name}.log").open("ab") as log:
            command = [str(Path(sys.executable).parent / "prefect"), *arguments]
            variables = self.environment | dict(extra or {})
            return subprocess.Popen(
                command,
                env=variables,
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _healthy(self) -> bool:
        address = f"http://127.0.0.1:{self._port}/api/health"
        try:
            with urllib.request.urlopen(address, timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


def _find(
    victim: str,
    root: Path,
    worker: subprocess.Popen[bytes] | None,
    server: subprocess.Popen[bytes] | None,
) -> psutil.Process | None:
    """The first process of a kind."""
    if victim in ("worker", "server"):
        service = worker if victim == "worker" else server
        return psutil.Process(service.pid) if service and service.poll() is None else None
    if victim == "flow":
        return next((each for each in psutil.process_iter() if _runs_flow(each, root.parent)), None)
    if victim == "guard":
        marks = [str(REPOSITORY / "flows" / "dvc_api" / "guard.py"), str(root)]
        processes = list(psutil.process_iter())
    else:
        marks = ["work.sh" if victim == "stage" else "dvc --wait-for-lock"]
        processes = [process for process, record in guarded_processes() if _is_below(record, root)]
    for process in processes:
        command = _command(process)
        if all(mark in command for mark in marks):
            return process
    return None


def _is_below(record: str, root: Path) -> bool:
    return record.startswith(str(root))


def _runs_flow(process: psutil.Process, folder: Path) -> bool:
    """Is it a flow run started by the worker of this folder."""
    try:
        variables = process.environ()
    except (psutil.Error, OSError):
        return False
    return (
        "PREFECT__FLOW_RUN_ID" in variables
        and "FLOW_RECORD" not in variables
        and variables.get("PREFECT_HOME") == str(folder / "prefect")
    )


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _is_free(root: Path, name: str) -> bool:
    slots = find_slots(root, 2)
    try:
        with type(slots)((name,), slots.folder, False).acquire(1, lambda: True):
            return True
    except TimeoutError:
        return False


def _until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:.0f} s")
        time.sleep(0.2)


if __name__ == "__main__":
    main()
