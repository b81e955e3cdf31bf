"""Prompt texts by answer style: Med-R1's for training, evaluation and zero-shot use.

Med-R1 words training and evaluation differently; both are as published (arXiv 2503.13939, released
code). The think-after prompt was not released: ours is the think prompt with its two tasks swapped.
"""

from __future__ import annotations

from typing import Any, Final, Literal

Style = Literal["think", "no-think", "think-after"]
Purpose = Literal["train", "evaluate"]

PROMPTS: Final[dict[Purpose, dict[Style, str]]] = {
    "train": {
        "think": (
            "{problem} Your task: 1. Think through the question step by step, enclose your"
            " reasoning process in <think>...</think> tags. 2. Then provide the correct"
            " single-letter choice (A, B, C, D,...) inside <answer>...</answer> tags. 3. No extra"
            " information or text outside of these tags."
        ),
        "no-think": (
            "{problem} Your task: 1. Provide the correct single-letter choice (A, B, C, D,...)"
            " inside <answer>...</answer> tags. 2. No extra information or text outside of this"
            " tag."
        ),
        "think-after": (
            "{problem} Your task: 1. Provide the correct single-letter choice (A, B, C, D,...)"
            " inside <answer>...</answer> tags. 2. Then explain your choice step by step, enclose"
            " your reasoning process in <think>...</think> tags. 3. No extra information or text"
            " outside of these tags."
        ),
    },
    "evaluate": {
        "think": (
            "{problem} Think through the question step by step in <think>...</think> tags. Then"
            " provide the correct single-letter choice (A, B, C, D,...) inside <answer>...</answer>"
            " tags."
        ),
        "no-think": (
            "{problem} Provide the correct single-letter choice (A, B, C, D,...) inside"
            " <answer>...</answer> tags."
        ),
        "think-after": (
            "{problem} Provide the correct single-letter choice (A, B, C, D,...) inside"
            " <answer>...</answer> tags. Then explain your choice step by step in"
            " <think>...</think> tags."
        ),
    },
}


def prompt_text(problem: str, style: Style, purpose: Purpose, context: str | None = None) -> str:
    """The user's prompt for one problem ("question A)..., B)...") in one style.

    `context`: what is known of the patient, which stands before the question.
    """
    words = PROMPTS[purpose][style].format_map({"problem": problem})
    return f"Context: {context} {words}" if context else words


def chat(words: str, images: int = 1) -> list[dict[str, Any]]:
    """One user turn: the images, then the words (Med-R1's order); no system turn is passed.

    Several images are numbered as Qwen2-VL's own template does on request ("Picture 1: ").
    """
    parts: list[dict[str, Any]] = []
    for number in range(1, images + 1):
        if images > 1:
            parts.append({"type": "text", "text": f"Picture {number}: "})
        parts.append({"type": "image"})
    return [{"role": "user", "content": [*parts, {"type": "text", "text": words}]}]
