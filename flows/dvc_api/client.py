"""DVC's command line, as flows need it: what is stale, and one stage run safely beside others.

Every call is `dvc --wait-for-lock`: without it, stages that start or end while another holds the
repository's lock fail, and one that has run for hours can end unrecorded. `repro -s` runs one stage
and looks at nothing upstream, so the caller keeps the order. A stage runs behind
`flows.dvc_api.guard`: it ends when its caller does, however that ends.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import uuid
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Any, Final, Literal

import psutil

from stages.core import layout
from stages.core.errors import ExitCode, InputError
from stages.core.outcome import RUN, STAGE, StageOutcome, read_outcome

RECORDS: Final = layout.SCRATCH / "flows" / "running"
"""A file for each stage that runs, while it runs."""
TAIL: Final = 40
"""Last lines of a stage that a failure quotes."""
_GUARD: Final = Path(__file__).with_name("guard.py")
_ROUNDS: Final = 5
"""How often what was ended is looked for again: a process may have been forking just then, or start
another as its last act.
"""
_NOISE: Final = re.compile(
    r"^(To track the changes with git, run:|To enable auto staging, run:|\s*git add .*|\s*dvc"
    r" config core\.autostage.*|Use `dvc push`.*|)$"
)


class DvcEvent(Enum):
    """What DVC reports of a stage while it brings it up to date."""

    BEGAN = auto()
    """It runs the stage's command."""
    UNCHANGED = auto()
    CACHED = auto()
    """It takes the outputs from the run-cache."""
    LOCKED = auto()
    """It failed, because another DVC command holds its lock, or a path that the stage needs."""
    DISK_FULL = auto()
    """It failed, because no space is left for what it copies."""


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
"""What made a stage stale: "changed deps", "changed outs" -> path -> "modified", "deleted", ...,
and "changed command".
"""


@dataclass(frozen=True)
class StageRun:
    """How `dvc repro -s` ended: `ran`, `unchanged`, or `cached` (from the run cache)."""

    how: Literal["ran", "unchanged", "cached"]
    seconds: float


class StageError(Exception):
    """A stage did not end well; the message says which, why, and what to do.

    `code` is the stage's own exit code, None where it did not begin or did not write one; `began`:
    DVC had begun to run its command.
    """

    def __init__(self, message: str, code: ExitCode | None = None, *, began: bool = True) -> None:
        """Keep what callers tell apart beside the words."""
        super().__init__(message)
        self.code, self.began = code, began


class StoppedError(Exception):
    """A stage was stopped because its flow was."""


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment, its Python's programs first on the path, telemetry off."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return (
        os.environ
        | {"PATH": path, "DVC_NO_ANALYTICS": "1", "TOKENIZERS_PARALLELISM": "false"}
        | dict(extra or {})
    )


def dvc(root: Path, *arguments: str, inherit_fds: Iterable[int] = ()) -> str:
    """What `dvc` prints.

    InputError with what it says if it fails. `inherit_fds`: descriptors that it keeps open, such as
    a lock's.
    """
    command = ["dvc", "--wait-for-lock", *arguments]
    done = subprocess.run(
        command,
        cwd=root,
        env=environment(),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        pass_fds=tuple(inherit_fds),
    )
    if done.returncode:
        said = "\n".join(
            line for line in (done.stderr or done.stdout).splitlines() if line.strip()
        )[-2000:]
        raise InputError(f"`{' '.join(command)}` failed with exit code {done.returncode}: {said}")
    return done.stdout


def read_status(root: Path) -> dict[str, Reasons]:
    """Stale stage -> reasons, as DVC sees them, without stages that only wait for a stale one."""
    found: dict[str, list[str | dict[str, Any]]] = json.loads(dvc(root, "status", "--json") or "{}")
    stale: dict[str, Reasons] = {}
    for name, reasons in found.items():
        merged: Reasons = {}
        for reason in reasons:
            merged |= {reason: {}} if isinstance(reason, str) else reason
        if name.endswith(layout.DATA_DVC.suffix):
            # an import whose source has moved on is as pinned: that is the business of retraining
            merged.pop("changed deps", None)
        if merged:
            stale[name] = merged
    return stale


def say_reasons(reasons: Reasons) -> str:
    """Why, in a line: "models/base modified; grpo.beta modified; stages/train.py modified"."""
    parts = []
    for kind, changes in reasons.items():
        if not changes:
            parts.append(kind)
        for path, how in changes.items():
            if isinstance(how, dict):  # parameters: file -> key -> change
                parts += [f"{key} {change}" for key, change in how.items()]
            else:
                parts.append(f"{'output ' if kind == 'changed outs' else ''}{path} {how}")
    return "; ".join(parts)


