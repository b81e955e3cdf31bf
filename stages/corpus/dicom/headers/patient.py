"""Age and sex of a patient in a DICOM header, as words that are written here.

PatientAge is told as a band of ten years, PatientSex as a word. Nothing is copied from the file: a
value of another form is unknown.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final, Literal

from stages.corpus.dicom.headers.elements import Elements
from stages.corpus.quarantine.image_errors import ImageError

Fact = Literal["age", "sex"]

KEYWORDS: Final[dict[Fact, str]] = {"age": "PatientAge", "sex": "PatientSex"}
"""Setting in dicom.context -> keyword of the element."""

_AGE: Final = re.compile(r"([0-9]{3})([DWMY])")
"""An age string (AS, PS3.5 6.2)."""
_DAYS: Final = {"D": 1.0, "W": 7.0, "M": 365.25 / 12, "Y": 365.25}
_HIGHEST: Final = 130
"""Years that nobody has reached: an age above is a mistake."""
_SEXES: Final = {"F": "female", "M": "male", "O": "other"}


def patient_facts(elements: Elements, asked: Collection[Fact]) -> tuple[str | None, str | None]:
    """(age, sex), each None if it is not asked for, absent or malformed.

    The age is a band: "below 1", "1 to 9", "10 to 19" and so on up to "80 to 89", and "90+".
    """
    age = _age(elements) if "age" in asked else None
    code = elements.code(KEYWORDS["sex"], _SEXES) if "sex" in asked else None
    return age, None if code is None else _SEXES[code]


def _age(elements: Elements) -> str | None:
    try:
        values = elements.codes(KEYWORDS["age"], "AS")
    except ImageError:
        return None
    match = _AGE.fullmatch(values[0]) if len(values) == 1 else None
    return _band(int(match[1]) * _DAYS[match[2]] / _DAYS["Y"]) if match else None


def _band(years: float) -> str | None:
    if years > _HIGHEST:
        return None
    if years < 1:
        return "below 1"
    if years >= 90:
        return "90+"
    decade = int(years) // 10 * 10
    return f"{max(decade, 1)} to {decade + 9}"
