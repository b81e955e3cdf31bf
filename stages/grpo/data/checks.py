"""Checks of a training before it starts: enough questions, prompts and completions that fit."""

from __future__ import annotations

from typing import Any

from PIL import Image
from transformers import PreTrainedModel

from stages.answers.formats import SHORTEST
from stages.core.distributed.launch import processes
from stages.core.errors import InputError
from stages.core.params import Grpo
from stages.policy.loading import vision_token_ids
from stages.prompts.styles import Style, chat


def check_batch(grpo: Grpo, prompts: int, run_name: str) -> None:
    """Raise InputError if there are fewer prompts than one optimiser step takes."""
    batch = grpo.prompts_per_device * grpo.gradient_accumulation_steps * processes()
    if prompts < batch:
        shared = f" x {processes()} processes" if processes() > 1 else ""
        raise InputError(
            f"{run_name}: {prompts} training questions are fewer than one step takes ({batch} ="
            f" grpo.prompts_per_device x grpo.gradient_accumulation_steps{shared}): lower these in"
            " params.yaml or add questions"
        )


def check_prompts(
    questions: list[str],
    image_counts: list[int],
    image: Image.Image,
    processor: Any,
    policy: PreTrainedModel,
    grpo: Grpo,
) -> None:
    """Raise InputError for a prompt that is too long or contains an image token.

    `questions`: the words of each prompt, context included; `image_counts`: its images. Truncating
    a prompt would truncate its image tokens. `image` is any of the dataset's: the resize stage gave
    all images one size, so each adds as many tokens.
    """
    placeholders = processor.tokenizer.convert_ids_to_tokens(vision_token_ids(processor))
    for question in questions:
        if contained := [token for token in placeholders if token in question]:
            place = question.index(contained[0])
            raise InputError(
                f"the question {question[:80]!r} contains {contained[0]}, which stands for an"
                f" image, behind {question[max(place - 30, 0) : place]!r}: remove it from the"
                " record's question or context"
            )
    lengths = _prompt_lengths(questions, image_counts, image, processor)
    longest = max(range(len(lengths)), key=lengths.__getitem__)
    count = image_counts[longest]
    several = f" with {count} images" if count > 1 else ""
    longest_prompt = (
        f"the prompt of {questions[longest][:80]!r}{several} takes {lengths[longest]} tokens"
    )
    smaller = "volume.frames, volume.max_images or base.max_pixels"
    if count == 1:
        smaller = "base.max_pixels"
    if lengths[longest] > grpo.max_prompt_length:
        raise InputError(
            f"{longest_prompt}, more than grpo.max_prompt_length = {grpo.max_prompt_length}: raise"
            f" it, or lower {smaller}"
        )
    context = policy.config.get_text_config().max_position_embeddings
    if lengths[longest] + grpo.max_completion_length > context:
        separator = ", " if count > 1 else " or "
        raise InputError(
            f"{longest_prompt} and a completion up to {grpo.max_completion_length}, more than the"
            f" model's context of {context}: lower grpo.max_completion_length{separator}{smaller}"
        )


def _prompt_lengths(
    questions: list[str], image_counts: list[int], image: Image.Image, processor: Any
) -> list[int]:
    """Tokens of each prompt with its images, all as large as `image`, which alone is processed."""
    texts = [
        processor.apply_chat_template(
            chat(question, images=count), add_generation_prompt=True, tokenize=False
        )
        for question, count in zip(questions, image_counts, strict=True)
    ]
    alone = processor.apply_chat_template(
        chat(questions[0]), add_generation_prompt=True, tokenize=False
    )
    # an image adds as many tokens to every text as to this one
    with_image = processor(text=[alone], images=[image])["input_ids"][0]
    extra = len(with_image) - len(processor.tokenizer(alone)["input_ids"])
    lengths = map(len, processor.tokenizer(texts)["input_ids"])
    return [length + count * extra for length, count in zip(lengths, image_counts, strict=True)]


def check_completion_length(processor: Any, grpo: Grpo, style: Style) -> None:
    """Raise InputError if the shortest completion in the style's form is longer than allowed."""
    shortest = processor.tokenizer(SHORTEST[style])["input_ids"]
    needed = len(shortest) + 1  # and the end of the turn
    if needed > grpo.max_completion_length:
        raise InputError(
            f"grpo.max_completion_length = {grpo.max_completion_length}: with prompt.style {style}"
            f" the shortest completion, {SHORTEST[style]!r}, takes {needed} tokens, so none would"
            " ever get the format reward: raise it"
        )
