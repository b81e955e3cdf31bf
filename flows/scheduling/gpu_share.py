"""Whether several trainings fit on one GPU, by the estimate of the profile that is set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from stages.core import layout
from stages.core.disk_space import find_shortages, tree_size
from stages.core.errors import InputError
from stages.core.machine import format_bytes, query_gpus
from stages.core.params import Params, load_params
from stages.profiles.needs import OUTPUT_PATHS, STATES, disk, memory
from stages.profiles.schema import FOLDER, Profile, load_profile
from stages.profiles.shown import ONE
from stages.profiles.splice import reset
from stages.profiles.times import shown_images


def check_shares(root: Path, gpus: Sequence[str], slots_per_gpu: int) -> None:
    """Raise InputError if a training does not fit into its share of the smallest of these GPUs.

    Or if the disk has no room for the states of all trainings at a time. Nothing is refused if the
    size of the model is unknown, or the memory of the GPUs.
    """
    total = smallest_memory(gpus)
    needed = training_memory(root)
    if total is None or needed is None or needed * slots_per_gpu <= total:
        _check_disk(root, slots_per_gpu * len(gpus))
        return
    fitting = total // needed
    remedy = f"use at most {fitting}" if fitting else "one alone does not fit either"
    raise InputError(
        f"{slots_per_gpu} slots per GPU: a training takes about {format_bytes(needed)} of GPU"
        f" memory (estimated), and 1/{slots_per_gpu} of {format_bytes(total)} is"
        f" {format_bytes(total / slots_per_gpu)}: {remedy}, or lower what it needs, with"
        " grpo.fused_head, which takes no more passes, or grpo.prompts_per_device (raise"
        " grpo.gradient_accumulation_steps in proportion); `med-r1 profile` prints the estimate"
    )


def _check_disk(root: Path, trainings: int) -> None:
    """InputError if the states of so many trainings at a time do not fit on the disk."""
    known = known_profile(root)
    if known is None:
        return
    params, profile = known
    folder = root / OUTPUT_PATHS[STATES]
    at_a_time = min(trainings, len(params.checkpoints))
    missing = disk(params, profile, at_a_time).get(STATES, 0) - (tree_size(folder) or 0)
    for _, needed, free in find_shortages({folder: max(missing, 0)}):
        raise InputError(
            f"{at_a_time} trainings at a time write {format_bytes(needed)} of states to resume from"
            f" (estimated), and {format_bytes(free)} are free on the disk of {folder}: use fewer"
            " slots per GPU, or free some"
        )


def training_memory(root: Path) -> int | None:
    """Bytes of GPU memory of the largest training; None where no profile knows the model."""
    known = known_profile(root)
    if known is None:
        return None
    params, profile = known
    assert profile.model
    images = ONE.most if profile.scale is None else shown_images(params, profile.scale).most
    variants = _variants(params)
    return max(sum(memory(each, profile.model, images).values()) for each in variants)


def known_profile(root: Path) -> tuple[Params, Profile] | None:
    """The settings and the profile that is set, if it knows the model; else None."""
    path = root / layout.PARAMS
    if not path.is_file():
        return None
    _, name = reset(path.read_text(encoding="utf-8"), path)
    if name is None:
        return None
    params = load_params(path)
    profile = _profile(root, name, params)
    return None if profile is None else (params, profile)


def _profile(root: Path, name: str, params: Params) -> Profile | None:
    """The profile, if it has the sizes of the base that is set."""
    own = root / name
    try:
        _, profile = load_profile(str(own) if own.is_file() else name, root / FOLDER)
    except InputError:  # the file of the profile is gone since
        return None
    base = profile.params.get("base", {})
    is_same = (base.get("source"), base.get("revision")) == (
        params.base.source,
        params.base.revision,
    )
    return profile if is_same and profile.model else None


def _variants(params: Params) -> Iterator[Params]:
    """The settings of each checkpoint that GRPO trains, and the general ones."""
    yield params
    for name, checkpoint in params.checkpoints.items():
        if checkpoint.method == "grpo":
            yield params.model_copy(update={"grpo": params.grpo_for(name)})


def smallest_memory(gpus: Sequence[str]) -> int | None:
    """Bytes of the smallest of these GPUs, from nvidia-smi; None if it does not know them."""
    lines = query_gpus("memory.total", gpus=gpus, units=False)
    try:
        return min(map(int, lines)) * 2**20
    except ValueError:  # no line, or a GPU that does not say: [N/A]
        return None
