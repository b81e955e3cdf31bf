"""Slots: who may use which GPU of this host, now.

A slot is a file that is locked while somebody uses it. Locks are the kernel's and belong to an open
file: the guard of a stage inherits it and lives as long as the stage; when both are gone, however
they went, the slot is free. Nothing has to be cleaned up, and two flows on one host, of two
workspaces too, never share a device.
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

from stages.core import layout
from stages.core.errors import InputError
from stages.core.file_lock import LockedError, exclusive_lock

EVERY = 0.2
"""Seconds between two looks for a free slot."""


@dataclass(frozen=True)
class Slots:
    """Slots of this host: `names`, and the folder in which their files are.

    `devices`: whether names are those of GPUs.
    """

    names: tuple[str, ...]
    folder: Path
    devices: bool

    def environment(self, names: Sequence[str]) -> dict[str, str]:
        """Environment of a stage in these slots: visible GPUs.

        Without GPUs, how many compute beside it.

        The number of threads stays what it is alone, since sums depend on it; but threads that wait
        sleep, for those of two stages that wait awake take each other's cores (measured:
        docs/flows.md).
        """
        if self.devices:
            return {"CUDA_VISIBLE_DEVICES": ",".join(names)}
        return {"OMP_WAIT_POLICY": "PASSIVE"} if len(self.names) > 1 else {}

    @contextmanager
    def take(
        self, count: int, given_up: Callable[[], bool]
    ) -> Iterator[tuple[tuple[str, ...], tuple[int, ...]]]:
        """Wait for `count` slots, all at once or none; their names and lock descriptors.

        InputError if there are not so many; TimeoutError as soon as `given_up()` is true.
        """
        if count > len(self.names):
            raise InputError(
                f"{count} slots are needed, but there are {len(self.names)}"
                f" ({', '.join(self.names)}): lower gpus in meta of dvc.yaml"
            )
        while (locked := self._try(count)) is None:
            if given_up():
                raise TimeoutError("no slot was waited for any longer")
            time.sleep(EVERY)
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
    """GPU slots of a workspace: one per GPU, or without GPUs `count` (1) slots of its own.

    `gpus`: the indices to use, all if None; CUDA_VISIBLE_DEVICES is respected. InputError for more
    slots than GPUs.
    """
    found = list(gpus) if gpus is not None else visible_gpus()
    if found:
        if count is not None and not 1 <= count <= len(found):
            raise InputError(
                f"{count} slots on {len(found)} GPUs ({', '.join(found)}): a GPU serves one stage"
                f" at a time; give at most {len(found)}"
            )
        return Slots(tuple(found[: count or len(found)]), host_folder(), True)
    if count is not None and count < 1:
        raise InputError(f"{count} slots: at least one is needed")
    return Slots(
        tuple(f"cpu-{number}" for number in range(count or 1)),
        (root / layout.SCRATCH / "flows" / "slots").resolve(),
        False,
    )


def host_folder() -> Path:
    """Where the locks of this host's GPUs are, for all workspaces of a user."""
    return Path(tempfile.gettempdir()) / f"med-r1-slots-{os.getuid()}"


def visible_gpus() -> list[str]:
    """GPU indices this process may use, from CUDA_VISIBLE_DEVICES or nvidia-smi."""
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    if told is not None:
        return [
            each.strip() for each in told.split(",") if each.strip() not in ("", "-1", "NoDevFiles")
        ]
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]
