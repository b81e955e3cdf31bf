"""What a record says of its patient, as the one text that a prompt has before the question.

A record may have `age`, `sex`, `history`, `indication` and a free `context`. They become, in this
order, "Age: 54. Sex: female. History: smoker. Indication: cough. Seen after a fall." in one line,
with the author's words. A record whose texts identify a person is refused (identifiers/find.py).
Neither the refusal nor its message quotes what was written: the place and the kind must do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from stages.corpus.quarantine.reasons import Reason
from stages.corpus.records.identifiers.rule import IdentifierKind
from stages.corpus.records.texts import RefusedRecord, find_text_problem

CONTEXT: Final = ("age", "sex", "history", "indication", "context")
"""Fields of a record that make up its context, in the order of the text."""
MAX_CONTEXT: Final = 2_000
"""Characters of a record's history, indication and context together, as written."""

_LABELS: Final = {"history": "History: ", "indication": "Indication: ", "context": ""}
_MAX_WORD: Final = 40
"""Characters of an age or a sex."""
_AGE: Final = re.compile(
    r"(?P<number>\d{1,4}(?:\.\d)?)(?:[ -]?(?:(?P<years>y|yrs?|years?|yo|y/o)"
    r"|(?P<months>mo?|mos|months?)|(?P<weeks>w|wks?|weeks?)|(?P<days>d|days?))(?:[ -]old)?)?"
)
_BAND: Final = re.compile(r"(\d{1,3}) ?(?:-|\u2013|to) ?(\d{1,3})(?: ?(?:y|yrs?|years?))?")
_BELOW_ONE: Final = re.compile(r"(?:(?:below|under) |< ?)1(?: ?(?:y|year))?")
_OLDEST: Final = re.compile(r"90 ?\+(?: ?(?:y|yrs?|years?))?")
_UNITS: Final = {"months": 12, "weeks": 52, "days": 365}
"""Unit of an age -> how many are a year."""
_PROTECTED: Final = 90
"""Years from which an age identifies a person (45 CFR 164.514(b)(2)(i)(C))."""
_HIGHEST: Final = 130
"""Years that nobody has reached."""
_NO_AGE: Final = (
    "is no age: write the years as a number (54), a band of years (50-59), months, weeks or days"
    " with their unit (6 months), or 90+; leave it out if it is unknown"
)
_SEXES: Final = {
    **dict.fromkeys(("f", "female"), "female"),
    **dict.fromkeys(("m", "male"), "male"),
    **dict.fromkeys(("o", "other"), "other"),
    **dict.fromkeys(("u", "unknown"), "unknown"),
}
_HEADER: Final = {"age": "PatientAge", "sex": "PatientSex"}
"""Field of a record -> keyword of the DICOM element that may stand in for it."""


def context_of(fields: Mapping[str, Any]) -> str | None:
    """The text of a record's context fields; None if it has none.

    Raises RefusedRecord, which quotes nothing, for a field that is no usable text, is too long or
    identifies a person.
    """
    written = {name: fields[name] for name in CONTEXT if fields.get(name) is not None}
    if not written:
        return None
    texts = {name: _text(name, value) for name, value in written.items()}
    _check_length(texts)
    parts = []
    for name, text in texts.items():
        _check_characters(name, text)
        if name == "age":
            parts.append(f"Age: {_age(text)}.")
        elif name == "sex":
            parts.append(f"Sex: {_sex(text)}.")
        else:
            _check_identifiers(name, text)
            parts.append(_sentence(_LABELS[name] + " ".join(text.split())))
    return " ".join(parts)


