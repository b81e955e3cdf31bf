"""GPU slots of this host, as file locks.

A slot is a file that is locked while it is in use. The kernel's lock belongs to an open file, which
the guard of a stage inherits and keeps as long as the stage lives: when both have ended, for
whatever reason, the slot is free. Nothing has to be cleaned up, and two flows on one host never
take more than a device has, even in different workspaces.

A stage that has a GPU for itself locks the file of the GPU. One in a slot of N per GPU locks it
together with others, and for itself N-th parts of the GPU, of 12 in all. So flows with different N
share a GPU as far as their parts do not overlap, and neither shares it with a stage that needs all
of it: that one waits until the GPU is free.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Final

import psutil

from flows.scheduling.gpu_share import check_shares
from stages.core import layout
from stages.core.cores import available_cores
from stages.core.distributed.devices import SLOTS_PER_GPU
from stages.core.errors import InputError
from stages.core.file_lock import LockedError, exclusive_lock, shared_lock
from stages.core.machine import device_files, query_gpus
from stages.core.yaml_files import read_yaml

_SLOT_BYTES: Final = 2 * 2**30
"""Memory for a training of the embedded base, which takes 1.1 GB."""
PARTS: Final = 12
"""Parts of a GPU that are locked one by one: it can be divided by 1, 2, 3, 4, 6 and 12."""
_PARTS_SUFFIX: Final = ".parts"
"""Of the folder with the lock files of a GPU's parts."""
POLL_SECONDS = 0.2
"""Time between two attempts to lock free slots."""


@dataclass(frozen=True)
class Slot:
    """A place for one stage: `number` (from 1) of those on a device."""

    name: str
    device: str
    number: int = 1


