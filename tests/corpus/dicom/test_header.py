"""DICOM headers: frames, the tags that are passed on, modality, burned-in text."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from stages.corpus.dicom.headers.modality import declared_modality
from stages.corpus.dicom.reader import read_dicom
from stages.corpus.images.decoding import ImageError
from stages.corpus.images.files import decode_files
from stages.corpus.quarantine.reasons import Reason
from tests.conftest import resize_settings
from tests.dicoms import (
    CT_STORAGE,
    SECONDARY_CAPTURE,
    dataset,
    deflated,
    file,
    ramp,
    settings,
    written,
)
from tests.omnimedvqa import TAXONOMY


def first_frame(content: bytes, **changes: Any) -> NDArray[np.uint8]:
    return read_dicom(content, settings(**changes)).frames[0]


# --- frames, tags, modality


@pytest.mark.parametrize(
    ("frame", "count", "index"),
    [("middle", 1, 0), ("middle", 2, 1), ("middle", 5, 2), ("first", 5, 0)],
)
def test_the_representative_frame_follows_the_settings(frame: str, count: int, index: int) -> None:
    frames = np.stack([ramp() // (number + 1) for number in range(count)])
    content = file(frames)
    dicom = settings(frame=frame)
    assert read_dicom(content, dicom).representative == index
    decoded = decode_files([content], resize_settings(size=24, resample="nearest"), dicom)
    assert np.asarray(decoded.image).max() == frames[index].max()
    assert len(decoded.frames) == (count if count > 1 else 0)


def test_frames_of_a_file_without_a_window_share_one_range() -> None:
    frames = np.stack([ramp(dtype="uint16", top=top) for top in (1000, 4000)])
    image = read_dicom(file(frames), settings())
    assert [frame.max() for frame in image.frames] == [round(255 / 4), 255]
    assert [frame.max() for frame in image.frames[::-1]] == [255, 64]


def test_only_tags_that_identify_nobody_are_passed_on() -> None:
    elements = {
        "PixelSpacing": [0.1234567891, 0.5],
        "SliceThickness": "2.5",
        "BodyPartExamined": "CHEST",
        "PixelAspectRatio": [3, 4],
    }
    content = file(
        ramp(),
        **elements,
        BurnedInAnnotation="NO",
        PatientName="Doe^Jane",
        PatientID="77",
        StudyDescription="of Jane Doe",
    )
    assert read_dicom(content, settings()).tags.as_fields() == {
        "Modality": "MR",
        "BodyPartExamined": "CHEST",
        "Rows": 32,
        "Columns": 40,
        "NumberOfFrames": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsStored": 8,
        "PixelSpacing": [0.123457, 0.5],
        "PixelAspectRatio": [3, 4],
        "SliceThickness": 2.5,
        "BurnedInAnnotation": "NO",
    }


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("Modality", "JANE"),
        ("BodyPartExamined", "JANE DOE"),
        ("BodyPartExamined", "CHEST\\JANE"),
        ("BurnedInAnnotation", "JANE"),
        ("PixelSpacing", ["19530517", "1"]),
        ("SliceThickness", "19530517"),
        ("PixelAspectRatio", ["19530517", "1"]),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_values_that_are_not_allowed_are_dropped(keyword: str, value: Any) -> None:
    fields = read_dicom(file(ramp(), **{keyword: value}), settings()).tags.as_fields()
    assert keyword not in fields
    assert "JANE" not in str(fields)


@pytest.mark.parametrize(
    ("modality", "slug"),
    [
        ("CT", "ct"),
        ("MR", "mri"),
        *product(("CR", "DX", "RG", "MG"), ["x-ray"]),
        ("US", "ultrasound"),
        ("OP", "fundus"),
        ("OPT", "oct"),
        *product(("SM", "GM"), ["microscopy"]),
        ("DMS", "dermoscopy"),
        *product(("ES", "NM", "PT", "XC", "OT", "JANE", ""), [None]),
    ],
)
def test_the_modality_of_the_header_gives_the_slug(modality: str, slug: str | None) -> None:
    for content in (file(ramp(), Modality=modality), deflated(file(ramp(), Modality=modality))):
        assert TAXONOMY.by_dicom.get(declared_modality(content) or "") == slug


@pytest.mark.parametrize(
    "content",
    [b"", b"text", b"\0" * 128 + b"DICM", file(ramp())[:200], b"\0" * 128 + b"DICM" + b"\xff" * 99],
)
def test_a_file_without_a_header_has_no_modality(content: bytes) -> None:
    assert declared_modality(content) is None


# --- burned-in text


def test_burned_in_text_is_refused_unless_it_is_accepted() -> None:
    content = file(ramp(), BurnedInAnnotation="YES")
    for changes in ({}, {"accept_unflagged": True}):
        with pytest.raises(ImageError, match=r"dicom\.accept_burned_in") as caught:
            first_frame(content, **changes)
        assert caught.value.reason == Reason.IMAGE_ANNOTATION
    np.testing.assert_array_equal(first_frame(content, accept_burned_in=True), ramp())


@pytest.mark.parametrize(
    "elements",
    [
        {"SOPClassUID": SECONDARY_CAPTURE},
        {"SOPClassUID": f"{SECONDARY_CAPTURE}.4"},
        {"ConversionType": "WSD"},
        {"Modality": "US"},
        {"Modality": "OT"},
        {"Modality": "XC"},
        {"ImageType": ["DERIVED", "SECONDARY", "OTHER"]},
        {"Modality": "US", "BurnedInAnnotation": "MAYBE"},
    ],
)
def test_kinds_that_often_have_text_burned_in_need_the_flag(
    elements: dict[str, Any],
) -> None:
    with pytest.raises(ImageError, match=r"BurnedInAnnotation.*dicom\.accept_unflagged") as caught:
        first_frame(file(ramp(), **elements))
    assert caught.value.reason == Reason.IMAGE_UNFLAGGED
    first_frame(file(ramp(), **elements), accept_unflagged=True)
    first_frame(file(ramp(), **elements | {"BurnedInAnnotation": "NO"}))


@pytest.mark.parametrize("kind", [["ORIGINAL", "PRIMARY"], ["DERIVED", "PRIMARY"]])
def test_other_kinds_do_not_need_the_flag(kind: list[str]) -> None:
    image = read_dicom(file(ramp(), ImageType=kind, SOPClassUID=CT_STORAGE), settings())
    assert "BurnedInAnnotation" not in image.tags.as_fields()


def test_a_file_that_is_dicom_and_tiff_at_once_is_read_as_dicom() -> None:
    """Otherwise its flag for burned-in text would be overlooked."""
    content = b"II*\0" + file(ramp(), BurnedInAnnotation="YES")[4:]
    with pytest.raises(ImageError) as caught:
        decode_files([content], resize_settings(size=24), settings())
    assert caught.value.reason == Reason.IMAGE_ANNOTATION


def test_overlays_are_not_drawn() -> None:
    overlay = Dataset()
    overlay.add_new(0x60000010, "US", 32)
    overlay.add_new(0x60000011, "US", 40)
    overlay.add_new(0x60003000, "OW", b"\xff" * 160)
    with_overlay = dataset(ramp())
    with_overlay.update(overlay)
    np.testing.assert_array_equal(first_frame(written(with_overlay)), ramp())


def test_a_decoded_image_has_the_size_of_the_settings() -> None:
    decoded = decode_files([file(ramp())], resize_settings(size=24), settings())
    assert (decoded.image.size, decoded.image.mode) == ((24, 24), "RGB")
    assert (decoded.width, decoded.height) == (40, 32)
    assert decoded.tags is not None
