"""Answer extraction: what a user who wants one choice would accept, and nothing more.

Accepted, ignoring case and outer whitespace: the letter of an option, bare or as "(C)", "C)", "C.",
"C:"; the same followed by the text of that very option; the text of exactly one option. It must be
in a single `<answer>...</answer>` or, if the completion has no answer tag at all, be all there is
besides the thoughts.

Refused (None): two answers, even equal ones; a letter with another option's text; nested, unclosed
or repeated answer tags; an answer inside a closed thought; a letter the question does not offer;
prose inside the answer tag, or beside the answer if there is no tag. Prose outside the tag is
ignored, and so is a `<think>` that is never closed. Med-R1's own check differs: it takes the first
of several tags and counts "C) Cyst" as wrong (released code, `grpo_vqa.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_INNERMOST_THOUGHT = re.compile(r"<think>(?:(?!</?think>).)*</think>", re.DOTALL | re.IGNORECASE)
_TAG = re.compile(r"</?answer>", re.IGNORECASE)
_ONE_ANSWER = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", re.DOTALL | re.IGNORECASE)
_LETTER = re.compile(r"(?:\(([A-Za-z])\)|([A-Za-z])(?:[).:]|(?=\s|$)))[.:]?\s*(.*)", re.DOTALL)
"""A letter that is a whole word, bracketed or not; then whatever follows."""


def extract_answer(completion: str, options: Mapping[str, str]) -> str | None:
    """The letter of a completion's answer, one of the keys of `options` ({"A": "CT"}), or None.

    Never raises.
    """
    text = completion
    removed = 1
    while removed:  # thoughts may be nested: from the inside out
        text, removed = _INNERMOST_THOUGHT.subn(" ", text)
    if _TAG.search(text):
        blocks = _ONE_ANSWER.findall(text)
        if len(blocks) != 1 or len(_TAG.findall(text)) != 2:
            return None
        text = blocks[0]
    return _match_option(text.strip(), options)


def _match_option(answer: str, options: Mapping[str, str]) -> str | None:
    match = _LETTER.fullmatch(answer)
    if match:
        letter = (match.group(1) or match.group(2)).upper()
        text = match.group(3)
        if letter in options and (not text or _normalize(text) == _normalize(options[letter])):
            return letter
    normalized = _normalize(answer)
    matches = [
        letter for letter, text in options.items() if normalized and _normalize(text) == normalized
    ]
    return matches[0] if len(matches) == 1 else None


def _normalize(text: str) -> str:
    """Fold case, collapse whitespace, drop full stops at the end."""
    return " ".join(text.split()).rstrip(" .").casefold()
