"""Names of persons: behind titles and words that introduce them, and as DICOM writes them."""

from __future__ import annotations

import re
from typing import Final

from stages.corpus.records.identifiers.rule import CAPITAL, LETTER, NAME, IdentifierKind, Rule
from stages.corpus.records.identifiers.words import (
    EPONYMS,
    GIVEN_NAMES,
    IMAGING,
    may_be_name,
)

_INITIALS: Final = rf"(?:{CAPITAL}\. ?){{0,3}}"
_MIXED: Final = rf"{CAPITAL}(?:[^\W\d_A-Z]|['-][A-Z]?|(?<=Mc)[A-Z]){{1,30}}"
"""A word with a capital that is not all capitals, as abbreviations are."""
_GIVEN: Final = rf"(?:{'|'.join(f'{name}|{name.upper()}' for name in sorted(GIVEN_NAMES))})"
_PERSON: Final = (
    r"(?:patient|pt|mother|father|wife|husband|son|daughter|sister|brother|spouse|partner|nurse"
    r"|physician|surgeon|radiologist|pathologist|dermatologist|oncologist|clinician|consultant"
    r"|practitioner|doctor|gentleman|lady|man|woman|boy|girl|child|infant|baby|male|female)"
)
_SIGNED: Final = r"(?:signed|dictated|transcribed|verified|authori[sz]ed|typed) by"
_BY: Final = (
    r"(?:referred|reported|seen|reviewed|ordered|read|examined|treated|interpreted|requested"
    r"|performed|approved|operated) by"
)
_OF_THINGS: Final = (
    r"(?<!drug )(?<!brand )(?<!trade )(?<!generic )(?<!file )(?<!study )(?<!device )(?<!series )"
    r"(?<!protocol )(?<!product )(?<!sequence )(?<!test )(?<!procedure )(?<!class )(?<!gene )"
)
"""Not behind what has a name, but is no person."""
_UNNAMED: Final = r"(?!(?:unknown|withheld|redacted|removed|none|not|n/a|anonym\w{0,10})\b)"


def _are_names(match: re.Match[str]) -> bool:
    """Whether all words of the match's group `words` may be parts of a name."""
    words = match["words"].replace(".", " ").split()
    if (words[0].casefold(), words[-1].casefold()) in EPONYMS:
        return False
    return all(map(may_be_name, words))


def _is_no_imaging(match: re.Match[str]) -> bool:
    """Whether "Mr" is not magnetic resonance in a text with all words capitalised."""
    return match["words"].casefold() not in IMAGING


def _is_no_eponym(match: re.Match[str]) -> bool:
    """Whether a given name, and what may follow it, are no sign's, disease's or virus's name."""
    if match["words"] is None:
        return True
    return (match["given"].casefold(), match["words"].casefold()) not in EPONYMS


def _is_person(match: re.Match[str]) -> bool:
    return _is_no_eponym(match) and may_be_name(match["words"])


def _rule(pattern: str, *, of_names: bool = True) -> Rule:
    return Rule(IdentifierKind.NAME, re.compile(pattern), _are_names if of_names else None)


NAMES: Final = (
    # exact case: MR is magnetic resonance, MRS its spectroscopy, ms are milliseconds, MS is a
    # disease, DR a retinopathy and a kind of radiograph
    Rule(
        IdentifierKind.NAME,
        re.compile(
            rf"\b(?:Mr|Mrs|Ms|Mx|Dr)\b(?:\. ?| ){_INITIALS}(?P<words>{CAPITAL}(?:{LETTER}|['-])"
            r"{0,30})"
        ),
        _is_no_imaging,
    ),
    _rule(
        r"\b(?:Miss|MISS|Prof|PROF|Professor|PROFESSOR|Doctor|DOCTOR|Herr|Frau|Madame|Se\u00f1ora?)"
        rf"\b(?:\. ?| ){_INITIALS}(?P<words>{NAME})"
    ),
    _rule(rf"\b(?:mr|mrs|dr|prof)\. ?(?P<words>{LETTER}{{2,30}})"),
    _rule(r"(?:\A|[.;,] )(?:MR|MRS|MS|DR)\. ?(?P<words>[A-Z]{2,30}(?: [A-Z]{2,30})?), "),
    # name: ...
    _rule(
        rf"(?i:{_OF_THINGS}\b(?:(?:full|first|last|given|family|maiden|middle|patient|sur|fore)"
        rf"[ -]?)?names?\b(?:'s)?(?: is)? ?(?:[:=]|-(?= )) ?{_UNNAMED})\w",
        of_names=False,
    ),
    _rule(
        rf"\b(?i:name is|surname|patient[- ]name|maiden name|first name|last name)"
        rf" (?P<words>{NAME})"
    ),
    # patient ...
    _rule(rf"\b(?i:{_PERSON}),? (?:named|called) (?P<words>{NAME})"),
    _rule(
        rf"\b(?i:{_PERSON})\.?(?: ?[:,] ?| )(?P<words>{_INITIALS}{_MIXED} (?:{CAPITAL}\. ?){{0,2}}"
        rf"{_MIXED})"
    ),
    _rule(rf"\b(?i:{_PERSON})\.?(?: ?[:,] ?| )(?P<words>{CAPITAL}\. ?{NAME})"),
    Rule(
        IdentifierKind.NAME,
        re.compile(
            rf"\b(?i:{_PERSON})\.?(?: ?[:,] ?| )(?P<given>{_GIVEN})\b(?![-'])"
            rf"(?: (?P<words>{NAME}))?"
        ),
        _is_no_eponym,
    ),
    # signed by ...
    _rule(rf"\b(?i:{_SIGNED}) ?:? ?(?P<words>{_INITIALS}{NAME})"),
    _rule(rf"\b(?i:{_BY}) ?:? ?(?P<words>(?:{CAPITAL}\. ?){{1,3}}{NAME}|{NAME} {NAME})"),
    # John Smith, Smith, John; John is 54
    Rule(
        IdentifierKind.NAME,
        re.compile(rf"\b(?P<given>{_GIVEN})(?: {CAPITAL}\b\.?)? (?P<words>{NAME})"),
        _is_person,
    ),
    _rule(rf"\b(?P<words>{NAME}), {_GIVEN}\b(?![-'])"),
    _rule(
        rf"\b{_GIVEN}(?: {CAPITAL}\b\.?)?(?:,? \d{{1,3}}\b|,? (?:is|was|has|had|presents|presented"
        r"|presenting|complains|complained|reports|reported|denies|denied|underwent)\b)",
        of_names=False,
    ),
    # a person's name in DICOM (PS3.5 6.2): DOE^JOHN^^DR
    _rule(rf"{LETTER}{{2,40}}\^(?:\^|{LETTER})", of_names=False),
)
