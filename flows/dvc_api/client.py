"""DVC's command line: which stages are stale, and running one stage safely beside others.

Every call is `dvc --wait-for-lock`: without it, stages that start or end while another holds the
repository's lock fail, and hours of work can end unrecorded. `repro -s` runs one stage and ignores
everything upstream, so the caller keeps the order. A stage runs behind `flows.dvc_api.guard`: it
ends when its caller ends, for whatever reason.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Any, Final, Literal

import psutil

from stages.core import layout
from stages.core.errors import ExitCode, InputError
from stages.core.iteration.progress import read_progress
from stages.core.outcome import RUN, STAGE, StageOutcome, read_outcome

RECORDS: Final = layout.SCRATCH / "flows" / "running"
"""Folder with one file per running stage."""
TAIL: Final = 40
"""Number of a stage's last lines that a failure message quotes."""
_GUARD: Final = Path(__file__).with_name("guard.py")
_ROUNDS: Final = 5
"""How often ended processes are looked for again: one may have forked just before it ended."""
_NOISE: Final = re.compile(
    r"^(To track the changes with git, run:|To enable auto staging, run:|\s*git add .*|\s*dvc"
    r" config core\.autostage.*|Use `dvc push`.*|)$"
)

STATUS_ATTEMPTS: Final = 3
"""How often `dvc status` is tried, as another DVC command may be writing a file that it reads."""
STATUS_PAUSE_S: Final = 0.5
"""Seconds between two attempts."""


class DvcEvent(Enum):
    """Event of a stage in DVC's output."""

    BEGAN = auto()
    """DVC runs the stage's command."""
    UNCHANGED = auto()
    CACHED = auto()
    """DVC restores the outputs from the run cache."""
    LOCKED = auto()
    """DVC failed: another DVC command holds its lock, or a path that the stage needs."""
    DISK_FULL = auto()
    """DVC failed: no space for a file that it copies."""


_EVENTS: Final[tuple[tuple[re.Pattern[str], DvcEvent], ...]] = (
    (re.compile(r"Running stage '"), DvcEvent.BEGAN),
    (re.compile(r"(Stage )?'.*' didn't change, skipping"), DvcEvent.UNCHANGED),
    (re.compile(r"Stage '.*' is cached - skipping run"), DvcEvent.CACHED),
    (
        re.compile(r"ERROR: .*(Unable to acquire lock|' is busy, it is being blocked by:)"),
        DvcEvent.LOCKED,
    ),
    (re.compile(r"ERROR: .*\[Errno (28|122)\]"), DvcEvent.DISK_FULL),
)

Reasons = dict[str, dict[str, str]]
"""Why a stage is stale: "changed deps", "changed outs" -> path -> "modified", "deleted", ..., and
"changed command" -> {}.
"""


@dataclass(frozen=True)
class StageRun:
    """How `dvc repro -s` ended: `ran`, `unchanged`, or `cached` (from the run cache)."""

    state: Literal["ran", "unchanged", "cached"]
    seconds: float


class StageError(Exception):
    """A stage failed; the message names the stage, the cause and the remedy.

    `code` is the stage's own exit code, None if it did not start or wrote none; `began`: DVC had
    started its command.
    """

    def __init__(self, message: str, code: ExitCode | None = None, *, began: bool = True) -> None:
        """Store the message and the fields that callers decide by."""
        super().__init__(message)
        self.code = code
        self.began = began


class StoppedError(Exception):
    """A stage was stopped because its flow was."""


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment with its Python's programs first in PATH and telemetry off."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return (
        os.environ
        | {"PATH": path, "DVC_NO_ANALYTICS": "1", "TOKENIZERS_PARALLELISM": "false"}
        | dict(extra or {})
    )


def dvc(root: Path, *arguments: str, inherit_fds: Iterable[int] = ()) -> str:
    """Run a DVC command; its standard output.

    `inherit_fds`: file descriptors that stay open in it, such as a lock's. InputError with DVC's
    message if it fails.
    """
    command = ["dvc", "--wait-for-lock", *arguments]
    process = subprocess.run(
        command,
        cwd=root,
        env=environment(),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        pass_fds=tuple(inherit_fds),
    )
    if process.returncode:
        lines = [line for line in (process.stderr or process.stdout).splitlines() if line.strip()]
        message = "\n".join(lines)[-2000:]
        raise InputError(
            f"`{' '.join(command)}` failed with exit code {process.returncode}: {message}"
        )
    return process.stdout


