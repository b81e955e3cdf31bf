"""The published text of a question: `question A)..., B)...` and `<answer> C </answer>`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, TypeGuard

LETTERS: Final = "ABCD"

_SOLUTION = re.compile(r"<answer>\s*([A-D])\s*</answer>")


def letter_options(options: Sequence[str]) -> dict[str, str]:
    """Option texts by their letters: ["x", "y"] -> {"A": "x", "B": "y"}."""
    return dict(zip(LETTERS, options, strict=False))


def is_option_list(value: object) -> TypeGuard[list[str]]:
    """Check that a JSON value is a list of 2 to 4 option texts."""
    if not isinstance(value, list) or not 2 <= len(value) <= len(LETTERS):
        return False
    return all(isinstance(text, str) for text in value)


def format_problem(question: str, options: Sequence[str]) -> str:
    """The question with its options (2 to 4 texts) as Med-R1 writes them: "question A)x, B)y"."""
    labelled = ", ".join(f"{letter}){text}" for letter, text in letter_options(options).items())
    return f"{question} {labelled}"


def parse_problem(problem: str) -> tuple[str, dict[str, str]]:
    """Question and options of a problem: ("question", {"A": "x", "B": "y"}).

    The inverse of `format_problem`, for split files without the field `options` and to check that a
    question survives the published form. Labels are searched for in order, each behind the previous
    one, so that commas and brackets inside options do no harm. Raises ValueError if there are fewer
    than two options.
    """
    labels: list[tuple[int, int]] = []  # first and one past last position of each
    position = 0
    for letter in LETTERS:
        label = f" {letter})" if letter == "A" else f", {letter})"
        at = problem.find(label, position)
        if at < 0:
            break
        position = at + len(label)
        labels.append((at, position))
    if len(labels) < 2:
        raise ValueError(f"no options 'A)..., B)...' in problem {problem!r}")
    ends = [at for at, _ in labels[1:]] + [len(problem)]
    texts = [problem[start:end] for (_, start), end in zip(labels, ends, strict=True)]
    return problem[: labels[0][0]], letter_options(texts)


def format_solution(letter: str) -> str:
    """The gold letter as Med-R1 writes it."""
    return f"<answer> {letter} </answer>"


def parse_solution(solution: str) -> str:
    """The gold letter of a solution. Raises ValueError if it has none."""
    match = _SOLUTION.fullmatch(solution.strip())
    if not match:
        raise ValueError(f"solution {solution!r} is not of the form '<answer> C </answer>'")
    return match.group(1)
