"""Questions reduced to options and gold: all that a blind rule may use.

A `Question` contains neither image nor question text, so a function of it cannot use them.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

from stages.core.errors import InputError
from stages.corpus.dataset.problems import (
    LETTERS,
    is_option_list,
    letter_options,
    parse_problem,
    parse_solution,
)

FORM: Final = (
    'a JSON list of {"image": ..., "problem": "... A)..., B)...", "solution": "<answer> B'
    ' </answer>"}, plain or .gz'
)
"""Description of the published form of a split file, for messages."""

_GZIP: Final = b"\x1f\x8b"


@dataclass(frozen=True)
class Question:
    """Options in the order offered, and the index of the gold one among them."""

    question_id: str
    options: tuple[str, ...]
    gold: int

    @property
    def letter(self) -> str:
        """The gold letter, such as "A"."""
        return LETTERS[self.gold]


def read_questions(path: Path) -> list[Question]:
    """Read a split file in the published form, which has no ids (see `as_questions`).

    Raises InputError, naming file, record, value and remedy, if it is missing, unreadable or not
    such a list.
    """
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if data.startswith(_GZIP) else data).decode("utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path} is missing: give the path of a split file, {FORM}") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}): give {FORM}"
        ) from error
    # a folder, no permission, a corrupt or truncated gzip
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"{path} cannot be read ({error}): give {FORM}, or fetch the file again"
        ) from error
    try:
        items = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}): give {FORM}") from error
    return as_questions(items, str(path))


def as_questions(items: Any, source: str) -> list[Question]:
    """Validate the questions of a split as read from JSON; `source` names it in messages.

    A record without `question_id`, such as all published ones, is called "#<index>". Raises
    InputError, naming record, value and remedy, for anything but a list of at least one question
    with distinct ids, each with options and a gold letter among them.
    """
    if not isinstance(items, list):
        raise InputError(f"{source} is not a split but {_excerpt(items)}: give {FORM}")
    if not items:
        raise InputError(f"{source} holds no questions: give {FORM}, with at least one")
    questions = [
        _as_question(item, index, f"{source}, record {index}") for index, item in enumerate(items)
    ]
    index_of: dict[str, int] = {}
    for index, question in enumerate(questions):
        first = index_of.setdefault(question.question_id, index)
        if first != index:
            raise InputError(
                f"{source}, record {index}: question_id {question.question_id!r} is also that of"
                f" record {first}; make the ids unique or remove them"
            )
    return questions


def chance(questions: Sequence[Question]) -> Fraction:
    """Expected accuracy of a uniform guess: the mean of 1 / options."""
    correct = sum((Fraction(1, len(question.options)) for question in questions), Fraction())
    return correct / len(questions)


def _as_question(item: Any, index: int, place: str) -> Question:
    if not isinstance(item, dict):
        raise InputError(f"{place} is not a question but {_excerpt(item)}: give {FORM}")
    for field in ("problem", "solution"):
        if not isinstance(item.get(field), str):
            raise InputError(
                f"{place}: {field} is {_excerpt(item.get(field))}, not text: give {FORM}"
            )
    try:
        options = letter_options(_option_texts(item))
        letter = parse_solution(item["solution"])
    except ValueError as error:
        raise InputError(f"{place}: {error}; correct the record or remove it") from error
    if letter not in options:
        raise InputError(
            f"{place}: gold {letter!r} is not among the options {', '.join(options)} of"
            f" {item['problem']!r}; correct the solution or remove the record"
        )
    return Question(
        str(item.get("question_id", f"#{index}")),
        tuple(options.values()),
        list(options).index(letter),
    )


def _option_texts(item: dict[str, Any]) -> list[str]:
    """Option texts from `options`, or parsed from `problem` as in published split files.

    ValueError if unusable.
    """
    if "options" not in item:
        return list(parse_problem(item["problem"])[1].values())
    options = item["options"]
    if not is_option_list(options):
        raise ValueError(f"options is {_excerpt(options)}, not a list of 2 to 26 texts")
    return options


def _excerpt(value: Any) -> str:
    return "missing" if value is None else f"{value!r:.60}"
