"""Options that were written with their letters, which the problem text adds later."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Final

from stages.corpus.dataset.problems import LETTERS
from stages.corpus.quarantine.reasons import Reason
from stages.corpus.records.texts import RefusedRecord

_BRACKETED: Final = re.compile(r"[(\[]([A-Za-z])[)\]]|([A-Za-z])[)\]]")
"""A label that no option's text begins with by chance: "(A)", "[A]", "A)", "A]"."""
_PUNCTUATED: Final = re.compile(r"([A-Za-z])\s?(?:[.:,\u3001\u3002]|[-\u2013\u2014]\s)")
"""A label that a text can begin with: "A.", "A:", "A - "; "E. coli", say."""


def check_labels(options: Sequence[str]) -> None:
    """Raise RefusedRecord if options begin with their own letters.

    Such a letter would be offered twice ("A)A. Cyst"), and an answer that repeats the text without
    it, or with the added one, would be counted as wrong. Full-width characters count as plain ones.
    Refused is any option with its own letter in brackets, and options that all have their own
    letter with any mark behind it: a single "E. coli" is a text.
    """
    texts = [unicodedata.normalize("NFKC", text).strip() for text in options]
    bracketed = [_is_labelled(_BRACKETED, *pair) for pair in zip(texts, LETTERS, strict=False)]
    punctuated = [_is_labelled(_PUNCTUATED, *pair) for pair in zip(texts, LETTERS, strict=False)]
    either = [one or other for one, other in zip(bracketed, punctuated, strict=True)]
    if any(bracketed) or (len(either) > 1 and all(either)):
        why = "options begin with their letters, which are added later: write only their texts"
        raise RefusedRecord(list(options), why, Reason.OPTION_LETTERS)


def _is_labelled(pattern: re.Pattern[str], text: str, letter: str) -> bool:
    match = pattern.match(text)
    return match is not None and letter in {each.upper() for each in match.groups() if each}
