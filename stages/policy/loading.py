"""Loading a policy from a Hugging Face directory: safetensors only, no remote code."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

from stages.core.errors import InputError
from stages.core.params import Towers
from stages.policy.attention import avoid_cudnn, choose_attention
from stages.policy.vision_attention import SETTING, batch_images, loadable
from stages.policy.weights import WEIGHTS, missing_parts

_REQUIRED = ("config.json", "tokenizer_config.json")


def check_policy_files(folder: Path, setting: str = "base.source") -> None:
    """Raise InputError, naming `setting`, unless a folder is a complete safetensors checkpoint."""
    missing = [name for name in _REQUIRED if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"{folder} is not a Hugging Face checkpoint: {', '.join(missing)} missing. Check"
            f" {setting} in params.yaml"
        )
    if not any(folder.glob(WEIGHTS)):
        raise InputError(
            f"{folder} has no {WEIGHTS} weights; pickled weights (*.bin, *.pt) are never loaded:"
            " convert them first"
        )
    if problems := missing_parts(folder):
        raise InputError(
            f"{folder}: {'; '.join(problems)}. Copy or download the model again, or check {setting}"
            " in params.yaml"
        )


def load_processor(folder: Path) -> ProcessorMixin:
    """Load the checkpoint's processor, set to left padding, which generation needs."""
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    processor.tokenizer.padding_side = "left"
    return processor


def load_policy(
    folder: Path, *, dtype: str, attention: str | Towers, custom_masks: bool = True
) -> PreTrainedModel:
    """Load the checkpoint's model in `dtype` ("float32", "bfloat16").

    Args:
        folder: A Hugging Face directory (`check_policy_files`).
        dtype: Name of a torch dtype.
        attention: As `base.attention`.
        custom_masks: The language model will be run with 4-D masks, as for shared prompts and
            evaluation (see `choose_attention`).

    Raises InputError if its weights lack a tensor (tied tensors need not be stored).
    """
    implementations = choose_attention(attention, getattr(torch, dtype), custom_masks=custom_masks)
    avoid_cudnn()
    # progress bars and warnings of the libraries would hide the stage's own output
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    policy, loading_info = AutoModelForImageTextToText.from_pretrained(
        folder,
        dtype=getattr(torch, dtype),
        attn_implementation=loadable(implementations),
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    # transformers only warns, and initialises missing tensors at random
    if missing := sorted(loading_info["missing_keys"]):
        raise InputError(
            f"{folder}: its weights lack {len(missing)} tensors, {missing[0]} among them: they"
            " belong to another model, or are corrupt"
        )
    if implementations["vision_config"] == SETTING:
        batch_images(policy)
    return policy


def vision_token_ids(processor: Any) -> list[int]:
    """Ids of the tokens that stand for images and videos, sorted.

    Sampling one would put a placeholder without an image into a completion.
    """
    tokenizer = processor.tokenizer
    names = [
        token
        for token in tokenizer.get_added_vocab()
        if re.fullmatch(r"<\|(image_pad|video_pad|vision_(pad|start|end))\|>", token)
    ]
    return sorted(tokenizer.convert_tokens_to_ids(names))


def set_max_pixels(processor: Any, max_pixels: int) -> None:
    """Make the processor scale larger images down to `max_pixels` pixels."""
    image_processor = processor.image_processor
    # the processors of Qwen call the largest area, in pixels, `longest_edge`
    image_processor.size = {**dict(image_processor.size), "longest_edge": max_pixels}
