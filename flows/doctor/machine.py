"""Preflight of this machine: GPUs and their libraries, free disk space, tested versions."""

from __future__ import annotations

import platform
import tomllib
from pathlib import Path
from typing import Any, Final

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet

from flows.doctor.findings import Finding, Level
from flows.dvc_api.output_sizes import cache_folder, free_space, read_output_sizes, tree_size
from stages.core import layout
from stages.core.errors import InputError
from stages.core.machine import ask_torch, format_bytes, gpu_lines, installed
from stages.core.yaml_files import read_yaml

_OPTIONAL: Final = {
    "flash-attn": "base.attention: flash_attention_2 needs it",
    "deepspeed": "grpo.parallel: zero2 and zero3 need it",
}
_WITHOUT: Final = {"flash-attn": "base.attention: sdpa", "deepspeed": "grpo.parallel: auto"}
_ANEW: Final = (
    "it was built for another torch, as a rule: pip install flash-attn --no-build-isolation"
    " --force-reinstall --no-deps --no-cache-dir, or set base.attention: sdpa"
)
MARGIN: Final = 2
"""Free space is short below this many times what the last outputs took: DVC keeps the old beside
the new.
"""


def gpu_parts(root: Path) -> list[Finding]:
    """GPUs, whether torch sees them, and libraries that only they use."""
    gpus = gpu_lines()
    if not gpus:
        return [
            Finding(
                "GPU",
                "warning",
                "none is here: GPU stages run on the CPU",
                "for models of full size, use a machine with one",
            )
        ]
    findings = [Finding("GPU", "ok", "; ".join(gpus))]
    seen, said = ask_torch()
    if seen is None:
        findings.append(
            Finding(
                "torch",
                "problem",
                f"torch cannot be imported: {said}",
                "install anew: make install",
            )
        )
    elif not seen.gpus or seen.broken:
        why = f"was built for CUDA {seen.cuda}" if seen.cuda else "was built without CUDA"
        findings.append(
            Finding(
                "torch",
                "problem",
                f"torch {seen.version} {why} and "
                + (
                    "sees no GPU, so GPU stages run on the CPU"
                    if not seen.gpus
                    else f"cannot use the GPU: {seen.broken}"
                ),
                "install a torch for this driver, and see that CUDA_VISIBLE_DEVICES is not empty",
            )
        )
    else:
        findings.append(
            Finding(
                "torch",
                "ok",
                f"torch {seen.version}, CUDA {seen.cuda}:"
                f" {', '.join(gpu.name for gpu in seen.gpus)}",
            )
        )
    return findings + gpu_libraries(root)


def gpu_libraries(root: Path) -> list[Finding]:
    """GPU-only libraries; a problem if params.yaml needs one that is missing or broken."""
    findings = []
    for package, why in _OPTIONAL.items():
        version = installed(package)
        wanted = (
            _setting(root, "base", "attention")
            if package == "flash-attn"
            else _setting(root, "grpo", "parallel")
        )
        kinds = wanted.values() if isinstance(wanted, dict) else [wanted]
        needed = any(each in ("flash_attention_2", "zero2", "zero3") for each in kinds)
        if (
            version
            and needed
            and package == "flash-attn"
            and (seen := ask_torch()[0])
            and seen.flash
        ):
            findings.append(
                Finding(package, "problem", f"{version} cannot be imported: {seen.flash}", _ANEW)
            )
            continue
        without: Level = "problem" if needed else "warning"
        install = "pip install --no-build-isolation '.[gpu]'"
        if needed:
            install += f", or set {_WITHOUT[package]}"
        findings.append(
            Finding(
                package,
                "ok" if version else without,
                version or f"not installed: {why}",
                "" if version else install,
            )
        )
    return findings


def disk(root: Path) -> list[Finding]:
    """Free space against what the last run's outputs took, and the size of DVC's cache."""
    last = sum(sum(outs.values()) for outs in read_output_sizes(root).values())
    free, cache = free_space(root), tree_size(cache_folder(root)) or 0
    what = (
        f"{format_bytes(free)} free; the last outputs took {format_bytes(last)}, DVC's cache holds"
        f" {format_bytes(cache)}"
    )
    remedy = (
        "`dvc gc --workspace` drops results that no longer belong to this workspace from the cache"
    )
    if free < last:
        return [Finding("disk", "problem", f"{what}: running all of it again does not fit", remedy)]
    if free < MARGIN * last:
        return [
            Finding("disk", "warning", f"{what}: running all of it again leaves little", remedy)
        ]
    return [Finding("disk", "ok", what)]


def versions(root: Path) -> list[Finding]:
    """Python and packages against what pyproject.toml asks for."""
    file = root / "pyproject.toml"
    if not file.is_file():
        file = Path(__file__).parents[2] / "pyproject.toml"
    try:
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        python = SpecifierSet(project.get("requires-python", ""))
        wanted = [Requirement(each) for each in project.get("dependencies", [])]
    except (OSError, ValueError, KeyError, InvalidRequirement) as error:
        return [
            Finding(
                "versions",
                "problem",
                f"{file} cannot be read: {error!r}",
                "take the last committed one: git checkout HEAD -- pyproject.toml",
            )
        ]
    wrong = (
        []
        if python.contains(platform.python_version())
        else [f"python {platform.python_version()} ({python} is needed)"]
    )
    for each in wanted:
        if each.marker and not each.marker.evaluate():
            continue
        version = installed(each.name)
        if version is None or not each.specifier.contains(version, prereleases=True):
            wrong.append(f"{each.name} {version or 'missing'} ({each.specifier} is needed)")
    if wrong:
        return [
            Finding(
                "versions",
                "problem",
                f"not what pyproject.toml asks for: {'; '.join(wrong)}",
                "install what is locked: make install",
            )
        ]
    found = ", ".join(
        f"{name} {version}" for name in ("dvc", "prefect", "torch") if (version := installed(name))
    )
    return [
        Finding(
            "versions",
            "ok",
            f"python {platform.python_version()}, {found}; all {len(wanted)} pins hold",
        )
    ]


def _setting(root: Path, group: str, key: str) -> Any:
    try:
        return read_yaml(root / layout.PARAMS)[group][key]
    except (OSError, InputError, KeyError, TypeError):
        return None
