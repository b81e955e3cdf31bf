"""Errors that a user can fix, and the exit codes of stage processes.

A stage prints such an error without a traceback (stages/core/cli.py). What callers tell apart is a
type here and a code of `ExitCode`; nobody reads the message to decide anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum, unique
from typing import ClassVar, Final


@unique
class ExitCode(IntEnum):
    """How a stage process ended; stages/core/cli.py maps exception types to these codes."""

    DONE = 0
    CRASHED = 1
    """An exception that nobody expected: a bug, with its traceback."""
    USAGE = 2
    """Wrong arguments (argparse)."""
    INPUT = 3
    """Something given to the stage cannot be used (InputError)."""
    SETTINGS = 4
    """params.yaml cannot be used (SettingsError)."""
    REFUSED_DATA = 5
    """The corpus may not be trained on (stages.corpus.quarantine.reasons.RefusedDataError)."""
    DISK_FULL = 6
    """No space left, or not enough (DiskFullError, ENOSPC, EDQUOT)."""
    LOST_PEER = 7
    """Another process of the same training ended first (LostPeerError)."""
    INTERRUPTED = 130
    KILLED = 137
    """Killed by a signal it could not handle; outcome files begin with this code."""
    TERMINATED = 143


class InputError(Exception):
    """Unusable input of the pipeline; the message names file, record, value and remedy."""

    code: ClassVar[ExitCode] = ExitCode.INPUT


class SettingsError(InputError):
    """params.yaml, or a key of it, cannot be used."""

    code = ExitCode.SETTINGS


class DiskFullError(InputError):
    """A disk has less space than is needed: no fault of the data."""

    code = ExitCode.DISK_FULL


class LostPeerError(InputError):
    """Another process of the same training ended first: this one is not the root cause."""

    code = ExitCode.LOST_PEER


class ReportedError(Exception):
    """A child process of the same stage failed and has printed why; `code` is its exit code."""

    def __init__(self, code: ExitCode, message: str) -> None:
        """`code`: the exit code of this process, too."""
        super().__init__(message)
        self.code = code


_BY_CODE: Final[Mapping[int, type[InputError]]] = {
    each.code: each for each in (SettingsError, DiskFullError, LostPeerError)
}


def error_of(code: int, message: str) -> InputError:
    """The error for a failed child process of the stage, with the caller's message."""
    return _BY_CODE.get(code, InputError)(message)


def recreate(stage: str) -> str:
    """The remedy for a missing or corrupt output of a stage."""
    return f"re-create it: `dvc repro --single-item --force {stage}`"
