"""The published text of a question: `question A)..., B)...` and `<answer> C </answer>`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import ascii_uppercase
from typing import Final, TypeGuard

LETTERS: Final = ascii_uppercase
"""Letters of the options: a question has at least 2 and at most as many as there are letters."""

_SOLUTION = re.compile(r"<answer>\s*([A-Z])\s*</answer>")
_LABEL = re.compile(r"(?: A|, [B-Z])\)")


def letter_options(options: Sequence[str]) -> dict[str, str]:
    """Option texts by their letters: ["x", "y"] -> {"A": "x", "B": "y"}."""
    return dict(zip(LETTERS, options, strict=False))


def is_option_list(value: object) -> TypeGuard[list[str]]:
    """Check that a JSON value is a list of 2 to 26 option texts."""
    if not isinstance(value, list) or not 2 <= len(value) <= len(LETTERS):
        return False
    return all(isinstance(text, str) for text in value)


def format_problem(question: str, options: Sequence[str]) -> str:
    """The question with its options, 2 to 26 texts, as Med-R1 writes them: "question A)x, B)y"."""
    labelled = ", ".join(f"{letter}){text}" for letter, text in letter_options(options).items())
    return f"{question} {labelled}"


def parse_problem(problem: str) -> tuple[str, dict[str, str]]:
    """Question and options of a problem: ("question", {"A": "x", "B": "y"}).

    The inverse of `format_problem`, for split files without the field `options` and to check that a
    question survives the published form. Commas and brackets inside options do no harm unless they
    form a label (" A)", ", B)"). Raises ValueError, naming the labels, unless these are the letters
    from A on, each once and in order, and at least two: no part of a text is left out.
    """
    labels = list(_LABEL.finditer(problem))
    letters = "".join(label.group()[-2] for label in labels)
    if len(labels) < 2 or letters != LETTERS[: len(labels)]:
        found = f"labels {', '.join(letters)}" if letters else "no labels"
        raise ValueError(f"no options 'A)..., B)...', in order, but {found} in problem {problem!r}")
    ends = [label.start() for label in labels[1:]] + [len(problem)]
    texts = [problem[label.end() : end] for label, end in zip(labels, ends, strict=True)]
    return problem[: labels[0].start()], letter_options(texts)


def format_solution(letter: str) -> str:
    """The gold letter as Med-R1 writes it."""
    return f"<answer> {letter} </answer>"


def parse_solution(solution: str) -> str:
    """The gold letter of a solution. Raises ValueError if it has none."""
    match = _SOLUTION.fullmatch(solution.strip())
    if not match:
        raise ValueError(f"solution {solution!r} is not of the form '<answer> C </answer>'")
    return match.group(1)
