"""Entry points: results, or one clear message and an `ExitCode` (stages.core.errors)."""

from __future__ import annotations

import argparse
import errno
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from stages.core.disk_space import free_bytes
from stages.core.errors import ExitCode, InputError, ReportedError
from stages.core.outcome import StageOutcome, write_outcome


def run_stage(main: Callable[[], None]) -> None:
    """Run a stage's `main`, write its outcome and exit with its code.

    Bugs keep their traceback.
    """
    # stands if this process is killed and can write nothing more
    write_outcome(StageOutcome(ExitCode.KILLED))
    try:
        main()
    except BaseException as error:
        outcome = _outcome_of(error)
        write_outcome(outcome)
        if outcome.code == ExitCode.CRASHED or isinstance(error, SystemExit):
            raise
        if outcome.code == ExitCode.INTERRUPTED:
            print(outcome.message, file=sys.stderr)
        elif not isinstance(error, ReportedError):
            print(f"error: {outcome.message}", file=sys.stderr)
        sys.exit(outcome.code)
    write_outcome(StageOutcome(ExitCode.DONE))


def stage_parser(stage: str, description: str | None) -> argparse.ArgumentParser:
    """Parser of a stage's command line; `description` is printed as it is written."""
    return argparse.ArgumentParser(
        prog=f"python -m stages.{stage}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def exit_on_termination() -> None:
    """Let SIGTERM and SIGHUP end this process by SystemExit, unless they are handled or ignored.

    By default they end a process at once: without its `finally` blocks, so what it started runs on
    and its temporary files remain.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _exit)


def _exit(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)


def _outcome_of(error: BaseException) -> StageOutcome:
    if isinstance(error, ReportedError):
        return StageOutcome(error.code, str(error))
    if isinstance(error, InputError):
        return StageOutcome(error.code, str(error))
    if isinstance(error, KeyboardInterrupt):
        message = "interrupted: nothing half-written was kept; re-run the same command to resume"
        return StageOutcome(ExitCode.INTERRUPTED, message)
    if isinstance(error, SystemExit):
        return _outcome_of_exit(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = free_bytes(Path.cwd()) / 2**20
        return StageOutcome(
            ExitCode.DISK_FULL,
            f"no space left on the disk while writing {error.filename or 'an output'} ({free:.0f}"
            " MiB free); nothing half-written was kept. Free some space (`dvc gc --workspace`"
            " drops old results) and run again",
        )
    return StageOutcome(ExitCode.CRASHED, f"{type(error).__name__}: {error}")


def _outcome_of_exit(error: SystemExit) -> StageOutcome:
    """What `sys.exit` was called with: a code, or a text for code 1."""
    if error.code is None:
        return StageOutcome(ExitCode.DONE)
    if error.code in list(ExitCode):
        return StageOutcome(ExitCode(error.code))
    return StageOutcome(ExitCode.CRASHED, str(error.code))
