"""Parts of the embedded base: a real but tiny Qwen2-VL with tokenizer and image processor.

Nothing is simulated: the classes are transformers' own, only the sizes differ from Qwen2-VL-2B's.
An image is scaled to 192x192 by the processor's own pixel limit and cut into patches of 24 pixels,
so it costs 16 tokens in the prompt (Qwen2-VL-2B: 384x384, patches of 14, 196 tokens).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from stages.corpus.sample import phantoms
from stages.corpus.sample.options import NEVER_GOLD
from stages.prompts.styles import PROMPTS

PATCH_SIZE = 24
"""Side of a patch, in pixels."""
MERGE_SIZE = 2
"""Patches a side that are merged into one token."""
IMAGE_SIDE = 192
"""Side of the largest image, in pixels."""
IMAGE_TOKENS = (IMAGE_SIDE // PATCH_SIZE // MERGE_SIZE) ** 2
HIDDEN = 128
HEAD = 32
"""Width of an attention head; M-RoPE's sections (4 + 6 + 6) are half of it."""
VOCABULARY = 1500
_REPEATS = 40
"""Times each text is given to the tokenizer's training, so that all its pairs are merged."""

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""Those of Qwen2-VL, in its order."""

PRE_TOKENIZER = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen2's word pattern: a word includes one sign before it, so ")Cyst" can be one token."""

CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system'"
    " %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{"
    " message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}{% else %}{%"
    " for content in message['content'] %}{% if content['type'] == 'image'"
    " %}<|vision_start|><|image_pad|><|vision_end|>{% elif content['type'] == 'video'"
    " %}<|vision_start|><|video_pad|><|vision_end|>{% elif content['type'] == 'text' %}{{"
    " content['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if"
    " add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Formats conversations as Qwen2-VL's template does."""


def _texts() -> Iterator[str]:
    """Texts to train the tokenizer on: every word of phantoms and prompts, in context."""
    words = {*phantoms.GRADES, *phantoms.SIDES, *phantoms.COUNTS, phantoms.NORMAL}
    words.update(chain.from_iterable(NEVER_GOLD.values()))
    for style in phantoms.STYLES.values():
        words.update((style.name, *style.anatomies, *style.diseases))
    options = [f" A){word}, B){word}, C){word}, D){word} {word} {word}" for word in sorted(words)]
    questions = list(chain.from_iterable(phantoms.QUESTIONS.values()))
    prompts = list(chain.from_iterable(each.values() for each in PROMPTS.values()))
    answers = [
        f"<think> x </think> <answer> {letter} </answer>\nsystem\nYou are a helpful"
        " assistant.\nuser\nassistant\n"
        for letter in phantoms.LETTERS
    ]
    for texts in (options, questions, prompts, answers):
        yield from texts * _REPEATS


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE tokenizer with Qwen's word pattern, special tokens and chat template.

    Any text round-trips.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE_TOKENIZER), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        min_frequency=2,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=4096,
        padding_side="left",
    )


def build_processor(tokenizer: PreTrainedTokenizerFast) -> Qwen2VLProcessor:
    """Tokenizer and image processor; images are at most 192x192 pixels, 64 patches, 16 tokens."""
    limits = {"min_pixels": (PATCH_SIZE * MERGE_SIZE) ** 2, "max_pixels": IMAGE_SIDE**2}
    patches = {"patch_size": PATCH_SIZE, "merge_size": MERGE_SIZE, "temporal_patch_size": 1}
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(**limits, **patches),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**limits, **patches),
        chat_template=CHAT_TEMPLATE,
    )


def build_model(
    tokenizer: PreTrainedTokenizerFast, seed: int, width: int = HIDDEN
) -> Qwen2VLForConditionalGeneration:
    """Untrained Qwen2-VL of 1.9 million parameters (at width 128), with tied embeddings.

    Matrices have standard deviation 1/sqrt(fan-in) and embeddings 0.3: with transformers' own 0.02
    a model this narrow stays at chance for hundreds of steps.
    """
    token = {name: tokenizer.convert_tokens_to_ids(name) for name in SPECIAL_TOKENS}
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": width,
            "intermediate_size": 3 * width,
            "num_hidden_layers": 4,
            "num_attention_heads": width // HEAD,
            "num_key_value_heads": width // HEAD // 2,
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [4, 6, 6],
            },
            "bos_token_id": token["<|endoftext|>"],
            "eos_token_id": token["<|im_end|>"],
            "pad_token_id": token["<|endoftext|>"],
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": 2,
            "embed_dim": width,
            "hidden_size": width,
            "num_heads": width // HEAD,
            "mlp_ratio": 4,
            "patch_size": PATCH_SIZE,
            "spatial_merge_size": MERGE_SIZE,
            "temporal_patch_size": 1,
        },
        image_token_id=token["<|image_pad|>"],
        video_token_id=token["<|video_pad|>"],
        vision_start_token_id=token["<|vision_start|>"],
        vision_end_token_id=token["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    model = Qwen2VLForConditionalGeneration(config).float()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv3d):
                fan_in = module.weight[0].numel()
                module.weight.copy_(
                    torch.randn(module.weight.shape, generator=generator) / math.sqrt(fan_in)
                )
                if module.bias is not None:
                    module.bias.zero_()
        # last: the head, a Linear drawn above, is the same tensor
        embedding = model.get_input_embeddings().weight
        embedding.copy_(torch.randn(embedding.shape, generator=generator) * 0.3)
    model.generation_config = GenerationConfig(
        bos_token_id=token["<|endoftext|>"],
        eos_token_id=[token["<|im_end|>"], token["<|endoftext|>"]],
        pad_token_id=token["<|endoftext|>"],
    )
    return model
