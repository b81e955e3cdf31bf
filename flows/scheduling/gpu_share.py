"""Whether several trainings fit on one GPU, by the estimate of the profile that is set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from stages.core import layout
from stages.core.errors import InputError
from stages.core.machine import format_bytes, query_gpus
from stages.core.params import Params, load_params
from stages.profiles.needs import memory
from stages.profiles.schema import FOLDER, Model, load_profile
from stages.profiles.splice import reset


def check_shares(root: Path, gpus: Sequence[str], slots_per_gpu: int) -> None:
    """Raise InputError if a training does not fit into its share of the smallest of these GPUs.

    Nothing is refused if the size of the model is unknown, or the memory of the GPUs.
    """
    total = smallest_memory(gpus)
    needed = training_memory(root)
    if total is None or needed is None or needed * slots_per_gpu <= total:
        return
    fitting = total // needed
    remedy = f"use at most {fitting}" if fitting else "one alone does not fit either"
    raise InputError(
        f"{slots_per_gpu} slots per GPU: a training takes about {format_bytes(needed)} of GPU"
        f" memory (estimated), and 1/{slots_per_gpu} of {format_bytes(total)} is"
        f" {format_bytes(total / slots_per_gpu)}: {remedy}, or lower what it needs, such as"
        " grpo.prompts_per_device (raise grpo.gradient_accumulation_steps in proportion);"
        " `med-r1 profile` prints the estimate"
    )


def training_memory(root: Path) -> int | None:
    """Bytes of GPU memory of the largest training; None where no profile knows the model."""
    path = root / layout.PARAMS
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8")
    _, name = reset(text, path)
    if name is None:
        return None
    params = load_params(path)
    model = _model(root, name, params)
    if model is None:
        return None
    return max(sum(memory(each, model).values()) for each in _variants(params))


def _model(root: Path, name: str, params: Params) -> Model | None:
    """Sizes of the base, if it still is that of the profile."""
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
    return profile.model if is_same else None


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
