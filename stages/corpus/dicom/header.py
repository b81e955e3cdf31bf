"""Read and check a DICOM header before any pixel is decoded.

All that is passed on of a header is a number within bounds or a word of a closed list, written
here rather than copied from the file: docs/ingest-dicom.md says of each why it identifies nobody.
`_check_annotation` has the rules for burned-in text.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field, replace
from typing import Any, Final

from stages.core.params import Dicom
from stages.corpus.dicom.grayscale import Depth, Grey, read_greys
from stages.corpus.dicom.headers.elements import BulkValue, Elements, read_elements, syntax_name
from stages.corpus.dicom.headers.patient import KEYWORDS as PATIENT_KEYWORDS
from stages.corpus.dicom.headers.patient import patient_facts
from stages.corpus.dicom.palette import KEYWORDS as PALETTE_KEYWORDS
from stages.corpus.dicom.palette import Palette, read_palette
from stages.corpus.dicom.syntaxes import DECODERS, ENCAPSULATED
from stages.corpus.quarantine.image_errors import ImageError
from stages.corpus.quarantine.reasons import Reason
from stages.taxonomy import DICOM_MODALITIES

# fmt: off
BODY_PARTS: Final = frozenset((
    "ABDOMEN", "ABDOMENPELVIS", "ANKLE", "AORTA", "ARM", "BLADDER", "BRAIN", "BREAST", "CAROTID",
    "CHEST", "CHESTABDOMEN", "CHESTABDPELVIS", "CLAVICLE", "COCCYX", "COLON", "CSPINE", "EAR",
    "ELBOW", "EXTREMITY", "EYE", "FEMUR", "FINGER", "FOOT", "FOREARM", "HAND", "HEAD", "HEADNECK",
    "HEART", "HIP", "HUMERUS", "JAW", "KIDNEY", "KNEE", "LEG", "LIVER", "LSPINE", "LUNG",
    "MAXILLA", "NECK", "ORBIT", "PANCREAS", "PELVIS", "PROSTATE", "RIB", "SACRUM", "SCAPULA",
    "SHOULDER", "SKIN", "SKULL", "SPINE", "SPLEEN", "SSPINE", "STERNUM", "STOMACH", "THIGH",
    "THUMB", "THYROID", "TIBIA", "TOE", "TSPINE", "UTERUS", "WHOLEBODY", "WRIST",))
# fmt: on
"""Values of BodyPartExamined that are passed on (of PS3.16 Annex L, those in common use)."""

PHOTOMETRIC: Final = (
    "MONOCHROME1",
    "MONOCHROME2",
    "PALETTE COLOR",
    "RGB",
    "YBR_FULL",
    "YBR_FULL_422",
    "YBR_ICT",
    "YBR_RCT",
)
"""Supported photometric interpretations (PS3.3 C.7.6.3.1.2)."""

_CAPTURED: Final = ("DV", "DI", "DF", "WSD", "SD", "SI", "DRW", "SYN")
"""ConversionType (PS3.3 C.8.6.1): captured from a screen, a film, a drawing, ..."""
_OFTEN_ANNOTATED: Final = ("US", "IVUS", "ES", "OT", "SC", "XC")
"""Modalities whose devices routinely write names and dates into the pixels."""
_SECONDARY_CAPTURE: Final = "1.2.840.10008.5.1.4.1.1.7"
"""SOP class, and the prefix of its multi-frame variants."""

_PIXELS: Final = {
    "PixelData": ("OB", "OW"),
    "FloatPixelData": ("OF",),
    "DoubleFloatPixelData": ("OD",),
}
"""Keyword -> allowed value representations."""
# fmt: off
_KEYWORDS: Final = (
    "SOPClassUID", "ImageType", "Modality", "ConversionType", "BodyPartExamined",
    "BurnedInAnnotation", "SeriesInstanceUID", "InstanceNumber", "ImagePositionPatient",
    "ImageOrientationPatient", "SliceThickness", "PixelSpacing", "PixelAspectRatio",
    "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation",
    "PlanarConfiguration", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    "PixelPaddingValue", "PixelPaddingRangeLimit", "RescaleSlope", "RescaleIntercept",
    "RescaleType", "ModalityLUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction",
    "VOILUTSequence", "PresentationLUTShape", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence", *PALETTE_KEYWORDS, *_PIXELS,
)
# fmt: on


@dataclass(frozen=True)
class Tags:
    """All that is passed on beside the pixels.

    Lengths are in millimetres. None stands for a value that is missing or not allowed.
    """

    modality: str | None
    body_part: str | None
    rows: int
    columns: int
    frames: int
    photometric: str
    bits_stored: int
    pixel_spacing: tuple[float, float] | None
    """Between the centres of rows, then of columns."""
    pixel_aspect: tuple[int, int] | None
    """Height to width of a pixel; for information, never used to resample."""
    slice_thickness: float | None
    burned_in: bool | None
    """Whether text is burned into the pixels."""
    age: str | None = None
    """Of the patient, as a band; like `sex` only if `dicom.context` asks for it."""
    sex: str | None = None

    def as_fields(self) -> dict[str, Any]:
        """Known values by DICOM keyword, for a record."""
        fields: dict[str, Any] = {
            "Modality": self.modality,
            "BodyPartExamined": self.body_part,
            "Rows": self.rows,
            "Columns": self.columns,
            "NumberOfFrames": self.frames,
            "PhotometricInterpretation": self.photometric,
            "BitsStored": self.bits_stored,
            "PixelSpacing": self.pixel_spacing and list(self.pixel_spacing),
            "PixelAspectRatio": self.pixel_aspect and list(self.pixel_aspect),
            "SliceThickness": self.slice_thickness,
            "BurnedInAnnotation": None if self.burned_in is None else ("NO", "YES")[self.burned_in],
            "PatientAge": self.age,
            "PatientSex": self.sex,
        }
        return {keyword: value for keyword, value in fields.items() if value is not None}


@dataclass(frozen=True)
class SeriesPosition:
    """Position of a file in its series."""

    series: str | None = field(repr=False)
    """Hash of SeriesInstanceUID, for comparisons within one run of the reader only."""
    along_normal: float | None
    """Millimetres along the normal of the slice; None if unknown."""
    orientation: tuple[float, ...] | None
    """Direction cosines of rows, then of columns (PS3.3 C.7.6.2.1.1)."""
    number: int | None


@dataclass(frozen=True)
class Header:
    """A checked header: what decoding and sorting need, and the tags that may be passed on."""

    tags: Tags
    position: SeriesPosition
    syntax: str
    """Transfer syntax UID."""
    samples: int
    """Per pixel: 1 or 3."""
    planar: int
    allocated: int
    """Bits per sample, of which `tags.bits_stored` are used."""
    signed: bool
    keyword: str
    """PixelData, FloatPixelData or DoubleFloatPixelData."""
    representation: str | None
    pixels: bytes = field(repr=False)
    greys: tuple[Grey, ...]
    """Grayscale steps: one for all frames, or one per frame; empty for colour."""
    palette: Palette | None


def read_header(content: bytes, settings: Dicom, max_pixels: int | None = None) -> Header:
    """Read and check the header of a DICOM file; no pixel is decoded.

    max_pixels: limit for a single frame, in addition to dicom.max_total_pixels. Raises ImageError;
    its message quotes no values but the size of the image and words of closed lists.
    """
    keywords = (*_KEYWORDS, *(PATIENT_KEYWORDS[fact] for fact in settings.context))
    syntax, elements = read_elements(content, keywords, settings.max_inflated_mb * 2**20)
    if syntax not in DECODERS:
        raise ImageError(
            f"DICOM transfer syntax {syntax_name(syntax)!r} is not supported", Reason.IMAGE_SYNTAX
        )
    rows, columns, frames = _size(elements, settings, max_pixels)
    photometric = _photometric(elements)
    samples = elements.unsigned("SamplesPerPixel") or 1
    if samples != (3 if photometric == "RGB" or photometric.startswith("YBR") else 1):
        raise ImageError(f"SamplesPerPixel {samples} does not match {photometric}")
    keyword, pixels = _pixel_element(elements)
    allocated, stored, signed = _bits(elements, keyword)
    tags = _tags(elements, (rows, columns, frames), photometric, stored)
    age, sex = patient_facts(elements, settings.context)
    tags = replace(tags, age=age, sex=sex)
    _check_annotation(elements, tags, settings)

    encapsulated = syntax in ENCAPSULATED
    if pixels.undefined_length != encapsulated:
        raise ImageError(
            "the pixel data do not match the transfer syntax: wrong length or wrong syntax"
        )
    if not encapsulated:
        frame_bits = rows * columns * samples * allocated
        _check_length(len(pixels.content), frame_bits, frames, photometric)

    position = _series_position(elements)
    planar = elements.unsigned("PlanarConfiguration") or 0
    palette = None
    greys: tuple[Grey, ...] = ()
    if photometric == "PALETTE COLOR":
        palette = read_palette(elements, signed=signed)
    elif samples == 1:
        ct_window = settings.ct_window if tags.modality == "CT" else None
        inverted = photometric == "MONOCHROME1"
        greys = read_greys(elements, Depth(stored, signed), frames, inverted, ct_window)
    return Header(
        tags=tags,
        position=position,
        syntax=syntax,
        samples=samples,
        planar=planar,
        allocated=allocated,
        signed=signed,
        keyword=keyword,
        representation=pixels.representation,
        pixels=pixels.content,
        greys=greys,
        palette=palette,
    )


def _size(elements: Elements, settings: Dicom, max_pixels: int | None) -> tuple[int, int, int]:
    """(rows, columns, frames), within the limits."""
    rows = elements.unsigned("Rows")
    columns = elements.unsigned("Columns")
    if not rows or not columns:
        raise ImageError("a DICOM file without an image: Rows or Columns is missing or 0")
    frames = (elements.integers("NumberOfFrames", 1) or (1,))[0]
    if frames < 1:
        raise ImageError("NumberOfFrames is less than 1")
    if max_pixels is not None and rows * columns > max_pixels:
        raise _too_large(f"pixels: {columns} x {rows}", max_pixels, "resize.max_megapixels")
    if frames > settings.max_frames:
        # an IS element is unbounded: a birth date in the wrong place is not quoted
        number = str(frames) if frames < 10**6 else "a million or more"
        raise _too_large(f"frames: {number}", settings.max_frames, "dicom.max_frames")
    if rows * columns * frames > settings.max_total_pixels:
        size = f"pixels: {columns} x {rows} in {frames} frames"
        raise _too_large(size, settings.max_total_pixels, "dicom.max_total_pixels")
    return rows, columns, frames


def _too_large(size: str, limit: int, setting: str) -> ImageError:
    why = f"too many {size}, the limit is {limit} ({setting})"
    return ImageError(why, Reason.IMAGE_TOO_LARGE)


def _photometric(elements: Elements) -> str:
    photometric = elements.code("PhotometricInterpretation", PHOTOMETRIC)
    if photometric is None:
        raise ImageError(
            f"PhotometricInterpretation is missing or none of {', '.join(PHOTOMETRIC)}"
        )
    return photometric


def _pixel_element(elements: Elements) -> tuple[str, BulkValue]:
    """Keyword and value of the only pixel data element."""
    present: list[tuple[str, BulkValue]] = []
    for keyword, allowed in _PIXELS.items():
        value = elements.bulk(keyword, allowed)
        if value is not None:
            present.append((keyword, value))
    if not present:
        raise ImageError("a DICOM file without pixel data")
    if len(present) > 1:
        raise ImageError("a DICOM file with several kinds of pixel data")
    return present[0]


def _bits(elements: Elements, keyword: str) -> tuple[int, int, bool]:
    """(BitsAllocated, BitsStored, signed), PS3.5 8.1.1."""
    allocated = elements.unsigned("BitsAllocated")
    if keyword != "PixelData":
        float_bits = 32 if keyword == "FloatPixelData" else 64
        if allocated != float_bits:
            raise ImageError(f"BitsAllocated of {keyword} is not {float_bits}")
        return float_bits, float_bits, True
    if allocated not in (1, 8, 16, 32):
        raise ImageError("BitsAllocated is none of 1, 8, 16, 32")
    stored = elements.unsigned("BitsStored") or allocated
    high = elements.unsigned("HighBit")
    if not 1 <= stored <= allocated or high not in (None, stored - 1):
        raise ImageError("BitsStored and HighBit do not fit BitsAllocated")
    signed = elements.unsigned("PixelRepresentation") or 0
    if signed not in (0, 1):
        raise ImageError("PixelRepresentation is neither 0 nor 1")
    return allocated, stored, bool(signed) and allocated > 1


def _check_length(length: int, frame_bits: int, frames: int, photometric: str) -> None:
    """ImageError unless the bytes of uncompressed pixel data are those of their frames.

    Padding of less than a frame is allowed.
    """
    if photometric == "YBR_FULL_422":
        frame_bits = frame_bits * 2 // 3  # two pixels share their chroma: Y Y Cb Cr
    expected = math.ceil(frame_bits * frames / 8)
    if length < expected:
        raise ImageError(
            "the pixel data are shorter than the image size requires: truncated or a wrong header"
        )
    if length >= expected + max(frame_bits // 8, 2):
        raise ImageError(
            "the pixel data are longer by a frame or more than the image size requires:"
            " a wrong header"
        )


def _tags(elements: Elements, size: tuple[int, int, int], photometric: str, stored: int) -> Tags:
    measures = _measures(elements)
    flag = elements.code("BurnedInAnnotation", ("YES", "NO"))
    return Tags(
        modality=elements.code("Modality", DICOM_MODALITIES),
        body_part=elements.code("BodyPartExamined", BODY_PARTS),
        rows=size[0],
        columns=size[1],
        frames=size[2],
        photometric=photometric,
        bits_stored=stored,
        pixel_spacing=_lengths(measures, "PixelSpacing", 2),
        pixel_aspect=_aspect(elements),
        slice_thickness=(_lengths(measures, "SliceThickness", 1) or (None,))[0],
        burned_in=None if flag is None else flag == "YES",
    )


def _measures(elements: Elements) -> Elements:
    """Data set with the sizes in millimetres: of enhanced files a functional group (C.7.6.16.2.1).

    Others have them at the top level.
    """
    shared = elements.first_item("SharedFunctionalGroupsSequence")
    return (shared and shared.first_item("PixelMeasuresSequence")) or elements


def _lengths(elements: Elements, keyword: str, count: int) -> Any:
    """Lengths that an image can have, to 6 digits: a birth date in the wrong place is dropped."""
    try:
        lengths = elements.decimals(keyword, count)
    except ImageError:
        return None
    if not lengths or not all(1e-6 <= length <= 1000 for length in lengths):
        return None
    return tuple(float(f"{length:.6g}") for length in lengths)


def _aspect(elements: Elements) -> tuple[int, int] | None:
    try:
        ratio = elements.integers("PixelAspectRatio", 2)
    except ImageError:
        return None
    if not ratio or not all(1 <= value <= 10_000 for value in ratio):
        return None
    return ratio[0], ratio[1]


def _check_annotation(elements: Elements, tags: Tags, settings: Dicom) -> None:
    """ImageError if the pixels contain text, or are of a kind that often does.

    Burned-in text cannot be removed by reading headers.
    """
    if tags.burned_in and not settings.accept_burned_in:
        raise ImageError(
            "text is burned into the image: BurnedInAnnotation is YES (dicom.accept_burned_in)",
            Reason.IMAGE_ANNOTATION,
        )
    if tags.burned_in is None and not settings.accept_unflagged:
        kind = _often_annotated(elements, tags)
        if kind is not None:
            why = f"{kind} without BurnedInAnnotation: it may show a name (dicom.accept_unflagged)"
            raise ImageError(why, Reason.IMAGE_UNFLAGGED)


def _often_annotated(elements: Elements, tags: Tags) -> str | None:
    """Kind of image that often has text burned in; None for others."""
    sop_class = elements.uid("SOPClassUID") or ""
    if sop_class.startswith(_SECONDARY_CAPTURE) or elements.code("ConversionType", _CAPTURED):
        return "a secondary capture"
    if tags.modality in _OFTEN_ANNOTATED:
        return f"an image of modality {tags.modality}"
    if elements.codes("ImageType")[:2] == ["DERIVED", "SECONDARY"]:
        return "a derived secondary image"
    return None


def _series_position(elements: Elements) -> SeriesPosition:
    uid = elements.uid("SeriesInstanceUID")
    orientation = elements.decimals("ImageOrientationPatient", 6)
    position = elements.decimals("ImagePositionPatient", 3)
    number = elements.integers("InstanceNumber", 1)
    return SeriesPosition(
        series=hashlib.sha256(uid.encode()).hexdigest() if uid else None,
        along_normal=_along_normal(orientation, position) if orientation and position else None,
        orientation=orientation,
        number=number[0] if number else None,
    )


def _along_normal(orientation: tuple[float, ...], position: tuple[float, ...]) -> float | None:
    """Projection of a position (mm) on the normal of a slice: row cosines x column cosines."""
    rx, ry, rz, cx, cy, cz = orientation
    normal = (ry * cz - rz * cy, rz * cx - rx * cz, rx * cy - ry * cx)
    if not any(normal):
        return None
    return sum(cosine * length for cosine, length in zip(normal, position, strict=True))
