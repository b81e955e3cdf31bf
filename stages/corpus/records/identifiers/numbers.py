"""Numbers of records, specimens, persons and phones."""

from __future__ import annotations

import re
from typing import Final

from stages.corpus.records.identifiers.rule import UNIT, IdentifierKind, Rule

_WRITTEN: Final = r"(?=[A-Za-z/-]{0,12}\d)[A-Za-z0-9][A-Za-z0-9/-]{0,30}"
"""A number as of a record, perhaps behind letters: 12345, S24-1234, A/77."""
_NO: Final = r"(?:(?:no|nr|num|number|id|identifier|code)\b\.?|#)"
_YEARS: Final = r"(?!(?:19|20)\d\d[-/](?:(?:19|20)\d\d|\d\d)\b)"
"""Not a span of years."""
_THINGS: Final = (
    r"(?:case|study|exam|examination|specimen|sample|file|folder|visit|encounter|account|order"
    r"|slide|block|claim|registration|admission)"
)


def _rule(pattern: str, *, any_case: bool = False) -> Rule:
    return Rule(IdentifierKind.NUMBER, re.compile(pattern, re.IGNORECASE if any_case else 0))


def _is_no_series(match: re.Match[str]) -> bool:
    """Whether three numbers are not round ones, as b-values are: 400 800 1000."""
    return any(int(part) % 50 for part in re.split("[ -]", match[0]))


NUMBERS: Final = (
    # words that only a record's or a person's number follows
    _rule(
        rf"\b(?:MRN|medical record|accession|SSN|(?:acc\.?|hospital|unit|patient|pat\.?|record"
        r"|chart|NHS|CHI|insurance|policy|licen[cs]e|serial|health card|health plan|medicare"
        rf"|medicaid|passport|social security|subject) ?{_NO})(?: ?{_NO})?(?: is)? ?[:=#.]? ?"
        rf"{_WRITTEN}",
        any_case=True,
    ),
    # MR is also magnetic resonance, ID an inner diameter, PID an inflammation
    _rule(rf"\b(?:MR|ID|PID)(?: ?[#:]| (?i:{_NO})) ?{_WRITTEN}(?!\.\d){UNIT}"),
    # words that other numbers follow, too: "case 2" and "study of 300" say nothing
    _rule(
        rf"\b(?:{_THINGS}|ID)(?: {_NO})?[ :=#.]{{1,3}}{_YEARS}"
        rf"(?:[A-Za-z]{{0,4}}-?\d{{2,4}}[-/]\d{{3,12}}|[A-Za-z]{{0,4}}-?\d{{5,12}})(?!\d){UNIT}",
        any_case=True,
    ),
    _rule(
        rf"\b{_THINGS}(?: (?:no|nr|number)\b\.?| ?#)[ :=#]{{0,2}}[A-Za-z]{{0,4}}-?\d{{3,12}}(?!\d)"
        rf"{UNIT}",
        any_case=True,
    ),
    # social security numbers
    _rule(r"(?<![\d-])\d{3}-\d\d-\d{4}(?![\d-])"),
    # numbers of the NHS, and of phones
    Rule(
        IdentifierKind.NUMBER,
        re.compile(rf"(?<![\d.-])\d{{3}}([ -])\d{{3}}\1\d{{4}}(?!\d){UNIT}"),
        _is_no_series,
    ),
    # numbers of specimens: S24-1234
    _rule(rf"\b[A-Z]{{1,3}}\d\d-\d{{3,6}}\b{UNIT}"),
    # no clinical quantity is written with so many digits, but for counts
    _rule(
        r"(?<!\d)(?<!\d[.,])\d{7}(?!\d{0,13} ?(?:IU|units?|cells?|copies|particles|CFU|[RW]BCs?"
        r"|platelets)\b)"
    ),
    # UIDs of DICOM objects
    _rule(r"(?<![\d.])[012]\.\d{1,3}(?:\.\d{1,40}){3,20}"),
)


def _has_digits_of_phone(match: re.Match[str]) -> bool:
    return sum(map(str.isdigit, match[0])) >= 8


PHONES: Final = (
    Rule(
        IdentifierKind.PHONE,
        re.compile(r"\+\d{1,3}(?:[ -]?\(?\d{1,6}\)?){2,6}"),
        _has_digits_of_phone,
    ),
    Rule(IdentifierKind.PHONE, re.compile(r"\+\d{1,3}(?:\.\d{2,4}){3}")),
    Rule(IdentifierKind.PHONE, re.compile(r"\(\d{3}\) ?\d{3}[-. ]?\d{4}(?!\d)")),
    Rule(IdentifierKind.PHONE, re.compile(r"(?<![\d.-])\d{3}\.\d{3}\.\d{4}(?!\d)")),
    Rule(
        IdentifierKind.PHONE,
        re.compile(r"(?<![\d./-])\(?0\d{2,4}\)?[ -]\d{3,4}[ -]?\d{3,4}(?!\d)"),
    ),
    Rule(
        IdentifierKind.PHONE,
        re.compile(
            r"\b(?:tel|phone|telephone|mobile|fax|call|contact|pager|bleep)\.?(?: (?:no|number)\b)?"
            r"\.?(?: at| on| is)? ?[:#]? ?\+?\(?\d(?:[ ()-]{0,2}\d){4,14}",
            re.IGNORECASE,
        ),
    ),
)
