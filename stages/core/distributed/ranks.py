"""A stage's work shared by several processes of the same stage, one per GPU."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Final

from stages.core.errors import InputError, LostPeerError, error_of
from stages.core.outcome import STAGE

PROCESSES: Final = "MED_R1_PROCESSES"
"""Environment variable: how many processes share the work, in place of one for each GPU that is
visible.
"""
_STARTED_BY: Final = "MED_R1_STARTED_BY"
"""Environment variable of a share: the id of the process that shared out the work."""
_EVERY: Final = 0.5
"""Seconds between two looks at the processes."""


def wanted_processes() -> int:
    """Number of ranks: `PROCESSES`, or one per visible GPU and at least one.

    InputError if it is not a number, or exceeds the number of GPUs.
    """
    import torch

    gpus = torch.cuda.device_count()
    value = os.environ.get(PROCESSES)
    if value is None:
        return max(gpus, 1)
    if not value.isdecimal() or not int(value):
        raise InputError(
            f"{PROCESSES}={value!r} is not a number of processes: set it to 1 or more, or unset it"
            " for one per GPU"
        )
    if gpus and int(value) > gpus:
        raise InputError(
            f"{PROCESSES}={value}, but {gpus} GPUs are visible: set it to no more than that, or"
            " unset it"
        )
    return int(value)


def run_ranks(command: Sequence[str], number: int, report: Callable[[], None]) -> None:
    """Run `python -m <command>` as `number` ranks, each on its own GPU if there are any.

    `report` is called now and then. The first process that fails ends the others: an InputError, of
    the type of its exit code, says which it was. What a process prints, an error's reason too, goes
    where this one's goes.
    """
    # the outcome of the stage is this process's to write
    environment = {name: value for name, value in os.environ.items() if name != STAGE}
    environment[_STARTED_BY] = str(os.getpid())
    running = [
        subprocess.Popen(
            [sys.executable, "-m", *command, "--share", f"{share}/{number}"],
            env={**environment, **_gpu(share)},
        )
        for share in range(number)
    ]
    try:
        while any(process.poll() is None for process in running):
            _check(running)
            report()
            time.sleep(_EVERY)
        _check(running)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()


def _check(running: Sequence[subprocess.Popen[bytes]]) -> None:
    for share, process in enumerate(running):
        if process.poll():
            how = (
                f"was killed by signal {-process.returncode}"
                if process.returncode < 0
                else f"ended with exit status {process.returncode}"
            )
            raise error_of(
                process.returncode,
                f"process {share + 1} of {len(running)} {how}; its reason is printed above. What"
                " all of them made is kept: re-run the same command to resume",
            )


def _gpu(share: int) -> dict[str, str]:
    """Environment in which a rank sees one GPU only; empty without GPUs."""
    import torch

    if not torch.cuda.device_count():
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return {"CUDA_VISIBLE_DEVICES": visible.split(",")[share] if visible else str(share)}


def check_still_wanted() -> None:
    """Raise LostPeerError in a rank whose parent has ended.

    Nobody collects its results any more.
    """
    if os.environ.get(_STARTED_BY) != str(os.getppid()):
        raise LostPeerError("the process that shared out the work is gone")
