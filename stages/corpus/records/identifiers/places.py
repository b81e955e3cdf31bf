"""Addresses: of houses, mail boxes, pages and machines."""

from __future__ import annotations

import re
from typing import Final

from stages.corpus.records.identifiers.rule import CAPITAL, LETTER, IdentifierKind, Rule

_OCTET: Final = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"
_STREET: Final = (
    r"(?:Street|St\.|St(?=,|;|\Z)|Avenue|Ave|Road|Rd|Boulevard|Blvd|Lane|Drive|Terrace|Crescent|Highway|Parkway"
    r"|Square|Court|Place|Way|STREET|AVENUE|ROAD|BOULEVARD|LANE|DRIVE)"
)
_STATE: Final = (
    r"(?:AL|AK|AZ|AR|CA|CO|DE|FL|GA|HI|ID|IL|IN|IA|KS|KY|LA|ME|MD|MA|MI|MN|MS|MO|MT|NE|NV|NH|NJ|NM"
    r"|NY|NC|ND|OH|OK|OR|PA|RI|SC|SD|TN|TX|UT|VT|VA|WA|WV|WI|WY|DC)"
)


def _rule(kind: IdentifierKind, pattern: str, *, any_case: bool = False) -> Rule:
    return Rule(kind, re.compile(pattern, re.IGNORECASE if any_case else 0))


PLACES: Final = (
    _rule(
        IdentifierKind.EMAIL,
        r"[\w.+-]{1,64} ?(?:@|\(at\)|\[at\]) ?[\w-]{1,63}(?:\.| ?\(dot\) ?| ?\[dot\] ?)[A-Za-z]{2}",
    ),
    _rule(IdentifierKind.WEB, r"\b[A-Za-z][A-Za-z0-9+.-]{1,20}://|\b[Ww]{3}\.\w"),
    _rule(IdentifierKind.WEB, r"\b[\w-]{1,63}\.(?:com|org|net|edu|gov|co\.uk|nhs\.uk|ac\.uk)\b"),
    _rule(IdentifierKind.NETWORK, rf"(?<![\d.]){_OCTET}\.{_OCTET}\.{_OCTET}\.{_OCTET}(?!\.?\d)"),
    _rule(
        IdentifierKind.NETWORK,
        r"\b(?:[0-9A-Fa-f]{1,4}:){5,7}[0-9A-Fa-f]{1,4}\b|\b[0-9A-Fa-f]{1,4}::[0-9A-Fa-f]",
    ),
    _rule(
        IdentifierKind.POSTAL,
        rf"(?<![\d.])\d{{1,5}}[A-Za-z]?,? (?!(?:Cm|Mm|CM|MM) )"
        rf"(?:(?:{CAPITAL}(?:{LETTER}|['-]){{1,30}}|[NSEW]\.?|\d{{1,3}}(?:st|nd|rd|th)) ){{1,3}}"
        rf"{_STREET}(?!\w)",
    ),
    _rule(IdentifierKind.POSTAL, r"(?<![\d.])\d{1,5} [a-z]{3,20} (?:street|avenue|boulevard)\b"),
    _rule(IdentifierKind.POSTAL, r"(?:stra\u00dfe|strasse|str\.) \d{1,4}\b", any_case=True),
    _rule(IdentifierKind.POSTAL, rf",? {_STATE},? \d{{5}}-\d{{4}}\b|, {_STATE},? \d{{5}}\b"),
    _rule(
        IdentifierKind.POSTAL,
        r"\b(?:zip(?: ?code)?|post(?:al)? ?code)\b(?: is)? ?[:=]? ?[A-Z]{0,2}\d"
        r"|\bP\.? ?O\.? ?Box \d|\b(?:home |postal |street )?address(?: is)? ?: ?\w"
        r"|\b(?:lives|living|resides|residing) at \d{1,5}[a-z]? (?!weeks|months|m\b|f(?:ee)?t\b)",
        any_case=True,
    ),
    # of Britain; T2, L4, S1 and C5 are also weightings and vertebrae, 2ND and 5TH are ordinals
    _rule(
        IdentifierKind.POSTAL,
        r"\b(?![TLSC]\d{1,2} )[A-Z]{1,2}\d[A-Z\d]? \d(?!(?:ST|ND|RD|TH|YR|HR|PT|RT|LT|UL)\b)"
        r"[ABD-HJLNP-UW-Z]{2}\b",
    ),
)
