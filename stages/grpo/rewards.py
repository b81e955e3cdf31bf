"""Med-R1's accuracy and format rewards, as TRL calls them: lists in, one float per completion out.

Both are stricter than the released code where that can be gamed: its format check accepts any
number of answer tags (`fullmatch` of `<answer>.*?</answer>` with DOTALL), its accuracy check takes
the first of several.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stages.answers.extraction import extract_answer
from stages.answers.formats import FORMATS
from stages.corpus.dataset.problems import letter_options
from stages.prompts.styles import Style

Reward = Callable[..., list[float]]


def accuracy_reward(
    completions: list[Any], gold: list[str], options: list[list[str]], **_: Any
) -> list[float]:
    """1.0 if the completion's answer is the gold letter, else 0.0.

    `options`: the option texts of each question.
    """
    return [
        float(extract_answer(_text(completion), letter_options(texts)) == letter)
        for completion, letter, texts in zip(completions, gold, options, strict=True)
    ]


def format_reward(style: Style) -> Reward:
    """A reward that is 1.0 if a completion has exactly the blocks of `style`, else 0.0."""

    def matches_style(completions: list[Any], **_: Any) -> list[float]:
        return [
            float(FORMATS[style].fullmatch(_text(completion)) is not None)
            for completion in completions
        ]

    return matches_style


def reward_functions(names: list[str], style: Style) -> list[Reward]:
    """The rewards of params.yaml by name, in order; TRL logs each under its `__name__`."""
    functions: dict[str, Reward] = {"accuracy": accuracy_reward, "format": format_reward(style)}
    for name, function in functions.items():
        function.__name__ = name
    return [functions[name] for name in names]


def _text(completion: Any) -> str:
    """The text of a completion: a string, or a chat with one assistant turn."""
    return completion if isinstance(completion, str) else str(completion[0]["content"])