def read_status(root: Path) -> dict[str, Reasons]:
    """Stale stage -> reasons, from `dvc status`: without stages that only wait for a stale one."""
    status: dict[str, list[str | dict[str, Any]]] = json.loads(_status(root) or "{}")
    stale: dict[str, Reasons] = {}
    for name, reasons in status.items():
        merged: Reasons = {}
        for reason in reasons:
            merged |= {reason: {}} if isinstance(reason, str) else reason
        if name.endswith(layout.DATA_DVC.suffix):
            # a newer version of an import's source does not matter here: retraining handles it
            merged.pop("changed deps", None)
        if merged:
            stale[name] = merged
    return stale


def _status(root: Path) -> str:
    """What `dvc status` prints, tried a few times.

    It fails where another DVC command is writing .dvc/tmp/rwlock, which is not written atomically.
    """
    for _ in range(STATUS_ATTEMPTS - 1):
        try:
            return dvc(root, "status", "--json")
        except InputError:
            time.sleep(STATUS_PAUSE_S)
    return dvc(root, "status", "--json")


def format_reasons(reasons: Reasons) -> str:
    """Reasons in one line: "models/base modified; grpo.beta modified; stages/train.py modified"."""
    parts = []
    for kind, changes in reasons.items():
        if not changes:
            parts.append(kind)
        prefix = "output " if kind == "changed outs" else ""
        for path, change in changes.items():
            if isinstance(change, dict):  # parameters: file -> key -> change
                parts += [f"{key} {each}" for key, each in change.items()]
            else:
                parts.append(f"{prefix}{path} {change}")
    return "; ".join(parts)


