"""Preflight of a profile on this machine: obstacles and remedies."""

from __future__ import annotations

import configparser
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from stages.core.disk_space import disk_of, find_shortages, tree_size
from stages.core.machine import (
    INSTALL_COMPILER,
    Gpu,
    Torch,
    ask_torch,
    find_c_compiler,
    format_bytes,
    gpu_lines,
    installed,
)
from stages.core.params import Params, check_params
from stages.profiles.downloads import Download, find_obstacle, wrong_weights
from stages.profiles.needs import OUTPUT_PATHS, disk, memory
from stages.profiles.schema import Model, Profile, Scale, merge
from stages.profiles.shown import ONE
from stages.profiles.times import shown_images

Level = Literal["note", "stops"]

_ONE_PROMPT: Final = {"prompts_per_device": 1, "gradient_accumulation_steps": 4}
_LORA: Final = {
    "rank": 16,
    "alpha": 32,
    "dropout": 0.0,
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
}
MEMORY_REDUCTIONS: Final[tuple[dict[str, Any], ...]] = (
    _ONE_PROMPT,
    _ONE_PROMPT | {"fused_head": True},
    _ONE_PROMPT | {"fused_head": True, "freeze_vision_tower": True},
    _ONE_PROMPT | {"fused_head": True, "lora": _LORA},
)
"""Settings of grpo that reduce training memory, from harmless to a change of the method."""
CPU_PARAMETERS: Final = 200_000_000
"""Parameters of the largest model that a CPU can train in days."""


@dataclass(frozen=True)
class ProfileFinding:
    """Something worth knowing (`level` note), or why the run cannot finish (stops)."""

    check: str
    level: Level
    what: str
    remedy: str = ""


@dataclass(frozen=True)
class Machine:
    """GPUs by nvidia-smi and by torch; `torch` is None if it cannot be imported.

    `torch_error`: why it cannot.
    """

    lines: list[str]
    torch: Torch | None
    torch_error: str

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        """Those that torch can use."""
        return self.torch.gpus if self.torch and not self.torch.broken else ()


def read_machine() -> Machine:
    """Query nvidia-smi and torch."""
    torch, error = ask_torch()
    return Machine(gpu_lines(), torch, error)


def findings(
    profile: Profile,
    params: Params,
    machine: Machine,
    fetched: Sequence[Download],
    root: Path,
    tree: dict[str, Any],
) -> list[ProfileFinding]:
    """Obstacles to a run of a profile on a machine.

    `fetched`: what the run downloads; `tree`: the settings `params` as a tree, of which variants
    with less memory are tried for remedies.
    """
    return [
        *_gpu(profile.model, machine),
        *_gpu_memory(profile.model, profile.scale, params, machine.gpus, tree),
        *_flash_attention(params, machine),
        *_deepspeed(params),
        *_compiler(machine),
        *_sources(fetched, params),
        *_weights(profile, params),
        *_disk(disk(params, profile, len(machine.gpus)), fetched, root),
    ]


def _gpu(model: Model | None, machine: Machine) -> Iterator[ProfileFinding]:
    if model is None or model.parameters < CPU_PARAMETERS:
        return
    torch = machine.torch
    if torch is None:
        yield ProfileFinding(
            "torch",
            "stops",
            f"torch cannot be imported: {machine.torch_error}",
            "reinstall: make install",
        )
    elif (machine.lines and not machine.gpus) or (torch.gpus and torch.broken):
        build = f"was built for CUDA {torch.cuda}" if torch.cuda else "was built without CUDA"
        if torch.cuda and not torch.broken:
            why = "sees none"
            remedy = "unset CUDA_VISIBLE_DEVICES, or name a GPU in it"
        else:
            why = f"cannot use it{torch.broken and f': {torch.broken}'}"
            remedy = (
                "update the driver, or install a torch for it (pytorch.org/get-started names the"
                " index of each CUDA) into .venv"
            )
        yield ProfileFinding(
            "CUDA",
            "stops",
            f"this machine has {'; '.join(machine.lines) or 'a GPU'}, but torch {torch.version},"
            f" which {build}, {why}",
            remedy,
        )
    elif not machine.gpus:
        billions = model.parameters / 1e9
        yield ProfileFinding(
            "GPU",
            "stops",
            f"this machine has none, and on a CPU a model of {billions:.1f} billion parameters"
            " would train for months",
            "run on a machine with one, or `med-r1 profile sample`",
        )


def _gpu_memory(
    model: Model | None,
    scale: Scale | None,
    params: Params,
    gpus: tuple[Gpu, ...],
    tree: dict[str, Any],
) -> Iterator[ProfileFinding]:
    if model is None or not gpus:
        return
    images = ONE.most if scale is None else shown_images(params, scale).most
    needed = sum(memory(params, model, images).values())
    gpu = min(gpus, key=lambda each: each.free)
    if gpu.free >= needed:
        return
    if gpu.total >= needed:
        remedy = (
            "end the processes that use it (nvidia-smi lists them), or hide it:"
            " CUDA_VISIBLE_DEVICES"
        )
    else:
        remedy = "use a GPU with more" + _reduced_settings(model, images, gpu.total, tree)
    yield ProfileFinding(
        "GPU memory",
        "stops",
        f"a training takes about {format_bytes(needed)} (estimated); {gpu.name} has"
        f" {format_bytes(gpu.free)} free of {format_bytes(gpu.total)}",
        remedy,
    )


