"""Answer extraction: what a user who wants one choice would accept, and nothing more.

Accepted, ignoring case and outer whitespace: the letter of an option, bare or as "(C)", "[C]",
"C)", "C.", "C:"; the same followed by the text of that very option; the text of exactly one option.
Each may stand in markup (`strip_markup`): emphasis, code, quotation marks, a LaTeX box; full-width
characters count as plain ones. The answer must be in a single `<answer>...</answer>` or, if the
completion has no answer tag at all, be all there is besides the thoughts.

Refused (None): two answers, even equal ones; a letter with another option's text; nested, unclosed
or repeated answer tags; an answer inside a closed thought; a letter the question does not offer;
prose inside the answer tag, such as "Answer: C" or "The answer is C", or beside the answer if there
is no tag. Prose outside the tag is ignored, and so is a `<think>` that is never closed. Med-R1's
own check differs: it takes the first of several tags and counts "C) Cyst" as wrong (released code,
`grpo_vqa.py`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

AnswerForm = Literal["letter", "letter and text", "text"]
"""How an answer names its option."""

_INNERMOST_THOUGHT = re.compile(r"<think>(?:(?!</?think>).)*</think>", re.DOTALL | re.IGNORECASE)
_TAG = re.compile(r"</?answer>", re.IGNORECASE)
_ONE_ANSWER = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", re.DOTALL | re.IGNORECASE)
_LETTER = re.compile(
    r"(?:\(([A-Za-z])\)|\[([A-Za-z])\]|([A-Za-z])(?:[).:]|(?=\s|$)))[.:]?\s*(.*)", re.DOTALL
)
"""A letter that is a whole word, bracketed or not; then whatever follows."""
_MARKUP: Final = tuple(
    re.compile(rf"(?:{pattern})[.]?", re.DOTALL)
    for pattern in (
        r"(\*{1,3}|_{1,3}|`{1,3})(.+)\1",
        r"(\$\$?)(.+)\1",
        r"(\\[(\[])(.+)\\[)\]]",
        r"(\\(?:boxed|fbox|text|textbf|mathrm|mathbf))\s*\{(.+)\}",
        r"([\"'])(.+)\1",
        r"([\u201c\u201e\u2018\u300c\u00ab])(.+)[\u201d\u2019\u300d\u00bb]",
        r"<(b|strong|i|em)>(.+)</\1>",
    )
)
"""Markup around all of a text; its second group is the text."""


class Answer(NamedTuple):
    """The letter of a completion's answer, how it was written, and whether in markup."""

    letter: str
    form: AnswerForm
    in_markup: bool


def extract_answer(completion: str, options: Mapping[str, str]) -> str | None:
    """The letter of a completion's answer, one of the keys of `options` ({"A": "CT"}), or None.

    Never raises.
    """
    answer = read_answer(completion, options)
    return answer and answer.letter


def read_answer(completion: str, options: Mapping[str, str]) -> Answer | None:
    """The same with the form it was written in."""
    text = completion
    removed = 1
    while removed:  # thoughts may be nested: from the inside out
        text, removed = _INNERMOST_THOUGHT.subn(" ", text)
    if _TAG.search(text):
        blocks = _ONE_ANSWER.findall(text)
        if len(blocks) != 1 or len(_TAG.findall(text)) != 2:
            return None
        text = blocks[0]
    written = text.strip()
    if matched := _match_option(written, options):
        return Answer(*matched, in_markup=False)
    plain = strip_markup(written)
    matched = _match_option(plain, options) if plain != written else None
    return Answer(*matched, in_markup=True) if matched else None


def strip_markup(text: str) -> str:
    """A text without the markup around all of it, and with plain instead of full-width characters.

    Markup around a part stays, except around the letter at the beginning: "**C**) Cyst".
    """
    text = unicodedata.normalize("NFKC", text).strip()
    before = None
    while text != before:
        before = text
        for pattern in _MARKUP:
            if match := pattern.fullmatch(text):
                text = match[2].strip()
    return re.sub(r"^(\*{1,3}|_{1,3}|`)(\(?[A-Za-z][).:]?)\1(?=\W|$)", r"\2", text)


def _match_option(answer: str, options: Mapping[str, str]) -> tuple[str, AnswerForm] | None:
    match = _LETTER.fullmatch(answer)
    if match:
        letter = (match[1] or match[2] or match[3]).upper()
        text = match[4]
        if letter in options and not text:
            return letter, "letter"
        if letter in options and _normalize(strip_markup(text)) == _normalize(options[letter]):
            return letter, "letter and text"
    normalized = _normalize(answer)
    matches = [
        letter for letter, text in options.items() if normalized and _normalize(text) == normalized
    ]
    return (matches[0], "text") if len(matches) == 1 else None


def _normalize(text: str) -> str:
    """Fold case, collapse whitespace, drop full stops at the end."""
    return " ".join(text.split()).rstrip(" .").casefold()
