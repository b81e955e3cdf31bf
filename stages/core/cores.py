"""CPU cores that this process may use: its affinity, and the quota of its container."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_PROCESS_GROUPS: Final = Path("/proc/self/cgroup")
_GROUPS: Final = Path("/sys/fs/cgroup")


def available_cores() -> int:
    """CPU cores that this process may use, at least one.

    Those of its affinity (taskset, SLURM), and no more than the CPU quota of its control group
    (`docker run --cpus`, limits of Kubernetes): `os.cpu_count` counts the machine's, and as many
    threads would share a quota of four cores on a machine with 128.
    """
    cores = len(os.sched_getaffinity(0))
    return max(min([cores, *map(math.ceil, _quotas(_PROCESS_GROUPS, _GROUPS))]), 1)


def _quotas(process_groups: Path, groups: Path) -> Iterator[float]:
    """CPU quotas in cores of the control groups of this process; of no limit, nothing.

    `process_groups`: a line "<number>:<controllers>:<path>" per hierarchy, of which the one of
    version 2 has no controllers (cgroups(7)); `groups`: where they are mounted. In a container the
    path may be one of the host's, which is not mounted: its own group is then the root.
    """
    try:
        lines = process_groups.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = groups / "cpu" if controllers else groups
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            quota = _read_quota(folder)
            if quota is not None:
                yield quota
            if folder == root:
                break


def _read_quota(folder: Path) -> float | None:
    """The quota of a control group in cores; None if it has none or is not mounted."""
    try:
        if (folder / "cpu.max").is_file():  # version 2: "200000 100000" or "max 100000"
            quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
        else:
            quota, period = (
                (folder / f"cpu.cfs_{name}_us").read_text(encoding="utf-8").strip()
                for name in ("quota", "period")
            )
        cores = float(quota) / float(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None  # "max" is no number either
    return cores if 0 < cores < math.inf else None