def _reduced_settings(model: Model, images: int, available: int, tree: dict[str, Any]) -> str:
    """The first of MEMORY_REDUCTIONS that fits, as an addition to a remedy; empty if none does."""
    grpo = tree["grpo"]
    # they keep the batch only if it is four prompts
    if grpo["prompts_per_device"] * grpo["gradient_accumulation_steps"] != 4:
        return ""
    for changes in MEMORY_REDUCTIONS:
        reduced = check_params(merge(tree, {"grpo": changes}), Path("params.yaml"))
        needed = sum(memory(reduced, model, images).values())
        if needed <= available:
            keys = ", ".join(f"grpo.{key}: {value}" for key, value in changes.items())
            return f", or your own profile with {keys} (about {format_bytes(needed)})"
    return ""


def _flash_attention(params: Params, machine: Machine) -> Iterator[ProfileFinding]:
    attention = params.base.attention
    kinds = (attention,) if isinstance(attention, str) else (attention.language, attention.vision)
    is_required = "flash_attention_2" in kinds
    if is_required and params.base.dtype == "float32":
        yield ProfileFinding(
            "flash-attn",
            "stops",
            "base.attention names flash_attention_2, which computes in 16 bits, and base.dtype is"
            " float32",
            "set base.attention: auto, which uses it where possible, or base.dtype: bfloat16",
        )
    version = installed("flash-attn")
    if version and machine.torch and machine.torch.flash:
        otherwise = (
            "set base.attention: sdpa"
            if is_required
            else "pip uninstall flash-attn: libraries may try to use it"
        )
        yield ProfileFinding(
            "flash-attn",
            "stops" if is_required else "note",
            f"{version} is installed but cannot be imported, as when it was built for another torch"
            f" than {machine.torch.version}: {machine.torch.flash}",
            "build it for this one: pip install --no-build-isolation --no-cache-dir"
            f" --force-reinstall --no-deps flash-attn; or {otherwise}",
        )
    elif is_required and not version:
        yield ProfileFinding(
            "flash-attn",
            "stops",
            "base.attention is flash_attention_2, and it is not installed",
            "pip install --no-build-isolation '.[gpu]', or set base.attention: sdpa",
        )


def _deepspeed(params: Params) -> Iterator[ProfileFinding]:
    if params.grpo.parallel in ("zero2", "zero3") and not installed("deepspeed"):
        yield ProfileFinding(
            "deepspeed",
            "stops",
            f"grpo.parallel is {params.grpo.parallel}, and deepspeed is not installed",
            "pip install --no-build-isolation '.[gpu]', or set grpo.parallel: auto",
        )


def _compiler(machine: Machine) -> Iterator[ProfileFinding]:
    """TRL's losses are Triton kernels on a GPU, which are compiled when they are first used."""
    if machine.gpus and find_c_compiler() is None:
        yield ProfileFinding(
            "C compiler",
            "stops",
            "TRL compiles its losses for the GPU, and there is no gcc or clang",
            INSTALL_COMPILER,
        )


def _sources(fetched: Sequence[Download], params: Params) -> Iterator[ProfileFinding]:
    for each in fetched:
        if not each.is_local and (why := find_obstacle(each, params)):
            target = (
                "a folder for base.source"
                if each.name == "base"
                else "a file for the path in `deps` of data.dvc"
            )
            yield ProfileFinding(
                each.name,
                "stops",
                f"{each.source}: {why}",
                f"fix it and re-run; without a network, name {target}",
            )


def _weights(profile: Profile, params: Params) -> Iterator[ProfileFinding]:
    if wrong := wrong_weights(profile, params):
        yield ProfileFinding(
            "base",
            "stops",
            f"{', '.join(wrong)} of {params.base.source} in the local cache: missing, or not the"
            " pinned file",
            "remove the model from the cache, with `hf cache rm` or by hand, and re-run",
        )


def _disk(
    outputs: dict[str, int], fetched: Sequence[Download], root: Path
) -> Iterator[ProfileFinding]:
    """Free space against need, per disk.

    `outputs`: bytes by purpose. A DVC cache on another disk takes all outputs a second time.
    """
    # a resumed run has written most of it
    missing = sum(
        max(0, size - (tree_size(root / OUTPUT_PATHS[purpose]) or 0))
        for purpose, size in outputs.items()
    )
    needed = Counter({root: missing})
    for each in fetched:
        target = _hub_cache() if each.name == "base" else root
        needed[target] += 0 if each.is_local else each.size or 0
    dvc_cache = _dvc_cache(root)
    if disk_of(dvc_cache) != disk_of(root):
        needed[dvc_cache] += missing
    for folders, size, free in find_shortages(needed):
        yield ProfileFinding(
            "disk",
            "stops",
            f"about {format_bytes(size)} will be written (estimated), but only"
            f" {format_bytes(free)} are free on the disk of {folders[0].resolve()}",
            "free some: `dvc gc --workspace` deletes old results. Or work on a larger disk; HF_HOME"
            " moves only the hub's cache",
        )


def _dvc_cache(root: Path) -> Path:
    config = configparser.ConfigParser(strict=False, interpolation=None)
    config.read([root / ".dvc/config", root / ".dvc/config.local"], encoding="utf-8")
    return root / ".dvc" / config.get("cache", "dir", fallback="cache").strip("'\"")


def _hub_cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)
