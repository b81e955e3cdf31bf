"""Chaos test: kill the pipeline at random moments, re-run it, and compare the final results.

    python -m benchmarks.chaos [--rounds N] [--seed N] [--json FILE]

A Prefect server, a worker and a small workspace of real DVC. Each round changes the corpus, so that
every stage is stale, has the worker run the reproduce flow in two slots, and after a random time
kills one of: worker, server, the flow's process, a guard, DVC, a stage. What was killed of server
and worker is started again, and `med-r1 reproduce` is run until it says that all is done. Then
dvc.lock has to hold the hashes of plain `dvc repro` on the same corpus, no process of a stage may
be left, and every slot has to be free.
"""

from __future__ import annotations

import argparse
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

import psutil
from rich.console import Console

from flows.dvc_api.client import guarded_processes
from flows.scheduling.slots import find_slots
from stages.core.outputs import write_json
from stages.core.provenance import collect_provenance
from tests.flows.tiny import ENVIRONMENT, REPOSITORY, locked, make_workspace, run

VICTIMS = ("worker", "server", "flow", "guard", "dvc", "stage")
POOL = "chaos"
LONGEST = 14.0
"""Seconds after which the latest kill comes; an undisturbed run takes about as long."""
COMES = 15.0
"""Seconds that a victim is waited for."""
ATTEMPTS = 30


def main() -> None:
    """Kill, run again, compare; print what happened, write the JSON.

    Exit code 1 if a round did not end well.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.chaos",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write what was seen to this file")
    given = parser.parse_args()
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # whoever ends this, server and worker end with it
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    services = Services(folder)
    rng = random.Random(given.seed)  # noqa: S311  (moments, no secrets)
    seen = []
    try:
        services.start()
        root, plain = (
            make_workspace(folder / name, ["a", "b", "c"]) for name in ("workspace", "plain")
        )
        for workspace in (root, plain):
            script = workspace / "work.sh"
            script.write_text(
                script.read_text(encoding="utf-8").replace("mkdir -p", "sleep 1.5\nmkdir -p"),
                encoding="utf-8",
            )
        for number in range(given.rounds):
            seen.append(
                play(
                    number,
                    root,
                    plain,
                    services,
                    VICTIMS[number % len(VICTIMS)],
                    rng.uniform(1.0, LONGEST),
                )
            )
            Console().print(seen[-1])
    finally:
        services.stop()
        shutil.rmtree(folder, ignore_errors=True)
    good = sum(
        each["same"] and each["recorded"] and not each["processes_left"] and not each["slots_held"]
        for each in seen
    )
    Console().print(
        f"{good} of {len(seen)} rounds ended as if nothing had happened;"
        f" {sum(each['killed'] is not None for each in seen)} kills hit"
    )
    if given.json:
        write_json(given.json, {"good": good, "rounds": seen, "provenance": collect_provenance({})})
    sys.exit(good != len(seen))


def play(
    number: int, root: Path, plain: Path, services: Services, victim: str, moment: float
) -> dict[str, Any]:
    """One round: what was killed when, how many runs it took, and whether the end is right."""
    for workspace in (root, plain):
        (workspace / "corpus.txt").write_text(f"round {number}\n", encoding="utf-8")
    run("dvc", "repro", cwd=plain)
    services.run_flow(root)
    time.sleep(moment)
    killed = services.kill(victim, root)
    services.start()
    attempts = again(root, services)
    held = [name for name in find_slots(root, 2).names if not _free(root, name)]
    left = [process.pid for process, record in guarded_processes() if record.startswith(str(root))]
    same, recorded = locked(root) == locked(plain), "up to date" in run("dvc", "repro", cwd=root)
    return {
        "victim": victim,
        "after_seconds": round(moment, 1),
        "killed": killed,
        "runs": attempts,
        "same": same,
        "recorded": recorded,
        "processes_left": left,
        "slots_held": held,
    }


def again(root: Path, services: Services) -> int:
    """Run the flow until it is done; how often that took. While another still runs, wait for it."""
    for attempt in range(1, ATTEMPTS + 1):
        done = subprocess.run(
            [sys.executable, "-m", "flows", "reproduce", "--slots", "2"],
            cwd=root,
            env=services.environment,
            capture_output=True,
            text=True,
        )
        if done.returncode == 0:
            return attempt
        if "another flow" not in done.stderr:
            Console().print(done.stderr[-600:], markup=False)
        time.sleep(3)
    return -1


class Services:
    """A Prefect server, workers and flow runs of one deployment (named POOL) on loopback.

    `workers`: what each has in its environment besides; of several, each runs one flow at a time.
    """

    def __init__(
        self,
        folder: Path,
        entrypoint: str = "flows/reproduce.py:reproduce",
        workers: Sequence[Mapping[str, str]] = ({},),
    ) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self._folder = folder
        self._entrypoint = entrypoint
        self._wanted = workers
        self.environment = ENVIRONMENT | {
            "PYTHONPATH": str(REPOSITORY),
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_API_URL": f"http://127.0.0.1:{self._port}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_LOGGING_LEVEL": "WARNING",
            "CUDA_VISIBLE_DEVICES": "",
        }
        self._server: subprocess.Popen[bytes] | None = None
        self._workers: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start what does not run."""
        first = self._server is None
        if self._server is None or self._server.poll() is not None:
            self._server = self._spawn(
                "server", "server", "start", "--host", "127.0.0.1", "--port", str(self._port)
            )
            _until(self._healthy, 90)
        if first:
            self._prefect("work-pool", "create", POOL, "--type", "process")
            code = (
                "from prefect import flow; "
                f"flow.from_source({str(REPOSITORY)!r}, {self._entrypoint!r})"
                f".deploy('chaos', work_pool_name={POOL!r}, print_next_steps=False)"
            )
            subprocess.run(
                [sys.executable, "-c", code],
                env=self.environment,
                cwd=REPOSITORY,
                check=True,
                capture_output=True,
            )
        limit = ["--limit", "1"] if len(self._wanted) > 1 else []
        for number, extra in enumerate(self._wanted):
            if number == len(self._workers) or self._workers[number].poll() is not None:
                started = self._spawn(
                    f"worker-{number}",
                    "worker",
                    "start",
                    "--pool",
                    POOL,
                    "--type",
                    "process",
                    *limit,
                    extra=extra,
                )
                self._workers[number : number + 1] = [started]

    def run_flow(self, root: Path) -> None:
        """Have the worker run the reproduce flow."""
        self._prefect(
            "deployment", "run", "reproduce/chaos", "--param", f"root={root}", "--param", "slots=2"
        )

    def kill(self, victim: str, root: Path) -> str | None:
        """Send SIGKILL to the first new process of a kind.

        Its command line, or None if none appeared.
        """
        deadline = time.monotonic() + COMES
        while time.monotonic() < deadline:
            found = _first(victim, root, self._workers[0] if self._workers else None, self._server)
            try:
                if found is not None:
                    words = " ".join(found.cmdline())[-80:]
                    found.send_signal(signal.SIGKILL)
                    for service in (*self._workers, self._server):
                        if service and service.pid == found.pid:
                            service.wait()
                    return words
            except psutil.Error:
                continue
            time.sleep(0.05)
        return None

    def stop(self) -> None:
        """End all."""
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

    def _prefect(self, *arguments: str) -> None:
        command = [str(Path(sys.executable).parent / "prefect"), "--no-prompt", *arguments]
        subprocess.run(
            command, env=self.environment, cwd=REPOSITORY, check=True, capture_output=True
        )

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self._port}/api/health", timeout=2
            ) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


