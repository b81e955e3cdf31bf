"""Attention implementation of each part of a policy, and whether it is usable on this machine.

flash-attn takes the patches of many images in one call, transformers' other implementations loop
over images, and `sdpa_batched` (stages.policy.vision_attention) takes those of one size together.
flash-attn does not support 4-D masks, which shared prompts need in the language model. So language
model and vision tower may use different implementations.
"""

from __future__ import annotations

import importlib
import sys
from importlib import metadata
from typing import Final

import torch

from stages.core.errors import InputError
from stages.core.params import Towers
from stages.policy.vision_attention import SETTING as SDPA_BATCHED

FLASH: Final = "flash_attention_2"


def choose_attention(
    wanted: str | Towers, dtype: torch.dtype, *, custom_masks: bool
) -> dict[str, str]:
    """Choose the implementations: {"text_config": ..., "vision_config": ...}.

    `custom_masks`: the language model is run with 4-D masks, so sdpa always replaces flash-attn
    there. Raises InputError, with the remedy, if flash-attn is set by name for a part that would
    use it and cannot; `auto` prints the reason and uses sdpa.
    """
    language, vision = _per_tower(wanted)
    if custom_masks and language == FLASH:
        language = "sdpa"
    if vision == "auto":
        reason = flash_unavailable(dtype)
        if reason and _flash_version():
            print(
                f"base.attention auto: {SDPA_BATCHED} for the vision tower, because {reason}",
                file=sys.stderr,
            )
        vision = SDPA_BATCHED if reason else FLASH
    if FLASH in (language, vision) and (reason := flash_unavailable(dtype)):
        raise InputError(f"base.attention {FLASH}: {reason}. Or set base.attention to auto or sdpa")
    return {"text_config": language, "vision_config": vision}


def avoid_cudnn() -> None:
    """Let `sdpa` never take cuDNN's attention, which torch prefers on Hopper and Blackwell.

    It plans anew for each shape, and here nearly every pass has another one; and with a mask its
    backward has returned NaN for some lengths (pytorch issue 196678).
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def flash_unavailable(dtype: torch.dtype) -> str | None:
    """Why flash-attn cannot be used here, with the remedy; None if it can."""
    version = _flash_version()
    if version is None:
        return "flash-attn is not installed: `pip install --no-build-isolation '.[gpu]'`"
    try:
        importlib.import_module("flash_attn")
    except (ImportError, OSError) as error:  # an undefined symbol, or a library of another CUDA
        cause = (str(error).splitlines() or [repr(error)])[0]
        return (
            f"flash-attn {version} was built for another torch than {torch.__version__} ({cause}):"
            " rebuild it with `pip install --force-reinstall --no-deps --no-build-isolation"
            " --no-cache-dir flash-attn`"
        )
    if not torch.cuda.is_available():
        return "flash-attn needs a GPU, and torch sees none"
    if torch.cuda.get_device_capability() < (8, 0):
        return (
            "flash-attn needs a GPU of compute capability 8.0 (Ampere), and"
            f" {torch.cuda.get_device_name()} has less"
        )
    if dtype not in (torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        return (
            f"flash-attn supports 16-bit types only, and weights are loaded in {name} (base.dtype,"
            " and evaluate.dtype for tests)"
        )
    return None


def _per_tower(wanted: str | Towers) -> tuple[str, str]:
    if isinstance(wanted, Towers):
        return wanted.language, wanted.vision
    if wanted == "auto":
        return "sdpa", "auto"
    return wanted, SDPA_BATCHED if wanted == "sdpa" else wanted


def _flash_version() -> str | None:
    try:
        return metadata.version("flash-attn")
    except metadata.PackageNotFoundError:
        return None
