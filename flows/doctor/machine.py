"""Preflight of this machine: GPUs and their libraries, free disk space, tested versions."""

from __future__ import annotations

import platform
import tomllib
from pathlib import Path
from typing import Any, Final

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet

from flows.doctor.findings import Finding, Level
from flows.dvc_api.output_sizes import free_space, read_output_sizes
from flows.dvc_api.repository import cache_folder
from stages.core import layout
from stages.core.disk_space import tree_size
from stages.core.errors import InputError
from stages.core.git import unknown_commit
from stages.core.machine import ask_torch, format_bytes, gpu_lines, installed
from stages.core.yaml_files import read_yaml

_OPTIONAL: Final = {
    "flash-attn": "base.attention: flash_attention_2 needs it",
    "deepspeed": "grpo.parallel: zero2 and zero3 need it",
}
_SETTINGS: Final = {"flash-attn": ("base", "attention"), "deepspeed": ("grpo", "parallel")}
_ALTERNATIVES: Final = {"flash-attn": "base.attention: sdpa", "deepspeed": "grpo.parallel: auto"}
_REINSTALL: Final = (
    "it was probably built for another torch: pip install flash-attn --no-build-isolation"
    " --force-reinstall --no-deps --no-cache-dir, or set base.attention: sdpa"
)
MARGIN: Final = 2
"""Free space is short below this multiple of the last outputs' size: DVC keeps the old outputs
beside the new ones.
"""


def gpu_parts(root: Path) -> list[Finding]:
    """GPUs, whether torch sees them, and libraries that only GPUs use."""
    gpus = gpu_lines()
    if not gpus:
        return [
            Finding(
                "GPU",
                "warning",
                "this machine has none: GPU stages run on the CPU",
                "for full-size models, use a machine with a GPU",
            )
        ]
    return [Finding("GPU", "ok", "; ".join(gpus)), _torch(), *gpu_libraries(root)]


def _torch() -> Finding:
    """Whether torch can be imported and can use the GPUs of this machine."""
    torch, error = ask_torch()
    if torch is None:
        what = f"torch cannot be imported: {error}"
        return Finding("torch", "problem", what, "reinstall: make install")
    if torch.gpus and not torch.broken:
        names = ", ".join(gpu.name for gpu in torch.gpus)
        return Finding("torch", "ok", f"torch {torch.version}, CUDA {torch.cuda}: {names}")
    built = f"was built for CUDA {torch.cuda}" if torch.cuda else "was built without CUDA"
    effect = (
        f"cannot use the GPU: {torch.broken}"
        if torch.gpus
        else "sees no GPU, so GPU stages run on the CPU"
    )
    return Finding(
        "torch",
        "problem",
        f"torch {torch.version} {built} and {effect}",
        "install a torch for this driver, and check that CUDA_VISIBLE_DEVICES is not empty",
    )


def gpu_libraries(root: Path) -> list[Finding]:
    """GPU-only libraries; a problem if params.yaml needs one that is missing or broken."""
    return [_gpu_library(root, package) for package in _OPTIONAL]


def _gpu_library(root: Path, package: str) -> Finding:
    version = installed(package)
    needed = _is_needed(root, package)
    if not version:
        level: Level = "problem" if needed else "warning"
        install = "pip install --no-build-isolation '.[gpu]'"
        if needed:
            install += f", or set {_ALTERNATIVES[package]}"
        return Finding(package, level, f"not installed: {_OPTIONAL[package]}", install)
    if needed and package == "flash-attn":
        torch, _ = ask_torch()
        if torch and torch.flash:
            what = f"{version} cannot be imported: {torch.flash}"
            return Finding(package, "problem", what, _REINSTALL)
    return Finding(package, "ok", version)


def _is_needed(root: Path, package: str) -> bool:
    """Whether params.yaml selects a feature that needs the library."""
    group, key = _SETTINGS[package]
    setting = _setting(root, group, key)
    values = setting.values() if isinstance(setting, dict) else [setting]
    return any(value in ("flash_attention_2", "zero2", "zero3") for value in values)


def disk(root: Path) -> list[Finding]:
    """Free space against the size of the last run's outputs, and the size of DVC's cache."""
    last = sum(sum(outs.values()) for outs in read_output_sizes(root).values())
    free = free_space(root)
    cache = tree_size(cache_folder(root)) or 0
    what = (
        f"{format_bytes(free)} free; the last outputs took {format_bytes(last)}, DVC's cache holds"
        f" {format_bytes(cache)}"
    )
    remedy = (
        "`dvc gc --workspace` deletes results from the cache that this workspace no longer uses"
    )
    if free < last:
        return [Finding("disk", "problem", f"{what}: re-running everything does not fit", remedy)]
    if free < MARGIN * last:
        return [Finding("disk", "warning", f"{what}: re-running everything barely fits", remedy)]
    return [Finding("disk", "ok", what)]


def code_commit(root: Path) -> list[Finding]:
    """Whether git knows the commit of the code, which every result records."""
    if unknown := unknown_commit(root):
        why, remedy = unknown
        what = f"{why}; results would not say from which commit they were made"
        return [Finding("git", "warning", what, remedy)]
    return [Finding("git", "ok", "the commit of the code is known")]


def versions(root: Path) -> list[Finding]:
    """Python and packages against the requirements of pyproject.toml."""
    file = root / "pyproject.toml"
    if not file.is_file():
        file = Path(__file__).parents[2] / "pyproject.toml"
    try:
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        python = SpecifierSet(project.get("requires-python", ""))
        requirements = [Requirement(each) for each in project.get("dependencies", [])]
    except (OSError, ValueError, KeyError, InvalidRequirement) as error:
        return [
            Finding(
                "versions",
                "problem",
                f"{file} cannot be read: {error!r}",
                "restore the committed one: git checkout HEAD -- pyproject.toml",
            )
        ]
    mismatches = []
    if not python.contains(platform.python_version()):
        mismatches.append(f"python {platform.python_version()} ({python} is needed)")
    for each in requirements:
        if each.marker and not each.marker.evaluate():
            continue
        version = installed(each.name)
        if version is None or not each.specifier.contains(version, prereleases=True):
            mismatches.append(f"{each.name} {version or 'missing'} ({each.specifier} is needed)")
    if mismatches:
        return [
            Finding(
                "versions",
                "problem",
                f"other versions than pyproject.toml requires: {'; '.join(mismatches)}",
                "install the locked versions: make install",
            )
        ]
    packages = [
        f"{name} {version}" for name in ("dvc", "prefect", "torch") if (version := installed(name))
    ]
    what = (
        f"python {platform.python_version()}, {', '.join(packages)}; all {len(requirements)}"
        " requirements are met"
    )
    return [Finding("versions", "ok", what)]


def _setting(root: Path, group: str, key: str) -> Any:
    try:
        return read_yaml(root / layout.PARAMS)[group][key]
    except (OSError, InputError, KeyError, TypeError):
        return None
