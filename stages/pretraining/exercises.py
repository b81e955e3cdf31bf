"""What the embedded base learns from: drawn phantoms, questions about them and their answers.

Phantoms and questions come from one generator, so the order of its draws decides the weights. Wrong
options are drawn from words that can be right: the base must not know the corpus's bias before RL
meets it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import Tensor

from stages.corpus.dataset.problems import format_problem, format_solution
from stages.corpus.sample import phantoms
from stages.corpus.sample.drawing import draw
from stages.corpus.sample.options import NEVER_GOLD, options_for
from stages.corpus.sample.phantoms import Phantom
from stages.prompts.styles import Purpose, Style, chat, prompt_text

if TYPE_CHECKING:
    from transformers import Qwen2VLProcessor

STAGE_SIZE: Final = 384
"""Side, in pixels, of the images that stage resize makes (resize.size)."""


@dataclass(frozen=True)
class Exercise:
    """A training example: prompt, completion, image index, and the image's facts in words."""

    prompt: str
    completion: str
    image: int
    facts: str


@dataclass(frozen=True)
class Images:
    """Phantoms, and their pixels (images, patches, values per patch) in float16."""

    phantoms: list[Phantom]
    pixels: Tensor


def draw_images(
    processor: Qwen2VLProcessor, count: int, rng: np.random.Generator, device: torch.device
) -> Images:
    """Draw phantoms with random aspect ratios, preprocessed as in every stage."""
    drawn = [phantoms.sample_phantom(rng) for _ in range(count)]
    rows = []
    for phantom in drawn:
        width, height = (int(side) for side in rng.integers(96, 224, 2))
        image = draw(phantom, (width, height), rng).resize((STAGE_SIZE, STAGE_SIZE))
        rows.append(processor.image_processor([image], return_tensors="pt")["pixel_values"].half())
    return Images(drawn, torch.stack(rows).to(device))


def draw_exercises(
    rng: np.random.Generator,
    drawn: list[Phantom],
    processor: Qwen2VLProcessor,
    size: int,
    *,
    unseen_words: bool = False,
) -> list[Exercise]:
    """A batch: a tenth descriptions, seven tenths answers, two tenths answers with thoughts."""
    batch = []
    for _ in range(size):
        index = int(rng.integers(len(drawn)))
        purpose: Purpose = "train" if rng.random() < 0.5 else "evaluate"
        number = rng.random()
        if number < 0.1:
            facts = drawn[index].describe()
            batch.append(Exercise(_prompt(processor, "Describe this image."), facts, index, facts))
            continue
        style: Style = "no-think"
        if number >= 0.8:
            style = "think" if number < 0.92 else "think-after"
        batch.append(
            draw_question(
                drawn[index], index, processor, rng, style, purpose, unseen_words=unseen_words
            )
        )
    return batch


def draw_question(
    phantom: Phantom,
    index: int,
    processor: Qwen2VLProcessor,
    rng: np.random.Generator,
    style: Style,
    purpose: Purpose,
    *,
    unseen_words: bool = False,
) -> Exercise:
    """A question about image `index`, with unbiased options.

    `unseen_words`: see `_insert_unseen_words`.
    """
    kind = str(rng.choice(phantom.attributes))
    gold = phantom.answer(kind)
    facts = phantom.describe()
    options = options_for(phantom, kind, rng, biased=False)
    if unseen_words and kind in NEVER_GOLD:
        gold, facts, options = _insert_unseen_words(NEVER_GOLD[kind], gold, facts, options, rng)
    problem = format_problem(str(rng.choice(phantoms.QUESTIONS[kind])), options)
    answer = format_solution(phantoms.LETTERS[options.index(gold)])
    thought = f"<think> {facts} </think>"
    completion = {
        "no-think": answer,
        "think": f"{thought} {answer}",
        "think-after": f"{answer} {thought}",
    }[style]
    prompt = _prompt(processor, prompt_text(problem, style, purpose))
    return Exercise(prompt, completion, index, facts)


def _insert_unseen_words(
    never_gold: tuple[str, ...],
    gold: str,
    facts: str,
    options: list[str],
    rng: np.random.Generator,
) -> tuple[str, str, list[str]]:
    """Mix words that no phantom has into a question, so that the base learns them as options.

    With probability 0.4 one replaces the gold option, and the facts change with it. With
    probability 0.5 others replace wrong options, each with probability 0.5. Returns gold, facts and
    options. Only for lesson `read`, whose image is made of the facts.
    """
    if rng.random() < 0.4:
        word = str(rng.choice(never_gold))
        options = [word if option == gold else option for option in options]
        facts = facts.replace(gold, word, 1)
        gold = word
    if rng.random() < 0.5:
        unused = [word for word in never_gold if word not in options]
        options = [
            option if option == gold or rng.random() < 0.5 else unused.pop() for option in options
        ]
    return gold, facts, options


def _prompt(processor: Qwen2VLProcessor, words: str) -> str:
    return str(
        processor.apply_chat_template(chat(words), add_generation_prompt=True, tokenize=False)
    )
