"""Ranks: several processes of one stage, one per GPU, that share its work."""

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
"""Environment variable: number of ranks, instead of one per visible GPU."""
_STARTED_BY: Final = "MED_R1_STARTED_BY"
"""Environment variable of a rank: the process id of its parent."""
_POLL_INTERVAL_S: Final = 0.5


def wanted_processes() -> int:
    """Number of ranks: `PROCESSES`, or one per visible GPU and at least one.

    Raises InputError if it is not a positive number or exceeds the number of GPUs.
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

    The ranks only divide the work and do not communicate; those that do are started by `launch`.
    Every rank gets `--rank` and `--world-size`, and shares this process's standard output and
    error. `report` is called between polls. The first rank that fails ends the others and raises
    an InputError of the type of its exit code, which names the rank.
    """
    # only this process writes the outcome of the stage
    environment = {name: value for name, value in os.environ.items() if name != STAGE}
    environment[_STARTED_BY] = str(os.getpid())
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", *command, "--rank", str(rank), "--world-size", str(number)],
            env={**environment, **_gpu(rank)},
        )
        for rank in range(number)
    ]
    try:
        while any(process.poll() is None for process in processes):
            _check(processes)
            report()
            time.sleep(_POLL_INTERVAL_S)
        _check(processes)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


def _check(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for rank, process in enumerate(processes):
        code = process.poll()
        if code:
            killed = code < 0
            end = f"was killed by signal {-code}" if killed else f"ended with exit status {code}"
            raise error_of(
                code,
                f"process {rank + 1} of {len(processes)} {end}; see its error above. The results of"
                " all processes are saved: re-run the same command to resume",
            )


def _gpu(rank: int) -> dict[str, str]:
    """Environment in which a rank sees one GPU only; empty without GPUs."""
    import torch

    if not torch.cuda.device_count():
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return {"CUDA_VISIBLE_DEVICES": visible.split(",")[rank] if visible else str(rank)}


def check_still_wanted() -> None:
    """Raise LostPeerError in a rank whose parent has ended: nothing would collect its results."""
    if os.environ.get(_STARTED_BY) != str(os.getppid()):
        raise LostPeerError("the parent process of this rank has ended")
