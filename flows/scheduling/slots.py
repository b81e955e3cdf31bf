"""GPU slots of this host, as file locks.

A slot is a file that is locked while it is in use. The kernel's lock belongs to an open file, which
the guard of a stage inherits and keeps as long as the stage lives: when both have ended, for
whatever reason, the slot is free. Nothing has to be cleaned up, and two flows on one host never
share a device, even in different workspaces.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from stages.core import layout
from stages.core.errors import InputError
from stages.core.file_lock import LockedError, exclusive_lock
from stages.core.yaml_files import read_yaml

_SLOT_BYTES: Final = 2 * 2**30
"""Memory for a training of the embedded base, which takes 1.1 GB."""
POLL_SECONDS = 0.2
"""Time between two attempts to lock free slots."""


@dataclass(frozen=True)
class Slots:
    """Slots of this host and the folder of their lock files.

    `are_gpus`: the names are GPU indices.
    """

    names: tuple[str, ...]
    folder: Path
    are_gpus: bool

    def environment(self, names: Sequence[str]) -> dict[str, str]:
        """Environment of a stage in these slots: the visible GPUs, or how CPU threads wait.

        The number of threads does not depend on the number of slots, since sums depend on it.
        Waiting threads sleep: busy-waiting threads of two stages take each other's cores
        (measured: docs/flows.md).
        """
        if self.are_gpus:
            return {"CUDA_VISIBLE_DEVICES": ",".join(names)}
        return {"OMP_WAIT_POLICY": "PASSIVE"} if len(self.names) > 1 else {}

    @contextmanager
    def acquire(
        self, count: int, is_cancelled: Callable[[], bool]
    ) -> Iterator[tuple[tuple[str, ...], tuple[int, ...]]]:
        """Wait for `count` slots, all or none; yields their names and lock descriptors.

        InputError if fewer exist; TimeoutError as soon as `is_cancelled()` is true.
        """
        if count > len(self.names):
            raise InputError(
                f"{count} slots are needed, but there are {len(self.names)}"
                f" ({', '.join(self.names)}): lower gpus in meta of dvc.yaml"
            )
        while (locked := self._try(count)) is None:
            if is_cancelled():
                raise TimeoutError("cancelled while waiting for a slot")
            time.sleep(POLL_SECONDS)
        lock_fds, locks = locked
        with locks:
            yield tuple(lock_fds), tuple(lock_fds.values())

    def _try(self, count: int) -> tuple[dict[str, int], ExitStack] | None:
        """Lock `count` slots; None, with none locked, if fewer are free."""
        lock_fds: dict[str, int] = {}
        with ExitStack() as stack:
            for name in self.names:
                if len(lock_fds) == count:
                    break
                lock = exclusive_lock(
                    self.folder / f"{name}.lock", on_conflict=LockedError, mode=0o600
                )
                with suppress(LockedError):
                    lock_fds[name] = stack.enter_context(lock)
            if len(lock_fds) == count:
                return lock_fds, stack.pop_all()
        return None


def find_slots(root: Path, count: int | None = None, gpus: Sequence[str] | None = None) -> Slots:
    """GPU slots of a workspace: one per GPU, or without GPUs `count` CPU slots.

    The default without GPUs is one for each `base.threads` cores, as far as memory allows. `gpus`:
    indices to use; if None, all that CUDA_VISIBLE_DEVICES allows. InputError for more slots than
    GPUs.
    """
    devices = list(gpus) if gpus is not None else visible_gpus()
    if devices:
        if count is not None and not 1 <= count <= len(devices):
            raise InputError(
                f"{count} slots on {len(devices)} GPUs ({', '.join(devices)}): a GPU runs one stage"
                f" at a time; use 1 to {len(devices)} slots"
            )
        return Slots(tuple(devices[: count or len(devices)]), host_folder(), are_gpus=True)
    if count is not None and count < 1:
        raise InputError(f"{count} slots: at least one is needed")
    return Slots(
        tuple(f"cpu-{number}" for number in range(count or _cpu_slots(root))),
        (root / layout.SCRATCH / "flows" / "slots").resolve(),
        are_gpus=False,
    )


def _cpu_slots(root: Path) -> int:
    """Stages that this machine's cores and memory can run at once, at least one."""
    threads = cpu_threads(root)
    if threads is None:
        return 1
    by_cores = len(os.sched_getaffinity(0)) // threads
    by_memory = psutil.virtual_memory().available // _SLOT_BYTES
    return max(min(by_cores, by_memory), 1)


def cpu_threads(root: Path) -> int | None:
    """`base.threads` of the workspace: CPU threads per stage; None if it is not set."""
    path = root / layout.PARAMS
    base = read_yaml(path).get("base") if path.is_file() else None
    threads = base.get("threads") if isinstance(base, dict) else None
    return threads if isinstance(threads, int) else None


def host_folder() -> Path:
    """Folder of the locks of this host's GPUs, shared by all workspaces of a user."""
    return Path(tempfile.gettempdir()) / f"med-r1-slots-{os.getuid()}"


def visible_gpus() -> list[str]:
    """GPU indices this process may use, from CUDA_VISIBLE_DEVICES or nvidia-smi."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        indices = map(str.strip, visible.split(","))
        return [index for index in indices if index not in ("", "-1", "NoDevFiles")]
    try:
        process = subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return []
    return [line.strip() for line in process.stdout.splitlines() if line.strip()]
