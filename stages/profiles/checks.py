"""Preflight of a profile on this machine: obstacles and remedies."""

from __future__ import annotations

import configparser
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from stages.core.cards.licence import EMBEDDED
from stages.core.disk_space import disk_of, find_shortages
from stages.core.machine import Gpu, Torch, ask_torch, format_bytes, gpu_lines, installed
from stages.core.params import Params, check_params
from stages.profiles.downloads import Download, unreachable, wrong_weights
from stages.profiles.needs import WHERE, disk, memory, needs
from stages.profiles.schema import Model, Profile, merged

Level = Literal["note", "stops"]

SMALLER: Final[tuple[dict[str, Any], ...]] = (
    {"grpo": {"prompts_per_device": 1, "gradient_accumulation_steps": 4}},
    {"grpo": {"prompts_per_device": 1, "gradient_accumulation_steps": 4, "fused_head": True}},
    {
        "grpo": {
            "prompts_per_device": 1,
            "gradient_accumulation_steps": 4,
            "fused_head": True,
            "freeze_vision_tower": True,
        }
    },
    {
        "grpo": {
            "prompts_per_device": 1,
            "gradient_accumulation_steps": 4,
            "fused_head": True,
            "lora": {
                "rank": 16,
                "alpha": 32,
                "dropout": 0.0,
                "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
            },
        }
    },
)
"""Ways to reduce training memory, ordered from harmless to changing the method."""
CPU_PARAMETERS: Final = 200_000_000
"""Of a model that a CPU can still train in days."""


@dataclass(frozen=True)
class ProfileFinding:
    """`level`: worth knowing, or why the run cannot finish; `remedy`: what to do about it."""

    check: str
    level: Level
    what: str
    remedy: str = ""


@dataclass(frozen=True)
class Machine:
    """What is here. `torch` is None if it cannot be imported, `said` then tells why."""

    lines: list[str]
    torch: Torch | None
    said: str

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        """Those that torch can use."""
        return self.torch.gpus if self.torch and not self.torch.broken else ()


def look() -> Machine:
    """Ask nvidia-smi and torch."""
    torch, reason = ask_torch()
    return Machine(gpu_lines(), torch, reason)


def findings(
    profile: Profile,
    params: Params,
    machine: Machine,
    fetched: Iterable[Download],
    root: Path,
    tree: dict[str, Any],
) -> list[ProfileFinding]:
    """Obstacles to a run with the settings `tree`.

    Smaller variants of it are tried for remedies.
    """
    fetched = list(fetched)
    return [
        *_gpu(profile.model, machine),
        *_gpu_memory(profile.model, params, machine.gpus, tree),
        *_flash(params, machine),
        *_deepspeed(params),
        *_sources(fetched, params),
        *_weights(profile, params),
        *_disk(_left(disk(params, profile, len(machine.gpus)), root), fetched, root),
    ]


def _gpu(model: Model | None, machine: Machine) -> Iterator[ProfileFinding]:
    if model is None or model.parameters < CPU_PARAMETERS:
        return
    if machine.torch is None:
        yield ProfileFinding(
            "torch",
            "stops",
            f"torch cannot be imported: {machine.said}",
            "reinstall: make install",
        )
    elif (machine.lines and not machine.gpus) or (machine.torch.gpus and machine.torch.broken):
        built = (
            f"was built for CUDA {machine.torch.cuda}"
            if machine.torch.cuda
            else "was built without CUDA"
        )
        why = machine.torch.broken or "sees no GPU: is CUDA_VISIBLE_DEVICES empty?"
        yield ProfileFinding(
            "CUDA",
            "stops",
            f"{'; '.join(machine.lines) or 'a GPU'} is here, but torch {machine.torch.version},"
            f" which {built}, cannot use it: {why}",
            "update the driver, or install a torch for it (pytorch.org/get-started names the index"
            " of each CUDA) into .venv",
        )
    elif not machine.gpus:
        billions = model.parameters / 1e9
        yield ProfileFinding(
            "GPU",
            "stops",
            f"none is here, and on a CPU a model of {billions:.1f} billion parameters would train"
            " for months",
            "run on a machine with one, or `med-r1 profile sample`",
        )


def _gpu_memory(
    model: Model | None, params: Params, gpus: tuple[Gpu, ...], tree: dict[str, Any]
) -> Iterator[ProfileFinding]:
    if model is None or not gpus:
        return
    needed = sum(memory(params, model).values())
    small = [gpu for gpu in gpus if gpu.free < needed]
    if not small:
        return
    gpu = min(small, key=lambda each: each.free)
    what = (
        f"a training takes about {format_bytes(needed)} (estimated); {gpu.name} has"
        f" {format_bytes(gpu.free)} free of {format_bytes(gpu.total)}"
    )
    if gpu.total >= needed:
        yield ProfileFinding(
            "GPU memory",
            "stops",
            what,
            "end what else runs on it (nvidia-smi names it), or hide it: CUDA_VISIBLE_DEVICES",
        )
        return
    remedy = "use a GPU with more"
    for changes in SMALLER:
        if not _four(tree):
            continue
        less = sum(memory(check_params(merged(tree, changes), Path("params.yaml")), model).values())
        if less <= gpu.total:
            keys = ", ".join(f"grpo.{key}: {value}" for key, value in changes["grpo"].items())
            remedy += f", or a profile of your own with {keys} (about {format_bytes(less)})"
            break
    yield ProfileFinding("GPU memory", "stops", what, remedy)