class Runner:
    """Runs stages and commands of one workspace; `stop` ends them and prevents new ones."""

    def __init__(self, root: Path, variables: Mapping[str, str] | None = None) -> None:
        """`variables`: in the environment of all that it runs."""
        self.root = root
        self._variables = dict(variables or {})
        self._running: set[subprocess.Popen[str]] = set()
        self.stopped = False

    def run(
        self,
        stage: str,
        report: Callable[[str], None],
        *,
        extra: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
        inherit_fds: Iterable[int] = (),
    ) -> StageRun:
        """Run `dvc repro -s` for one stage, passing its output to `report` line by line.

        `inherit_fds`: file descriptors that stay open as long as a process of the stage lives, such
        as a slot's lock. StageError if it fails, StoppedError if this runner was stopped.
        """
        start = time.monotonic()
        command = ["dvc", "--wait-for-lock", "repro", "--single-item", *options, stage]
        events = self.run_command(
            stage, command, report, folder=self.root, extra=extra, inherit_fds=inherit_fds
        )
        return StageRun(_final_state(events), time.monotonic() - start)

    def run_command(
        self,
        name: str,
        command: Sequence[str],
        report: Callable[[str], None],
        *,
        folder: Path,
        extra: Mapping[str, str] | None = None,
        inherit_fds: Iterable[int] = (),
    ) -> set[DvcEvent]:
        """Run any command in `folder` behind the guard, under a unique `name`; otherwise as `run`.

        Returns the events in the output, if the command is DVC.
        """
        run = uuid.uuid4().hex
        # identify the stage's outcome file; DVC sets the same STAGE for the command of a stage
        identity = {RUN: run, STAGE: name}
        record = (self.root / RECORDS / f"{name}.pid").resolve()
        record.parent.mkdir(parents=True, exist_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_GUARD), str(record), *command],
            cwd=folder,
            env=environment(self._variables | dict(extra or {}) | identity),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            pass_fds=tuple(inherit_fds),
        )
        self._running.add(process)
        if self.stopped:
            self._close(process)
        tail: deque[str] = deque(maxlen=TAIL)
        events: set[DvcEvent] = set()
        try:
            assert process.stdout
            for line in process.stdout:
                # a progress bar redraws itself after "\r": keep its last state
                text = line.rstrip("\n").rpartition("\r")[2].rstrip()
                if event := read_event(text):
                    events.add(event)
                if not _NOISE.match(text):
                    if tail and read_progress(text) and read_progress(tail[-1]):
                        tail.pop()  # the latest one is enough to explain a failure
                    tail.append(text)
                    report(text)
            code = process.wait()
        finally:
            # if this loop failed, the command must not continue unsupervised
            self._close(process)
            process.wait()
            self._running.discard(process)
        if code < 0:  # the guard itself was killed: end the processes it ran
            end_stages({record})
            record.unlink(missing_ok=True)
        if self.stopped:
            raise StoppedError(f"{name} was stopped; re-run it to resume from its saved state")
        if code:
            outcome = read_outcome(folder, name, run)
            message = explain(name, code, outcome, events, list(tail))
            raise StageError(
                message, outcome.code if outcome else None, began=DvcEvent.BEGAN in events
            )
        return events

    def stop(self) -> None:
        """Interrupt running stages and prevent new ones; `run` returns once they have ended."""
        self.stopped = True
        for process in list(self._running):
            self._close(process)

    def _close(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin
        with suppress(BrokenPipeError):
            process.stdin.close()


def read_event(line: str) -> DvcEvent | None:
    """Event in a line of DVC's output.

    DVC exits with 255 for every error and writes no result file, so its text is the only source.
    It is parsed only here, and only for what DVC does itself: the end of a stage's own process is
    in its outcome file. tests/flows/dvc_api/test_client.py makes the installed DVC print each line.
    """
    return next((event for pattern, event in _EVENTS if pattern.match(line)), None)


def _final_state(events: Collection[DvcEvent]) -> Literal["ran", "unchanged", "cached"]:
    if DvcEvent.BEGAN not in events:
        if DvcEvent.CACHED in events:
            return "cached"
        if DvcEvent.UNCHANGED in events:
            return "unchanged"
    return "ran"  # DVC prints no event when an import starts


def explain(
    stage: str,
    code: int,
    outcome: StageOutcome | None,
    events: Collection[DvcEvent],
    tail: list[str],
) -> str:
    """Cause and remedy of a failed stage, then its last lines.

    The stage's own outcome takes precedence over DVC's events.
    """
    return f"{stage} failed: {_reason(code, outcome, events)}\n\n" + "\n".join(tail)


def _reason(code: int, outcome: StageOutcome | None, events: Collection[DvcEvent]) -> str:
    own = outcome.code if outcome else ExitCode.DONE
    signals = (ExitCode.INTERRUPTED, ExitCode.KILLED, ExitCode.TERMINATED)
    if own == ExitCode.KILLED or code in signals:
        return "it was killed from outside. Re-run to resume from its saved state"
    if outcome and outcome.message and own != ExitCode.CRASHED:
        return outcome.message
    if outcome and own == ExitCode.CRASHED:
        return f"{outcome.message or 'it crashed'} (see the lines below)"
    if DvcEvent.LOCKED in events:
        return (
            "another DVC command holds a file it needs. Find it with `med-r1 doctor`, let it end,"
            " and re-run"
        )
    if DvcEvent.DISK_FULL in events:
        return (
            "the disk is full; no half-written output remains. Free some space (`dvc gc"
            " --workspace` deletes old results) and re-run"
        )
    return "see the lines below"


def processes_of(record: Path) -> list[psutil.Process]:
    """Processes started by the guard with this record, whatever their parent is now."""
    return [process for process, path in guarded_processes() if path == str(record)]


def guarded_processes() -> list[tuple[psutil.Process, str]]:
    """All processes of this user that a guard started, each with the path of its record."""
    processes = []
    for process in psutil.process_iter():
        try:
            record = process.environ().get("FLOW_RECORD")
        except (psutil.Error, OSError):
            continue
        if record and process.pid != os.getpid():
            processes.append((process, record))
    return processes


def find_orphans(root: Path) -> list[tuple[psutil.Process, str]]:
    """Processes of this workspace's stages whose guard is gone, each with its record's path."""
    folder = str((root / RECORDS).resolve())
    # stages before guards: a guard that starts in between makes no orphan
    staged = [each for each in guarded_processes() if str(Path(each[1]).parent) == folder]
    guards = [
        " ".join(process.cmdline()) for process in psutil.process_iter() if _is_guard(process)
    ]
    return [
        (process, record)
        for process, record in staged
        if not any(record in guard for guard in guards)
    ]


def end_processes(processes: Iterable[psutil.Process], patience: float = 10.0) -> None:
    """Interrupt processes, and kill those still alive after `patience` seconds."""
    remaining = list(processes)
    for number in (signal.SIGINT, signal.SIGKILL):
        for process in remaining:
            with suppress(psutil.Error):
                process.send_signal(number)
        _, remaining = psutil.wait_procs(remaining, timeout=patience)


def end_stages(records: Iterable[Path]) -> list[int]:
    """End all processes that the guards with these records started; their process ids."""
    paths = {str(record) for record in records}
    pids: set[int] = set()
    for _ in range(_ROUNDS):
        remaining = [process for process, path in guarded_processes() if path in paths]
        if not remaining:
            break
        pids.update(process.pid for process in remaining)
        end_processes(remaining)
    return sorted(pids)


def _is_guard(process: psutil.Process) -> bool:
    try:
        return str(_GUARD) in process.cmdline()
    except (psutil.Error, OSError):
        return False
