"""Preflight: fail fast if the assigned GPUs are unusable; keep to a share of their memory."""

from __future__ import annotations

import os
from typing import Final

from stages.core.errors import InputError

SLOTS_PER_GPU: Final = "MED_R1_SLOTS_PER_GPU"
"""Environment variable: number of stages that share a GPU; each may use so much of its memory.

It changes no result: an evaluation's batch size follows from the memory that it finds, with or
without a share.
"""


def check_gpus(bf16_setting: str | None) -> None:
    """Raise InputError, with a remedy, if the promised GPUs are missing, broken or lack bfloat16.

    Also limits this process to its share of the GPU's memory, if `SLOTS_PER_GPU` says so.

    `bf16_setting`: the setting that needs bfloat16, named in the error; None if none does. Without
    a promised or visible GPU nothing is checked: the CPU is used.
    """
    import torch

    promised = [
        each
        for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        if each.strip() not in ("", "-1", "NoDevFiles")
    ]
    if not torch.cuda.is_available():
        if promised:
            built = (
                f"built for CUDA {torch.version.cuda}"
                if torch.version.cuda
                else "built without CUDA"
            )
            raise InputError(
                f"CUDA_VISIBLE_DEVICES={','.join(promised)}, but torch {torch.__version__},"
                f" {built}, sees no GPU: `nvidia-smi` shows which are there and the newest CUDA"
                " that the driver knows. Install a newer driver or a torch for that CUDA, or set"
                " CUDA_VISIBLE_DEVICES= to compute on the CPU"
            )
        return
    count = torch.cuda.device_count()
    if len(promised) > count:
        raise InputError(
            f"CUDA_VISIBLE_DEVICES={','.join(promised)} names {len(promised)} GPUs, but torch sees"
            f" {count}: `nvidia-smi -L` lists them"
        )
    number = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", number)
    try:
        name = torch.cuda.get_device_name(device)
        torch.ones(1, device=device).add_(1).item()
    except RuntimeError as error:
        raise InputError(
            f"GPU {number} cannot be used for computation ({str(error).splitlines()[0]}); torch"
            f" {torch.__version__} was built for CUDA {torch.version.cuda} and"
            f" {' '.join(torch.cuda.get_arch_list())}: install one for this GPU and driver, and see"
            " with `nvidia-smi` that nobody else has it"
        ) from error
    if bf16_setting and torch.cuda.get_device_capability(device) < (8, 0):
        raise InputError(
            f"{bf16_setting}: {name} has no bfloat16 (it takes compute capability 8.0): compute"
            " in float32"
        )
    if (number_of_slots := slots_per_gpu()) > 1:
        torch.cuda.set_per_process_memory_fraction(1 / number_of_slots, device)


def slots_per_gpu() -> int:
    """Number of stages that share a GPU, from `SLOTS_PER_GPU`; InputError if it is not positive."""
    value = os.environ.get(SLOTS_PER_GPU, "1")
    if not value.isdecimal() or not int(value):
        raise InputError(
            f"{SLOTS_PER_GPU}={value!r} is not a number of stages: set it to 1 or more, or unset it"
            " if a stage has its GPUs for itself"
        )
    return int(value)