class Runner:
    """Run stages and commands of one workspace; `stop` ends those running and starts no more."""

    def __init__(self, root: Path) -> None:
        self.root = root
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
        """`dvc repro -s` of one stage, its lines given to `report` as they come.

        `inherit_fds`: file descriptors that the stage's processes keep open as long as one of them
        lives, such as a slot's lock. StageError if it fails, StoppedError if this runner was
        stopped.
        """
        start = time.monotonic()
        command = ["dvc", "--wait-for-lock", "repro", "--single-item", *options, stage]
        events = self.watch(
            stage, command, report, folder=self.root, extra=extra, inherit_fds=inherit_fds
        )
        return StageRun(_how(events), time.monotonic() - start)

    def watch(
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

        Returns what DVC reported, if the command is DVC.
        """
        run = uuid.uuid4().hex
        # DVC gives the command of a stage the same name
        told = {RUN: run, STAGE: name}
        record = (self.root / RECORDS / f"{name}.pid").resolve()
        record.parent.mkdir(parents=True, exist_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_GUARD), str(record), *command],
            cwd=folder,
            env=environment(dict(extra or {}) | told),
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
                shown = (
                    line.rstrip("\n").rpartition("\r")[2].rstrip()
                )  # of a bar that redraws itself, its last state
                if event := read_event(shown):
                    events.add(event)
                if not _NOISE.match(shown):
                    tail.append(shown)
                    report(shown)
            code = process.wait()
        finally:
            # whatever went wrong here, it does not go on unwatched
            self._close(process)
            process.wait()
            self._running.discard(process)
        if code < 0:  # the guard itself was killed: what it watched is ours to end
            end_stages({record})
            record.unlink(missing_ok=True)
        if self.stopped:
            raise StoppedError(f"{name} was stopped; what it had kept is used when it runs again")
        if code:
            outcome = read_outcome(folder, name, run)
            message = explain(name, code, outcome, events, list(tail))
            raise StageError(
                message, outcome.code if outcome else None, began=DvcEvent.BEGAN in events
            )
        return events

    def stop(self) -> None:
        """End the stages that run, and let no other begin.

        They are given time to end well; `run` returns when they have.
        """
        self.stopped = True
        for process in list(self._running):
            self._close(process)

    def _close(self, process: subprocess.Popen[str]) -> None:
        try:
            assert process.stdin
            process.stdin.close()
        except BrokenPipeError:
            pass


def read_event(line: str) -> DvcEvent | None:
    """What a line of DVC's output reports.

    DVC's text is the only source of these: it exits with 255 for every error, and `repro` writes no
    result file. So it is compared here and nowhere else, and only for what DVC does itself: how a
    stage's own process ended, its outcome file says. tests/flows/dvc_api/test_client.py makes the
    installed DVC write each of the lines.
    """
    return next((event for pattern, event in _EVENTS if pattern.match(line)), None)


def _how(events: Collection[DvcEvent]) -> Literal["ran", "unchanged", "cached"]:
    if DvcEvent.BEGAN not in events:
        if DvcEvent.CACHED in events:
            return "cached"
        if DvcEvent.UNCHANGED in events:
            return "unchanged"
    return "ran"  # an import of data does not announce that it begins


def explain(
    stage: str,
    code: int,
    outcome: StageOutcome | None,
    events: Collection[DvcEvent],
    tail: list[str],
) -> str:
    """Why a stage failed and its remedy.

    The stage's own reason before DVC's, then the last lines.
    """
    return f"{stage} failed: {_reason(code, outcome, events)}\n\n" + "\n".join(tail)


def _reason(code: int, outcome: StageOutcome | None, events: Collection[DvcEvent]) -> str:
    own = outcome.code if outcome else ExitCode.DONE
    if own == ExitCode.KILLED or code in (
        ExitCode.INTERRUPTED,
        ExitCode.KILLED,
        ExitCode.TERMINATED,
    ):
        return "it was killed from outside. Run again: what it had kept is used"
    if outcome and outcome.message and own != ExitCode.CRASHED:
        return outcome.message
    if outcome and own == ExitCode.CRASHED:
        return f"{outcome.message or 'it crashed'} (see the lines below)"
    if DvcEvent.LOCKED in events:
        return (
            "another DVC command holds a file it needs. See which with `med-r1 doctor`, let it end,"
            " and run again"
        )
    if DvcEvent.DISK_FULL in events:
        return (
            "the disk is full; nothing half-written was kept. Free some space (`dvc gc --workspace`"
            " drops old results) and run again"
        )
    return "see the lines below"


def processes_of(record: Path) -> list[psutil.Process]:
    """Processes started by the guard with this record, whoever their parent is now."""
    return [process for process, theirs in guarded_processes() if theirs == str(record)]


def guarded_processes() -> list[tuple[psutil.Process, str]]:
    """All processes of this user that a guard started, each with the path of its record."""
    found = []
    for process in psutil.process_iter():
        try:
            record = process.environ().get("FLOW_RECORD")
        except (psutil.Error, OSError):
            continue
        if record and process.pid != os.getpid():
            found.append((process, record))
    return found


def orphans(root: Path) -> list[tuple[psutil.Process, str]]:
    """Processes of stages of this workspace whose guard is gone: nothing waits for what they do."""
    folder = str((root / RECORDS).resolve())
    theirs = [
        (process, record)
        for process, record in guarded_processes()
        if str(Path(record).parent) == folder
    ]
    guards = {
        " ".join(process.cmdline()) for process in psutil.process_iter() if _is_guard(process)
    }
    return [
        (process, record)
        for process, record in theirs
        if not any(record in guard for guard in guards)
    ]


def end_processes(processes: Iterable[psutil.Process], patience: float = 10.0) -> None:
    """Interrupt processes, and kill those that are there after `patience` seconds."""
    import signal

    left = list(processes)
    for number in (signal.SIGINT, signal.SIGKILL):
        for process in left:
            try:
                process.send_signal(number)
            except psutil.Error:
                continue
        _, left = psutil.wait_procs(left, timeout=patience)


def end_stages(records: Iterable[Path]) -> list[int]:
    """End everything that the guards with these records started; the ids of the processes found."""
    wanted = {str(record) for record in records}
    ended: list[int] = []
    for _ in range(_ROUNDS):
        left = [process for process, record in guarded_processes() if record in wanted]
        if not left:
            break
        ended += [process.pid for process in left]
        end_processes(left)
    return sorted(set(ended))


def _is_guard(process: psutil.Process) -> bool:
    try:
        return str(_GUARD) in process.cmdline()
    except (psutil.Error, OSError):
        return False
