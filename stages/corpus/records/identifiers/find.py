"""Find what identifies a person in a text about a patient, by patterns.

The kinds are those of the HIPAA safe harbour (45 CFR 164.514(b)(2)) that have a form: names behind
words that introduce them, dates, numbers of records and phones, addresses, ages over 89. What has
none, such as a rare story, only a reader finds: docs/own-data.md says so to authors.

A refused text costs its author a look, a missed one somebody's privacy. But a check that refuses
"12/15 nodes" is soon switched off, so each pattern asks for surroundings in which its form has one
meaning. Time is linear in the text, as all repetitions are bounded.
"""

from __future__ import annotations

import unicodedata
from typing import Final, NamedTuple

from stages.corpus.records.identifiers.ages import AGES
from stages.corpus.records.identifiers.dates import DATES
from stages.corpus.records.identifiers.names import NAMES
from stages.corpus.records.identifiers.numbers import NUMBERS, PHONES
from stages.corpus.records.identifiers.places import PLACES
from stages.corpus.records.identifiers.rule import IdentifierKind, Rule

RULES: Final[tuple[Rule, ...]] = (*NAMES, *DATES, *PLACES, *NUMBERS, *PHONES, *AGES)
"""Of several findings at one place, the kind of the earlier rule counts."""


class Identifier(NamedTuple):
    """A finding: its kind and the index of its first character; never the text itself."""

    kind: IdentifierKind
    at: int


def find_identifier(text: str) -> Identifier | None:
    """The first identifier of a text; None if no pattern finds one.

    Full-width letters and the like count as plain ones, and any white space as one blank.
    """
    plain = _plain(text)
    first: Identifier | None = None
    for rule in RULES:
        at = rule.search(plain)
        if at is not None and (first is None or at < first.at):
            first = Identifier(rule.kind, at)
    return None if first is None else first._replace(at=_index_in(text, plain, first.at))


def _plain(text: str) -> str:
    """The text with single blanks and plain characters, each for one."""
    joined = " ".join(text.split())
    return joined if joined.isascii() else "".join(map(_plain_character, joined))


def _plain_character(character: str) -> str:
    if unicodedata.category(character) == "Pd" or character == "\u2212":
        return "-"
    if character in "\u2018\u2019\u02bc":
        return "'"
    digit = unicodedata.decimal(character, None)
    if digit is not None:
        return str(digit)
    normal = unicodedata.normalize("NFKC", character)
    return normal if len(normal) == 1 else character


def _index_in(text: str, plain: str, at: int) -> int:
    """The index in `text` of the character that has index `at` in `plain`."""
    before = at - plain.count(" ", 0, at)
    places = [index for index, character in enumerate(text) if not character.isspace()]
    return places[before]
