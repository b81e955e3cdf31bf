"""Which attention each part of a policy computes with, and whether it can here.

flash-attn takes the patches of many images in one call, where transformers' other ways loop over
images; but it knows no mask of four dimensions, which the rows of a shared prompt need in the
language model. So the two parts may have different kinds.
"""

from __future__ import annotations

import importlib
import sys
from importlib import metadata
from typing import Final

import torch

from stages.core.errors import InputError
from stages.core.params import Towers

FLASH: Final = "flash_attention_2"


def choose_attention(
    wanted: str | Towers, dtype: torch.dtype, *, custom_masks: bool
) -> dict[str, str]:
    """The `attn_implementation` of transformers for language model and vision tower.

    `custom_masks`: the language model is run with masks of our own, and so by sdpa where flash-attn
    was asked for. Raises InputError, with what to do, if flash-attn is asked for by name and cannot
    be had; `auto` then says why, and takes sdpa.
    """
    language, vision = _towers(wanted)
    if custom_masks and language == FLASH:
        language = "sdpa"
    if vision == "auto":
        missing = flash_unavailable(dtype)
        if missing and _installed():
            print(
                f"base.attention auto: sdpa for the vision tower, because {missing}",
                file=sys.stderr,
            )
        vision = "sdpa" if missing else FLASH
    if FLASH in (language, vision) and (missing := flash_unavailable(dtype)):
        raise InputError(f"base.attention {FLASH}: {missing}; or set it to auto or sdpa")
    return {"text_config": language, "vision_config": vision}


def flash_unavailable(dtype: torch.dtype) -> str | None:
    """Why flash-attn cannot be used here, with what to do; None if it can."""
    version = _installed()
    if version is None:
        return "flash-attn is not installed: `pip install --no-build-isolation '.[gpu]'`"
    try:
        importlib.import_module("flash_attn")
    except (ImportError, OSError) as error:  # an undefined symbol, or a library of another CUDA
        why = (str(error).splitlines() or [repr(error)])[0]
        return (
            f"flash-attn {version} was built for another torch than {torch.__version__} ({why}):"
            " build it again with `pip install --force-reinstall --no-deps --no-build-isolation"
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
        kept = str(dtype).removeprefix("torch.")
        return (
            f"flash-attn computes in 16 bits, and weights are opened in {kept} (base.dtype, and"
            " evaluate.dtype for tests)"
        )
    return None


def _towers(wanted: str | Towers) -> tuple[str, str]:
    if isinstance(wanted, Towers):
        return wanted.language, wanted.vision
    return ("sdpa", "auto") if wanted == "auto" else (wanted, wanted)


def _installed() -> str | None:
    try:
        return metadata.version("flash-attn")
    except metadata.PackageNotFoundError:
        return None
