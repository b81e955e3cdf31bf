"""Hardware and packages of this machine: GPUs, torch's view of them, versions.

Read by stages/profiles, flows/doctor and flows/scheduling.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

_ASK: Final = """
import json, torch
said = {"torch": torch.__version__, "cuda": torch.version.cuda}
said.update(devices=[], broken="", flash="")
if torch.cuda.is_available():
    for number in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(number)
        said["devices"].append(facts.name)
        try:
            # a torch that is not built for this GPU says so with its first kernel
            one = torch.ones(8, 8, device=number, dtype=torch.bfloat16)
            (one @ one).sum().item()
            free, total = torch.cuda.mem_get_info(number)
        except RuntimeError as error:
            said["broken"] = said["broken"] or str(error)
            free, total = 0, facts.total_memory
        said.setdefault("free", []).append(free)
        said.setdefault("total", []).append(total)
elif torch.version.cuda:
    try:
        torch.cuda.init()
    except Exception as error:
        said["broken"] = str(error)
try:
    import flash_attn
except ModuleNotFoundError as error:
    said["flash"] = "" if error.name == "flash_attn" else str(error)
except Exception as error:
    said["flash"] = str(error)
print(json.dumps(said))
"""


@dataclass(frozen=True)
class Gpu:
    """A GPU that torch can use; memory in bytes, `free` that of other processes left out."""

    name: str
    total: int
    free: int


@dataclass(frozen=True)
class Torch:
    """Torch's view of this machine.

    `cuda`: CUDA version torch was built for, None without. `broken`: why GPUs cannot be used all
    the same. `flash`: why an installed flash-attn cannot be imported. Both empty if nothing is
    wrong.
    """

    version: str
    cuda: str | None
    gpus: tuple[Gpu, ...]
    broken: str
    flash: str


def query_gpus(
    fields: str, *, gpus: Sequence[str] = (), units: bool = True, timeout_s: float | None = None
) -> list[str]:
    """`fields` of each GPU from nvidia-smi, a line per GPU, ignoring CUDA_VISIBLE_DEVICES.

    `gpus`: indices or UUIDs of those to ask for, all if empty; `units`: of memory, as in "46068
    MiB". Empty if there is no nvidia-smi, if it fails, or takes longer than `timeout_s`.
    """
    command = [
        "nvidia-smi",
        f"--query-gpu={fields}",
        f"--format=csv,noheader{'' if units else ',nounits'}",
    ]
    if gpus:
        command.append(f"--id={','.join(gpus)}")
    try:
        process = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=timeout_s
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in process.stdout.splitlines() if line.strip()]


def device_files() -> list[Path]:
    """The device file of each NVIDIA GPU that this machine, or this container, has."""
    return sorted(each for each in Path("/dev").glob("nvidia[0-9]*") if each.is_char_device())


INSTALL_COMPILER: Final = (
    "apt-get install gcc libc6-dev (and python3-dev for a distribution's Python), or name a"
    " compiler in the environment variable CC"
)
"""Remedy where `find_c_compiler` finds none."""


def find_c_compiler() -> str | None:
    """The C compiler that Triton builds the launcher of its kernels with; None if there is none."""
    named = os.environ.get("CC")
    return named if named is not None else shutil.which("gcc") or shutil.which("clang")


def gpu_lines() -> list[str]:
    """Index, name, memory and driver of each GPU, ignoring CUDA_VISIBLE_DEVICES."""
    return query_gpus("index,name,memory.total,driver_version", timeout_s=60)


def ask_torch() -> tuple[Torch | None, str]:
    """What torch sees, or None and the reason.

    Asked in a subprocess, since a process that initialised CUDA keeps its context.
    """
    process = _run_with_torch(_ASK)
    if process.returncode:
        return None, (process.stderr.strip().splitlines() or ["it was killed"])[-1]
    answer: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    gpus = tuple(
        Gpu(*each)
        for each in zip(
            answer["devices"], answer.get("total", []), answer.get("free", []), strict=True
        )
    )
    return Torch(
        answer["torch"], answer["cuda"], gpus, _line(answer["broken"]), _line(answer["flash"])
    ), ""


def _run_with_torch(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


def installed(package: str) -> str | None:
    """The version of a package; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def format_bytes(count: float) -> str:
    """A size for people: "512 B", "7.2 MiB", "1.3 TiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else ""
