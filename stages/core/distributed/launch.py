"""Launch one process per GPU of the slot with torchrun's elastic launcher.

The GPUs of a slot are in CUDA_VISIBLE_DEVICES (flows/scheduling/slots.py); without it, a stage uses
all GPUs of the machine. A stage can also run on several hosts, started on each in one shared
workspace: MED_R1_NODES is their number, MED_R1_RENDEZVOUS the address at which they meet
(docs/cluster.md). A process that torchrun or another launcher started is a rank already and starts
none.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TextIO

from stages.core.distributed.parent_death import end_with_parent
from stages.core.errors import ExitCode, InputError, LostPeerError, ReportedError, error_of
from stages.core.outcome import StageOutcome, parse_outcome

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig

TAIL: Final = 12
"""Last lines of a process that a failure quotes."""
NODES: Final = "MED_R1_NODES"
RENDEZVOUS: Final = "MED_R1_RENDEZVOUS"
RENDEZVOUS_TIMEOUT_S: Final = 1800
"""Seconds that hosts wait for each other; one of them queries DVC first, which may be slow."""
_LAUNCHER: Final = "MED_R1_LAUNCHER"
_POLL_SECONDS: Final = 0.2
_PATIENCE: Final = "10"
"""Seconds that ranks have to end after one has failed; less than in flows/dvc_api/guard.py."""
_SILENT: Final = (ExitCode.DONE, ExitCode.CRASHED, ExitCode.KILLED)
"""Exit codes whose message contains no remedy."""


@dataclass(frozen=True)
class RankFailure:
    """Failure of one rank: exit status (negative for a signal), error, last output lines."""

    status: int
    outcome: StageOutcome | None = None
    tail: Sequence[str] = ()

    @property
    def explained(self) -> StageOutcome | None:
        """Its outcome, if that says why and what to do."""
        if self.status < 0 or self.outcome is None or self.outcome.code in _SILENT:
            return None
        return self.outcome

    @property
    def is_consequence(self) -> bool:
        """Whether the rank failed because another one did.

        Terminated by the launcher, or a lost peer.
        """
        return self.status in (-signal.SIGTERM, ExitCode.LOST_PEER)


def launched() -> bool:
    """Whether this process is a rank: one of several, or the only one of a launcher."""
    return "TORCHELASTIC_RUN_ID" in os.environ or int(os.environ.get("WORLD_SIZE", "1")) > 1


def processes() -> int:
    """Number of ranks."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def nodes() -> int:
    """Number of cooperating hosts, from `NODES`.

    InputError if it is not a number, or `RENDEZVOUS` is missing.
    """
    value = os.environ.get(NODES, "1")
    if not value.isdecimal() or not int(value):
        raise InputError(
            f"{NODES}={value!r} is not a number of hosts: set it to 1 or more, or unset it"
        )
    if int(value) > 1 and not re.fullmatch(r"[\w.-]+:\d+", os.environ.get(RENDEZVOUS, "")):
        raise InputError(
            f"{NODES}={value}, but {RENDEZVOUS} names no port of one of the hosts: set it on all to"
            " the same, as host1:29500"
        )
    return int(value)


def end_with_launcher() -> None:
    """End this process when its launcher ends, even by `kill -9`, if `launch` started it."""
    launcher = os.environ.get(_LAUNCHER)
    if launcher is None:
        return
    if not end_with_parent(int(launcher)):
        raise LostPeerError("the process that started this one is gone")


def launch(command: Sequence[str], number: int, logs: Path, remedy: str) -> None:
    """Run `python -m <command>` as `number` ranks on this host that communicate (training).

    Returns when all are done. Ranks that only divide work are started by `ranks.run_ranks`.

    The first rank's output is shown as it comes; the output of all is in `logs` while they run. The
    first that fails ends the others: an InputError, of the type of its exit code, names it, with
    its reason or last lines and the `remedy`; ReportedError if the first rank has printed the
    reason. A stop signal ends all ranks and raises KeyboardInterrupt or SystemExit.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import elastic_launch

    hosts = nodes()
    host_logs = logs / platform.node()
    shutil.rmtree(host_logs, ignore_errors=True)
    host_logs.mkdir(parents=True)
    config = _launch_config(command[-1], hosts, number, host_logs)
    environment = {
        _LAUNCHER: str(os.getpid()),
        "PYTHONUNBUFFERED": "1",
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": _PATIENCE,
        # torchrun's warning that it sets this is noise; the stage sets its threads itself
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }
    try:
        with _environment(environment), _quiet(), _shown(host_logs):
            elastic_launch(config, sys.executable)("-m", *command)
    except SignalException as stopped:
        if stopped.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        sys.exit(128 + stopped.sigval)
    except RendezvousError as error:
        raise InputError(
            f"the {hosts} hosts did not meet at {config.rdzv_endpoint} within"
            f" {RENDEZVOUS_TIMEOUT_S // 60} minutes ({error}): start the same command on all of"
            f" them, with {RENDEZVOUS} a port of the one that begins that the others reach;"
            f" {remedy}"
        ) from error
    except ChildFailedError as error:
        raise _failure(error, host_logs, number * hosts, remedy) from None
    shutil.rmtree(host_logs)
    with suppress(OSError):  # another host still has its own in there
        logs.rmdir()


def _launch_config(run: str, hosts: int, number: int, logs: Path) -> LaunchConfig:
    """Configuration of `number` ranks on each host; `run`: an id on which all hosts agree."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
    from torch.distributed.launcher.api import LaunchConfig

    return LaunchConfig(
        min_nodes=hosts,
        max_nodes=hosts,
        nproc_per_node=number,
        logs_specs=DefaultLogsSpecs(log_dir=str(logs), redirects=Std.ALL),
        run_id=uuid.uuid4().hex if hosts == 1 else run,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0" if hosts == 1 else os.environ[RENDEZVOUS],
        rdzv_configs={"read_timeout": RENDEZVOUS_TIMEOUT_S, "join_timeout": RENDEZVOUS_TIMEOUT_S},
        max_restarts=0,
        monitor_interval=_POLL_SECONDS,
    )