def written_context(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the context fields that are there, unchecked."""
    return {name: fields[name] for name in CONTEXT if fields.get(name) not in (None, "")}


def with_header(fields: Mapping[str, Any], header: Mapping[str, Any]) -> dict[str, Any]:
    """A record with the age and the sex of its DICOM header, as far as it has none of its own.

    `header`: the values by keyword that stage resize keeps of it; it has these only on request
    (`dicom.context`).
    """
    known = {
        name: header[keyword]
        for name, keyword in _HEADER.items()
        if fields.get(name) is None and header.get(keyword) is not None
    }
    return {**fields, **known}


def refuse_context(name: str, why: str, reason: Reason) -> RefusedRecord:
    """The refusal of a record for a context field, which quotes nothing of it."""
    return RefusedRecord(name, f"{name} {why}", reason)


def _text(name: str, value: object) -> str:
    """A field as text: of an age, a number will do."""
    if name == "age" and isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise refuse_context(name, "is not a text", Reason.FIELD_TYPE)
    if not value.strip():
        raise refuse_context(name, "is empty: leave it out", Reason.FIELD_EMPTY)
    return value


def _check_length(texts: Mapping[str, str]) -> None:
    for name in ("age", "sex"):
        if len(texts.get(name, "")) > _MAX_WORD:
            why = f"has {len(texts[name])} characters, the limit is {_MAX_WORD}"
            raise refuse_context(name, why, Reason.FIELD_LENGTH)
    free = [name for name in _LABELS if name in texts]
    length = sum(len(texts[name]) for name in free)
    if length > MAX_CONTEXT:
        names = " and ".join(free)
        verb = "has" if len(free) == 1 else "have"
        why = f"{verb} {length} characters, the limit is {MAX_CONTEXT}"
        raise refuse_context(names, why, Reason.FIELD_LENGTH)


def _check_characters(name: str, text: str) -> None:
    """Raise RefusedRecord for what no text of a prompt may have."""
    problem = find_text_problem(text)
    if problem is None:
        return
    why = problem.why
    if problem.reason == Reason.FIELD_TOKEN:  # whose message quotes it
        why = "contains a token or tag, which a model reads as a command"
    raise refuse_context(name, why, problem.reason)


def _check_identifiers(name: str, text: str) -> None:
    # compiles many patterns, which a corpus without such texts does not need
    from stages.corpus.records.identifiers.find import find_identifier

    found = find_identifier(text)
    if found is None:
        return
    remedy = "write the age as 90+" if found.kind == IdentifierKind.AGE else "remove it"
    why = f"contains what looks like {found.kind}, at character {found.at + 1}: {remedy}"
    raise refuse_context(name, why, Reason.FIELD_IDENTIFIER)


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _age(text: str) -> str:
    """An age in words: "54", "6 months", "50 to 59", "below 1", "90+"."""
    plain = " ".join(text.split()).casefold()
    if _OLDEST.fullmatch(plain):
        return "90+"
    if _BELOW_ONE.fullmatch(plain):
        return "below 1"
    if match := _BAND.fullmatch(plain):
        low, high = map(int, match.groups())
        if low < high:
            _check_years(high)
            return f"{low} to {high}"
    elif match := _AGE.fullmatch(plain):
        return _single_age(match)
    raise refuse_context("age", _NO_AGE, Reason.FIELD_AGE)


def _single_age(match: re.Match[str]) -> str:
    """An age of one number, in years or another unit."""
    value = float(match["number"])
    number = f"{value:g}"
    unit = next((unit for unit in _UNITS if match[unit]), None)
    _check_years(value / _UNITS[unit] if unit else value)
    if unit is None:
        return number
    return f"{number} {unit.removesuffix('s') if value == 1 else unit}"


def _check_years(years: float) -> None:
    """Raise RefusedRecord for an age that identifies, or that nobody has."""
    if years > _HIGHEST:
        raise refuse_context("age", _NO_AGE, Reason.FIELD_AGE)
    if years >= _PROTECTED:
        why = f"is {IdentifierKind.AGE}, which identifies a person: write 90+"
        raise refuse_context("age", why, Reason.FIELD_IDENTIFIER)


def _sex(text: str) -> str:
    sex = _SEXES.get(text.strip().casefold())
    if sex is None:
        why = "is none of female, male, other, unknown, F, M, O, U: leave it out if it is unknown"
        raise refuse_context("sex", why, Reason.FIELD_SEX)
    return sex