def _first(
    victim: str,
    root: Path,
    worker: subprocess.Popen[bytes] | None,
    server: subprocess.Popen[bytes] | None,
) -> psutil.Process | None:
    """The first process of that kind."""
    if victim in ("worker", "server"):
        process = worker if victim == "worker" else server
        return psutil.Process(process.pid) if process and process.poll() is None else None
    if victim == "flow":
        return next((each for each in psutil.process_iter() if _runs_flow(each, root.parent)), None)
    if victim == "guard":
        marks = [str(REPOSITORY / "flows" / "dvc_api" / "guard.py"), str(root)]
        return next(
            (each for each in psutil.process_iter() if all(mark in _words(each) for mark in marks)),
            None,
        )
    mark = "work.sh" if victim == "stage" else "dvc --wait-for-lock"
    ours = [process for process, record in guarded_processes() if record.startswith(str(root))]
    return next((each for each in ours if mark in _words(each)), None)


def _runs_flow(process: psutil.Process, folder: Path) -> bool:
    """Is it the process of a flow run that the worker of this folder started?"""
    try:
        variables = process.environ()
    except (psutil.Error, OSError):
        return False
    return (
        "PREFECT__FLOW_RUN_ID" in variables
        and "FLOW_RECORD" not in variables
        and variables.get("PREFECT_HOME") == str(folder / "prefect")
    )


def _words(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _free(root: Path, name: str) -> bool:
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
