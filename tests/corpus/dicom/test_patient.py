"""Age and sex of a header: told on request only, and only in words of a list."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from stages.core.params import Dicom
from stages.corpus.dicom.reader import read_dicom
from stages.corpus.dicom.series import read_series
from stages.corpus.images.decoding import ImageError
from stages.corpus.records.context import context_of, with_header
from tests.dicoms import SETTINGS, dataset, deflated, file, ramp, settings, written

ASKED = settings(context=["age", "sex"])


def context(content: bytes, dicom: Dicom = ASKED) -> str | None:
    """What a question about the file would have."""
    return context_of(with_header({}, read_dicom(content, dicom).tags.as_fields()))


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ([], None),
        (["age"], "Age: 50 to 59."),
        (["sex"], "Sex: female."),
        (["sex", "age"], "Age: 50 to 59. Sex: female."),
    ],
)
def test_a_header_says_what_is_asked_for(asked: list[str], text: str | None) -> None:
    content = file(ramp(), PatientAge="054Y", PatientSex="F", PatientName="Doe^Jane")
    for each in (content, deflated(content)):
        assert context(each, settings(context=asked)) == text
        fields = read_dicom(each, settings(context=asked)).tags.as_fields()
        assert ("PatientAge" in fields, "PatientSex" in fields) == ("age" in asked, "sex" in asked)
        assert "054" not in str(fields)


@pytest.mark.parametrize(
    ("written_age", "band"),
    [
        *(("000D", "below 1"), ("007D", "below 1"), ("051W", "below 1"), ("011M", "below 1")),
        *(("000Y", "below 1"), ("012M", "1 to 9"), ("053W", "1 to 9"), ("400D", "1 to 9")),
        *(("001Y", "1 to 9"), ("009Y", "1 to 9"), ("010Y", "10 to 19"), ("120M", "10 to 19")),
        *(("019Y", "10 to 19"), ("054Y", "50 to 59"), ("089Y", "80 to 89"), ("090Y", "90+")),
        *(("092Y", "90+"), ("119Y", "90+"), ("999M", "80 to 89")),
    ],
)
def test_an_age_is_told_as_a_band_of_ten_years(written_age: str, band: str) -> None:
    assert context(file(ramp(), PatientAge=written_age)) == f"Age: {band}."


@pytest.mark.parametrize(
    "written_age",
    [
        *("", "54", "54Y", "054", "0054Y", "054X", "054y", "-54Y", "054Y\\055Y", "JANE", "5.4Y"),
        *("131Y", "999Y", "19540305", "054Y\n", "0 4Y"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_is_no_age_is_unknown(written_age: str) -> None:
    elements: dict[str, Any] = {"PatientAge": written_age, "PatientSex": "M"}
    assert context(file(ramp(), **elements)) == "Sex: male."


@pytest.mark.parametrize(
    ("code", "word"),
    [
        *(("F", "female"), ("M", "male"), ("O", "other"), ("M ", "male")),
        *(("", None), ("f", None), ("FEMALE", None), ("U", None), ("F\\M", None), ("JANE", None)),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_sex_is_a_word_for_one_of_three_codes(code: str, word: str | None) -> None:
    expected = None if word is None else f"Sex: {word}."
    assert context(file(ramp(), PatientSex=code)) == expected


def test_a_value_of_a_wrong_representation_is_unknown() -> None:
    content = file(ramp(), PatientAge="054Y", PatientSex="F")
    assert context(content.replace(b"AS\x04\x00054Y", b"LO\x04\x00054Y")) == "Sex: female."
    assert context(content.replace(b"CS\x02\x00F ", b"PN\x02\x00F ")) == "Age: 50 to 59."


def test_an_element_that_occurs_twice_is_refused_only_if_it_is_asked_for() -> None:
    content = file(ramp(), PatientSex="F")
    element = b"\x10\x00\x40\x00CS\x02\x00F "
    doubled = content.replace(element, element + element.replace(b"F ", b"M "))
    assert len(doubled) == len(content) + len(element)
    assert context(doubled, SETTINGS) is None
    with pytest.raises(ImageError, match="occurs twice"):
        context(doubled)


def test_a_series_has_the_age_of_the_slice_that_is_asked_about() -> None:
    slices = [
        written(dataset(ramp(), InstanceNumber=number, PatientAge=f"0{number}0Y"))
        for number in (1, 2, 3)
    ]
    fields = read_series(slices, ASKED).tags.as_fields()
    assert (fields["PatientAge"], fields["NumberOfFrames"]) == ("20 to 29", 3)


@pytest.mark.parametrize("asked", [["name"], ["age", "age"], ["age", "sex", "sex"], "age", None])
def test_other_settings_are_refused(asked: Any) -> None:
    with pytest.raises(ValidationError, match="context"):
        Dicom.model_validate(SETTINGS.model_dump() | {"context": asked})
