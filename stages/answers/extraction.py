"""The answer in a completion: what a user who asked for one choice would accept, and nothing more.

Accepted, case and surrounding blanks aside: the letter of an option, bare or as "(C)", "C)", "C.",
"C:"; the same followed by the text of that very option; the text of exactly one option. It stands
in a single `<answer>...</answer>`, or, where the completion has no answer tag at all, is all there
is beside the thoughts.

Refused (None): two answers, even equal ones; a letter with another option's text; nested, unclosed
or repeated answer tags; an answer that stands in a thought; a letter the question does not offer;
prose around the answer. Med-R1's own check differs: it takes the first of several tags and counts
"C) Cyst" as wrong (released code, `grpo_vqa.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_INNERMOST_THOUGHT = re.compile(r"<think>(?:(?!</?think>).)*</think>", re.DOTALL | re.IGNORECASE)
_TAG = re.compile(r"</?answer>", re.IGNORECASE)
_ONE_ANSWER = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", re.DOTALL | re.IGNORECASE)
_LETTER = re.compile(r"(?:\(([A-Za-z])\)|([A-Za-z])(?:[).:]|(?=\s|$)))[.:]?\s*(.*)", re.DOTALL)
"""A letter, bracketed or not, that ends a word; then whatever follows."""


def extract_answer(completion: str, options: Mapping[str, str]) -> str | None:
    """The letter a completion settles on, one of the keys of `options` ({"A": "CT", ...}), or None.

    Never raises.
    """
    said, thoughts = completion, 1
    while thoughts:  # a thought may hold thoughts
        said, thoughts = _INNERMOST_THOUGHT.subn(" ", said)
    if _TAG.search(said):
        blocks = _ONE_ANSWER.findall(said)
        if len(blocks) != 1 or len(_TAG.findall(said)) != 2:
            return None
        said = blocks[0]
    return _settle(said.strip(), options)


def _settle(said: str, options: Mapping[str, str]) -> str | None:
    match = _LETTER.fullmatch(said)
    if match:
        letter, text = (match.group(1) or match.group(2)).upper(), match.group(3)
        if letter in options and (not text or _plain(text) == _plain(options[letter])):
            return letter
    named = [
        letter for letter, text in options.items() if _plain(said) and _plain(text) == _plain(said)
    ]
    return named[0] if len(named) == 1 else None


def _plain(text: str) -> str:
    """Text as compared: case folded, whitespace collapsed, trailing full stops removed."""
    return " ".join(text.split()).rstrip(" .").casefold()