@dataclass(frozen=True)
class Slots:
    """Slots of this host and the folder of their lock files.

    `devices`: GPU indices if `are_gpus`, else names of CPU slots; `per_gpu`: slots on each GPU;
    `limit`: of them all, None for no limit.
    """

    devices: tuple[str, ...]
    folder: Path
    are_gpus: bool
    per_gpu: int = 1
    limit: int | None = None

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        """All slots, in the order in which they are taken: one on each GPU, then the second."""
        numbered = product(range(1, self.per_gpu + 1), self.devices)
        slots = [Slot(self._name(device, number), device, number) for number, device in numbered]
        return tuple(slots[: self.limit])

    def _name(self, device: str, number: int) -> str:
        return device if self.per_gpu == 1 else f"{device} ({number} of {self.per_gpu})"

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all slots."""
        return tuple(slot.name for slot in self.slots)

    @property
    def most_per_stage(self) -> int:
        """The most slots that one stage can have: each on another GPU."""
        return len({slot.device for slot in self.slots})

    def environment(self, names: Sequence[str]) -> dict[str, str]:
        """Environment of a stage in these slots: GPUs and its share, or how CPU threads wait.

        The number of threads does not depend on the number of slots, since sums depend on it.
        Waiting threads sleep: busy-waiting threads of two stages take each other's cores
        (measured: docs/flows.md).
        """
        if self.are_gpus:
            device = {slot.name: slot.device for slot in self.slots}
            visible = {"CUDA_VISIBLE_DEVICES": ",".join(device[name] for name in names)}
            return visible | ({SLOTS_PER_GPU: str(self.per_gpu)} if self.per_gpu > 1 else {})
        return {"OMP_WAIT_POLICY": "PASSIVE"} if len(self.names) > 1 else {}

    @property
    def cpu_environment(self) -> dict[str, str] | None:
        """Environment of stages in any of these slots where no GPU is visible; None elsewhere."""
        return None if self.are_gpus or visible_gpus() else self.environment(())

    @contextmanager
    def acquire(
        self, count: int, is_cancelled: Callable[[], bool]
    ) -> Iterator[tuple[tuple[str, ...], tuple[int, ...]]]:
        """Wait for `count` slots, all or none, on as many GPUs; yields names and lock descriptors.

        InputError if fewer exist; TimeoutError as soon as `is_cancelled()` is true.
        """
        if count > self.most_per_stage:
            on_gpus = " GPUs" if self.are_gpus else ""
            raise InputError(
                f"{count} slots are needed, but there are {self.most_per_stage}{on_gpus}"
                f" ({', '.join(self.names)}): lower gpus in meta of dvc.yaml"
            )
        while (locked := self._try(count)) is None:
            if is_cancelled():
                raise TimeoutError("cancelled while waiting for a slot")
            time.sleep(POLL_SECONDS)
        slots, lock_fds, locks = locked
        with locks:
            yield tuple(slot.name for slot in slots), lock_fds

    def _try(self, count: int) -> tuple[list[Slot], tuple[int, ...], ExitStack] | None:
        """Lock `count` slots on different devices; None, with none locked, if fewer are free."""
        taken: list[Slot] = []
        lock_fds: list[int] = []
        with ExitStack() as stack:
            for slot in self.slots:
                if len(taken) == count:
                    break
                if any(slot.device == each.device for each in taken):
                    continue
                with suppress(LockedError), ExitStack() as locks:
                    lock_fds += [locks.enter_context(each) for each in self._locks(slot)]
                    stack.enter_context(locks.pop_all())
                    taken.append(slot)
            if len(taken) == count:
                return taken, tuple(lock_fds), stack.pop_all()
        return None

    def _locks(self, slot: Slot) -> Iterator[AbstractContextManager[int]]:
        """Locks of a slot, which fail with LockedError: of the whole device, or of its parts."""
        path = self.folder / f"{slot.device}.lock"
        if self.per_gpu == 1:
            yield exclusive_lock(path, on_conflict=LockedError, mode=0o600)
            return
        yield shared_lock(path, on_conflict=LockedError, mode=0o600)
        size = PARTS // self.per_gpu
        for part in range(size * (slot.number - 1), size * slot.number):
            part_path = self.folder / f"{slot.device}{_PARTS_SUFFIX}" / f"{part}.lock"
            yield exclusive_lock(part_path, on_conflict=LockedError, mode=0o600)


def find_slots(
    root: Path,
    count: int | None = None,
    gpus: Sequence[str] | None = None,
    slots_per_gpu: int = 1,
) -> Slots:
    """GPU slots of a workspace, `slots_per_gpu` on each GPU, or without GPUs `count` CPU slots.

    The default without GPUs is as many as cores and memory allow (`_cpu_slots`). `gpus`: indices to
    use; if None, all that CUDA_VISIBLE_DEVICES allows. InputError for more slots than GPUs have,
    for several on a GPU without one, or where a training would not fit into its share.
    """
    if slots_per_gpu < 1 or PARTS % slots_per_gpu:
        allowed = ", ".join(str(each) for each in range(1, PARTS + 1) if not PARTS % each)
        raise InputError(f"{slots_per_gpu} slots per GPU: use one of {allowed}")
    devices = list(gpus) if gpus is not None else visible_gpus()
    if devices:
        most = len(devices) * slots_per_gpu
        if count is not None and not 1 <= count <= most:
            stages = "one stage" if slots_per_gpu == 1 else f"{slots_per_gpu} stages"
            more = "" if slots_per_gpu > 1 else ", or more slots per GPU"
            raise InputError(
                f"{count} slots on {len(devices)} GPUs ({', '.join(devices)}): a GPU runs {stages}"
                f" at a time; use 1 to {most} slots{more}"
            )
        if slots_per_gpu > 1:
            check_shares(root, devices, slots_per_gpu)
        return Slots(tuple(devices), host_folder(), True, slots_per_gpu, count)
    if slots_per_gpu > 1:
        raise InputError(
            f"{slots_per_gpu} slots per GPU, but there is no GPU here: leave slots per GPU at 1;"
            " the number of slots says how many stages run at once"
        )
    if count is not None and count < 1:
        raise InputError(f"{count} slots: at least one is needed")
    return Slots(
        tuple(f"cpu-{number}" for number in range(count or _cpu_slots(root))),
        (root / layout.FLOWS / "slots").resolve(),
        are_gpus=False,
    )


def lock_files(folder: Path) -> dict[Path, str]:
    """The lock files of slots in a folder -> the device whose slot they lock, or a part of it."""
    files = {path: path.stem for path in sorted(folder.glob("*.lock"))}
    parts = sorted(folder.glob(f"*{_PARTS_SUFFIX}/*.lock"))
    return files | {path: path.parent.name.removesuffix(_PARTS_SUFFIX) for path in parts}


def _cpu_slots(root: Path) -> int:
    """Stages that this machine's cores and memory can run at once, at least one.

    Of stages of one thread one more than cores: a core is not idle while a stage reads or writes,
    and another program that keeps a core busy slows down a third of three stages, not half of two.
    Threads of one stage wait for each other, so stages of several get the cores they need.
    """
    threads = cpu_threads(root)
    if threads is None:
        return 1
    by_cores = available_cores() + 1 if threads == 1 else available_cores() // threads
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
    """GPU indices this process may use, from CUDA_VISIBLE_DEVICES, nvidia-smi or the device files.

    A container may have GPUs and no nvidia-smi.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        indices = map(str.strip, visible.split(","))
        return [index for index in indices if index not in ("", "-1", "NoDevFiles")]
    return query_gpus("index") or [str(index) for index, _ in enumerate(device_files())]
