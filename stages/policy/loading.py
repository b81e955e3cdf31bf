"""Load policies from Hugging Face directories: safetensors only, no remote code."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

from stages.core.errors import InputError
from stages.core.params import Towers
from stages.policy.attention import choose_attention
from stages.policy.weights import WEIGHTS, missing_parts

NEEDED = ("config.json", "tokenizer_config.json")


def check_policy_files(folder: Path, setting: str = "base.source") -> None:
    """Raise InputError unless the folder is a checkpoint with complete safetensors."""
    missing = [name for name in NEEDED if not (folder / name).is_file()]
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
            f"{folder}: {'; '.join(problems)}. Copy or fetch the model anew, or check {setting} in"
            " params.yaml"
        )


def load_processor(folder: Path) -> ProcessorMixin:
    """The checkpoint's processor, padding on the left as generation needs it."""
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    processor.tokenizer.padding_side = "left"
    return processor


def load_policy(
    folder: Path, *, dtype: str, attention: str | Towers, custom_masks: bool = True
) -> PreTrainedModel:
    """Load a checkpoint in `dtype` ("float32", "bfloat16") with the attention of `base.attention`.

    `custom_masks`: rows will have masks of our own, as those of a shared prompt and of evaluation
    have. InputError if its weights lack a tensor; one that is tied to another need not be stored.
    """
    kinds = choose_attention(attention, getattr(torch, dtype), custom_masks=custom_masks)
    # a bar for each of a hundred tensors, and what the libraries warn each other of, hide what a
    # stage has to say
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    policy, found = AutoModelForImageTextToText.from_pretrained(
        folder,
        dtype=getattr(torch, dtype),
        attn_implementation=kinds,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    # transformers would draw them at random and go on
    if lacking := sorted(found["missing_keys"]):
        raise InputError(
            f"{folder}: its weights lack {len(lacking)} tensors, {lacking[0]} among them: it is"
            " another model's, or damaged"
        )
    return policy


def vision_token_ids(processor: Any) -> list[int]:
    """Ids of image placeholder tokens, which must not be sampled into completions."""
    tokenizer = processor.tokenizer
    names = [
        token
        for token in tokenizer.get_added_vocab()
        if token.startswith("<|") and token.endswith(("_pad|>", "vision_start|>", "vision_end|>"))
    ]
    return sorted(tokenizer.convert_tokens_to_ids(names))


def set_max_pixels(processor: Any, max_pixels: int) -> None:
    """Make the processor scale larger images down to `max_pixels` pixels."""
    image_processor = processor.image_processor
    image_processor.size = {**dict(image_processor.size), "longest_edge": max_pixels}
