"""Run one stage or command, safely beside others.

`repro -s` runs one stage and ignores everything upstream, so the caller keeps the order. A stage
runs behind `flows.dvc_api.guard`: it ends when its caller ends, for whatever reason.
"""

from __future__ import annotations

import re
import subprocess
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from flows.dvc_api.client import environment
from flows.dvc_api.events import DvcEvent, explain, final_state, read_event
from flows.dvc_api.processes import RECORDS, end_stages, guarded
from stages.core.errors import ExitCode
from stages.core.iteration.progress import read_progress
from stages.core.outcome import RUN, STAGE, read_outcome

TAIL: Final = 40
"""Number of a stage's last lines that a failure message quotes."""
_NOISE: Final = re.compile(
    r"^(To track the changes with git, run:|To enable auto staging, run:|\s*git add .*|\s*dvc"
    r" config core\.autostage.*|Use `dvc push`.*|)$"
)


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
        return StageRun(final_state(events), time.monotonic() - start)

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
            guarded(command, record),
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