def _failure(
    error: ChildFailedError, logs: Path, number: int, remedy: str
) -> InputError | ReportedError:
    """The error of the rank that failed first; `number`: of ranks on all hosts."""
    failed = {
        rank: RankFailure(
            failure.exitcode,
            parse_outcome(failure.error_file_data),
            _last_lines(logs, failure.local_rank),
        )
        for rank, failure in error.failures.items()
    }
    rank = root_cause_rank(failed)
    reported = failed[rank].explained
    if error.failures[rank].local_rank == 0 and reported and not failed[rank].is_consequence:
        return ReportedError(reported.code, reported.message)
    return error_of(failed[rank].status, explain(failed, number, remedy))


def root_cause_rank(failed: Mapping[int, RankFailure]) -> int:
    """The rank that failed first: the lowest of those that did not fail because another one had."""
    return min(
        failed,
        key=lambda rank: (
            failed[rank].status == -signal.SIGTERM,
            failed[rank].is_consequence,
            rank,
        ),
    )


def explain(failed: Mapping[int, RankFailure], number: int, remedy: str) -> str:
    """Which rank failed first, how, and the remedy; `number`: of ranks on all hosts."""
    rank = root_cause_rank(failed)
    failure = failed[rank]
    code = failure.status
    how = (
        f"was killed by signal {-code} ({signal.Signals(-code).name})"
        if code < 0
        else f"ended with exit status {code}"
    )
    who = f"process {rank + 1} of {number} (rank {rank}) {how}"
    if reason := failure.explained:
        # its message has a remedy; for a lost peer, `remedy` (to re-run) may help as well
        return f"{reason.message} ({who}{f'; {remedy}' if failure.is_consequence else ''})"
    killed = (
        " - by hand, or by the kernel where memory ran out (`dmesg` says so)"
        if code == -signal.SIGKILL
        else ""
    )
    tail = [line for line in failure.tail if line.strip()]
    last_lines = "\n".join(f"    {line}" for line in tail) or "    nothing"
    return (
        f"{who}{killed}; the others were ended. {remedy[:1].upper()}{remedy[1:]}. Its last"
        f" lines:\n{last_lines}"
    )


def _last_lines(logs: Path, rank: int) -> list[str]:
    """The last lines of stderr, filled up with those of stdout."""
    files = sorted(logs.glob(f"*/attempt_0/{rank}/*.log"), key=lambda path: path.name)
    lines: list[str] = []
    for path in files:  # stderr.log, stdout.log
        lines += path.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:]
    return lines[:TAIL]


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the launcher's log, which repeats what `explain` returns."""
    import logging

    logger = logging.getLogger("torch.distributed.elastic")
    before = logger.level
    logger.disabled = True
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.disabled = False


@contextmanager
def _shown(logs: Path) -> Iterator[None]:
    """Show what the first process prints, as it comes."""
    finished = threading.Event()
    streams: dict[str, TextIO] = {"stdout": sys.stdout, "stderr": sys.stderr}
    followers = [
        threading.Thread(target=_follow, args=(logs, name, stream, finished), daemon=True)
        for name, stream in streams.items()
    ]
    for each in followers:
        each.start()
    try:
        yield
    finally:
        finished.set()
        for each in followers:
            each.join()


def _follow(logs: Path, name: str, stream: TextIO, finished: threading.Event) -> None:
    place = 0
    while True:
        last = finished.is_set()
        for path in logs.glob(f"*/attempt_0/0/{name}.log"):
            with path.open(encoding="utf-8", errors="replace", newline="") as handle:
                handle.seek(place)
                new, place = handle.read(), handle.tell()
            if new:
                stream.write(new)
                stream.flush()
        if last:
            return
        time.sleep(_POLL_SECONDS)
