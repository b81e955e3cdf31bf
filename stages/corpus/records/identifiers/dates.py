"""Dates that are more than a year: of birth, of visits, of other reports."""

from __future__ import annotations

import re
from typing import Final

from stages.corpus.records.identifiers.rule import UNIT, IdentifierKind, Rule

_MONTH: Final = (
    r"(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?"
    r"|Sept?(?:ember)?|Oct(?:ober)?|Nov(?:ember)?|Dec(?:ember)?)"
)
_FULL_MONTH: Final = (
    r"(?:January|February|March|April|May|June|July|August|September|October|November|December)"
)
_YEAR: Final = r"(?:1[89]|20)\d\d"
_DAY: Final = r"(?:0?[1-9]|[12]\d|3[01])"
_ORDINAL: Final = r"(?:st|nd|rd|th)?"


def _is_day_and_month(match: re.Match[str]) -> bool:
    """Whether one of the two numbers may be a month and the other a day."""
    one, other = sorted((int(match["one"]), int(match["other"])))
    return 1 <= one <= 12 and other <= 31


def _rule(pattern: str, *, any_case: bool = False, of_two_numbers: bool = False) -> Rule:
    compiled = re.compile(pattern, re.IGNORECASE if any_case else 0)
    return Rule(IdentifierKind.DATE, compiled, _is_day_and_month if of_two_numbers else None)


DATES: Final = (
    # 2024-03-05, 20240305
    _rule(rf"(?<![\d.]){_YEAR}( ?[-/.] ?)(?:0?[1-9]|1[0-2])\1{_DAY}(?!\d)"),
    _rule(rf"(?<!\d){_YEAR}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?!\d)"),
    # 05.03.2024, 3/5/2024
    _rule(
        rf"(?<![\d./-])(?P<one>\d{{1,2}})(?P<mark> ?[-/.] ?)(?P<other>\d{{1,2}})(?P=mark){_YEAR}"
        r"(?!\d)",
        of_two_numbers=True,
    ),
    # 3/5/24, 5.3.24 and 05-03-24, but neither 4/5/10 mm nor version 1.2.24
    _rule(
        rf"(?<![\w./])(?<![Vv]ersion )(?<![Ss]ection )(?P<one>\d{{1,2}})(?P<mark>[/.])"
        rf"(?P<other>\d{{1,2}})(?P=mark)\d\d(?![\d/]|\.\d){UNIT}",
        of_two_numbers=True,
    ),
    _rule(
        rf"(?<![\w./-])(?P<one>\d\d)-(?P<other>\d\d)-\d\d(?![\d/-]|\.\d){UNIT}",
        of_two_numbers=True,
    ),
    # 5 March 2024, 05-MAR-24, the 5th of March, 2024
    _rule(
        rf"(?<!\d){_DAY}{_ORDINAL}(?: of)?[ ./-]{{0,2}}{_MONTH}\b[ .,/'-]{{0,3}}(?:{_YEAR}|\d\d)"
        r"(?!\d)",
        any_case=True,
    ),
    # March 5, 2024
    _rule(
        rf"\b{_MONTH}[ .-]{{1,2}}{_DAY}{_ORDINAL}[ ,.-]{{1,2}}{_YEAR}(?!\d)",
        any_case=True,
    ),
    # 2024-Mar-05
    _rule(rf"(?<!\d){_YEAR}[ ./-]{_MONTH}[ ./-]{_DAY}(?!\d)", any_case=True),
    # a day without a year; OCT 2 would be optical coherence tomography
    _rule(rf"(?<![\d.]){_DAY}(?:{_ORDINAL}(?: of)? |\. ?){_FULL_MONTH}\b"),
    _rule(rf"\b{_FULL_MONTH} {_DAY}{_ORDINAL}(?![\w.%/-]){UNIT}"),
    # a month with its year
    _rule(
        rf"\b(?:{_FULL_MONTH}|(?:Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)\.?),?"
        rf" (?:of )?{_YEAR}(?!\d){UNIT}"
    ),
    _rule(
        r"\b(?:january|february|april|june|july|august|september|october|november|december)"
        rf" {_YEAR}(?!\d)"
    ),
    _rule(rf"(?<![\d./-])(?:0?[1-9]|1[0-2])/{_YEAR}(?![\d/]){UNIT}"),
    # a year of birth alone may stay
    _rule(
        r"\b(?:DOB|D\.O\.B|date of birth|birth ?-?date|birthday)\b\.?(?: is| was| on)?[ :=(]{0,3}"
        rf"(?!{_YEAR}(?![\d/.-]))(?:\d|{_MONTH}\b)",
        any_case=True,
    ),
)