def _four(tree: dict[str, Any]) -> bool:
    """A batch is kept as it is: only one of four prompts can be taken apart so."""
    grpo = tree["grpo"]
    return bool(grpo["prompts_per_device"] * grpo["gradient_accumulation_steps"] == 4)


def _flash(params: Params, machine: Machine) -> Iterator[ProfileFinding]:
    attention = params.base.attention
    kinds = (attention,) if isinstance(attention, str) else (attention.language, attention.vision)
    wanted = "flash_attention_2" in kinds
    if wanted and params.base.dtype == "float32":
        yield ProfileFinding(
            "flash-attn",
            "stops",
            "base.attention names flash_attention_2, which computes in 16 bits, and base.dtype is"
            " float32",
            "set base.attention: auto, which takes it where it can, or base.dtype: bfloat16",
        )
    version = installed("flash-attn")
    level: Level = "stops" if wanted else "note"
    if version and machine.torch and machine.torch.flash:
        yield ProfileFinding(
            "flash-attn",
            level,
            f"{version} is installed but cannot be imported, as when it was built for another torch"
            f" than {machine.torch.version}: {machine.torch.flash}",
            "build it for this one: pip install --no-build-isolation --no-cache-dir"
            " --force-reinstall --no-deps flash-attn"
            + (
                "; or set base.attention: sdpa"
                if wanted
                else "; or pip uninstall flash-attn: libraries may try it unasked"
            ),
        )
    elif wanted and not version:
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


def _sources(fetched: Iterable[Download], params: Params) -> Iterator[ProfileFinding]:
    for each in fetched:
        if not each.here and (why := unreachable(each, params, each.size)):
            where = (
                "a folder for base.source"
                if each.name == "base"
                else "a file for the path in `deps` of data.dvc"
            )
            yield ProfileFinding(
                each.name,
                "stops",
                f"{each.source}: {why}",
                f"fix it and re-run; without a network, name {where}",
            )


def _weights(profile: Profile, params: Params) -> Iterator[ProfileFinding]:
    if wrong := wrong_weights(profile, params):
        yield ProfileFinding(
            "base",
            "stops",
            f"{', '.join(wrong)} of {params.base.source} in the local cache is missing, or is"
            " another file than the pinned one",
            "remove the model from the cache, `hf cache rm` or by hand, and run again",
        )


def _left(sizes: dict[str, int], root: Path) -> dict[str, int]:
    """Bytes still to be written, less what exists already: a resumed run has most of it."""
    return {what: max(0, size - _size(root / WHERE[what])) for what, size in sizes.items()}


def _size(path: Path) -> int:
    size = 0
    for folder, _, names in os.walk(path):
        size += sum((Path(folder) / name).lstat().st_size for name in names)
    return size


def _disk(
    sizes: dict[str, int], fetched: Iterable[Download], root: Path
) -> Iterator[ProfileFinding]:
    """Free space against need, per disk; DVC's cache on another disk takes all outputs again."""
    written = sum(sizes.values())
    wanted = {root: written}
    cache = _cache(root)
    for each in fetched:
        size = 0 if each.here else each.size or 0
        place = _hub_cache() if each.name == "base" else root
        wanted[place] = wanted.get(place, 0) + size
    wanted[cache] = wanted.get(cache, 0) + (0 if disk_of(cache) == disk_of(root) else written)
    for folders, size, free in find_shortages(wanted):
        yield ProfileFinding(
            "disk",
            "stops",
            f"about {format_bytes(size)} will be written (estimated), {format_bytes(free)} are free"
            f" where {folders[0].resolve()} is",
            "free some: `dvc gc --workspace` drops old results. Or work on a larger disk; HF_HOME"
            " moves the hub's cache alone",
        )


def _cache(root: Path) -> Path:
    config = configparser.ConfigParser(strict=False, interpolation=None)
    config.read([root / ".dvc/config", root / ".dvc/config.local"], encoding="utf-8")
    return root / ".dvc" / config.get("cache", "dir", fallback="cache").strip("'\"")


def _hub_cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def say_needs(profile: Profile, params: Params, machine: Machine) -> Iterator[str]:
    """What the run needs, in lines."""
    sizes = disk(params, profile, len(machine.gpus))
    yield f"disk: about {format_bytes(sum(sizes.values()))} beside the downloads: " + ", ".join(
        f"{what} {format_bytes(size)}" for what, size in sizes.items() if size
    )
    if profile.model is None or profile.scale is None:
        unknown = "corpus" if profile.model else "model"
        embedded = params.base.source == EMBEDDED
        yield (
            "GPU: none is needed"
            if embedded
            else f"GPU: no estimate, as the profile says nothing of the size of its {unknown}"
        )
        return
    name = machine.gpus[0].name if machine.gpus else ""
    wanted = needs(params, profile.model, profile.scale, name)
    parts = ", ".join(
        f"{what} {format_bytes(size)}" for what, size in wanted.memory.items() if size
    )
    yield f"GPU memory: about {format_bytes(wanted.bytes)} a training: {parts}"
    count = max(len(machine.gpus), 1)
    both = wanted.training + wanted.evaluation
    if wanted.gpu in name:
        where = f"on the {count} x {name} found, {both / count:.1f} hours"
    elif name:
        where = f"by those of an {wanted.gpu}: {name} is not in the table"
    else:
        where = f"of an {wanted.gpu}: no GPU was found here"
    yield (
        f"GPU-hours: about {both:.1f} ({wanted.training:.1f} to train, {wanted.evaluation:.1f} to"
        f" test), {where}"
    )
    yield (
        "These are estimates, right to a factor of about two: stages/profiles/needs.py says how"
        " they are made."
    )
