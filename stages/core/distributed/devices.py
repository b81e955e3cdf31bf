"""Preflight: fail fast if the assigned GPUs are unusable."""

from __future__ import annotations

import os

from stages.core.errors import InputError


def check_gpus(bf16_setting: str | None) -> None:
    """Raise InputError, with a remedy, if the promised GPUs are missing, broken or lack bfloat16.

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
