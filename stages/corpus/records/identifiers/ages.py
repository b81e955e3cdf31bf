"""Ages over 89, which the safe harbour wants put together as 90 and over."""

from __future__ import annotations

import re
from typing import Final

from stages.corpus.records.identifiers.rule import IdentifierKind, Rule

_OLD: Final = r"(?:9\d|1[0-4]\d)"
_YEARS: Final = r"(?:years?|yrs?|y)"
_PERSON: Final = r"(?:man|woman|male|female|lady|gentleman|patient|pt)"
_NO_AGE: Final = (
    r"(?!\d|\.\d|th\b| ?(?:\+|%|days?\b|weeks?\b|wks?\b|months?\b|hours?\b|minutes?\b|[dwhm]\b)"
    r"| (?:years )?(?:and|or) (?:older|over|above|more)\b)"
)
"""Not before another unit, nor before what makes a group of it: 90+, 90 or older."""


def _rule(pattern: str) -> Rule:
    return Rule(IdentifierKind.AGE, re.compile(pattern, re.IGNORECASE))


AGES: Final = (
    _rule(
        rf"(?<![\d.,]){_OLD}[ -]?{_YEARS}(?:[ -]?olds?\b| of age\b|[ -]?[/.]?o\b|[ -]{_PERSON}\b"
        r"|[ /-]?[mf]\b)"
    ),
    _rule(rf"\A{_OLD} ?(?:[MF]|{_YEARS},?)\b"),
    _rule(rf"\b{_PERSON}(?: of|,| aged)? {_OLD}[ -]?{_YEARS}\b"),
    _rule(rf"\b(?:aged?|ages)(?: of(?: onset)?| is| was)?(?: ?[:=]? ?|-){_OLD}{_NO_AGE}"),
    _rule(
        r"\b(?:ninety|hundred)(?:[ -](?:one|two|three|four|five|six|seven|eight|nine))?"
        r"[ -]years?[ -]old"
    ),
)
