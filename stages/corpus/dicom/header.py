"""What a DICOM header says of its pixels, checked before any is decoded, and the few facts that may
leave the reader.

Everything that is kept of a header is a number within bounds or a word of a closed list, written
here and not copied from the file: docs/ingest-dicom.md says of each why it names nobody. Rules for
burned-in text: `_check_annotation`.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from typing import Any, Final

from stages.core.params import Dicom
from stages.corpus.dicom.grayscale import Depth, Grey, read_greys
from stages.corpus.dicom.headers.elements import Elements, read_elements, syntax_name
from stages.corpus.dicom.headers.modality import MODALITIES
from stages.corpus.dicom.palette import KEYWORDS as PALETTE
from stages.corpus.dicom.palette import Palette, read_palette
from stages.corpus.dicom.syntaxes import DECODERS, ENCAPSULATED
from stages.corpus.quarantine.image_errors import ImageError
from stages.corpus.quarantine.reasons import Reason

BODY_PARTS: Final = frozenset(
    (
        *(
            "ABDOMEN",
            "ABDOMENPELVIS",
            "ANKLE",
            "AORTA",
            "ARM",
            "BLADDER",
            "BRAIN",
            "BREAST",
            "CAROTID",
            "CHEST",
            "CHESTABDOMEN",
        ),
        *(
            "CHESTABDPELVIS",
            "CLAVICLE",
            "COCCYX",
            "COLON",
            "CSPINE",
            "EAR",
            "ELBOW",
            "EXTREMITY",
            "EYE",
            "FEMUR",
            "FINGER",
            "FOOT",
        ),
        *(
            "FOREARM",
            "HAND",
            "HEAD",
            "HEADNECK",
            "HEART",
            "HIP",
            "HUMERUS",
            "JAW",
            "KIDNEY",
            "KNEE",
            "LEG",
            "LIVER",
            "LSPINE",
            "LUNG",
        ),
        *(
            "MAXILLA",
            "NECK",
            "ORBIT",
            "PANCREAS",
            "PELVIS",
            "PROSTATE",
            "RIB",
            "SACRUM",
            "SCAPULA",
            "SHOULDER",
            "SKIN",
            "SKULL",
            "SPINE",
        ),
        *(
            "SPLEEN",
            "SSPINE",
            "STERNUM",
            "STOMACH",
            "THIGH",
            "THUMB",
            "THYROID",
            "TIBIA",
            "TOE",
            "TSPINE",
            "UTERUS",
            "WHOLEBODY",
            "WRIST",
        ),
    )
)
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

_CAPTURED: Final = ("DV", "DI", "DF", "WSD", "SD", "SI", "DRW", "SYN")
"""ConversionType: how a secondary capture was made, from a screen, a film, a drawing."""
_OFTEN_ANNOTATED: Final = ("US", "IVUS", "ES", "OT", "SC", "XC")
"""Modalities whose devices write names and dates into the pixels as a matter of course."""
_SECONDARY_CAPTURE: Final = "1.2.840.10008.5.1.4.1.1.7"
"""SOP class, and the beginning of those of its multi-frame kinds."""

_PIXELS: Final = {
    "PixelData": ("OB", "OW"),
    "FloatPixelData": ("OF",),
    "DoubleFloatPixelData": ("OD",),
}
_GROUPS: Final = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_KEYWORDS: Final = (
    *(
        "SOPClassUID",
        "ImageType",
        "Modality",
        "ConversionType",
        "BodyPartExamined",
        "SeriesInstanceUID",
        "InstanceNumber",
    ),
    *(
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "SliceThickness",
        "PixelSpacing",
        "PixelAspectRatio",
        "BurnedInAnnotation",
    ),
    *(
        "Rows",
        "Columns",
        "NumberOfFrames",
        "SamplesPerPixel",
        "PhotometricInterpretation",
        "PlanarConfiguration",
    ),
    *(
        "BitsAllocated",
        "BitsStored",
        "HighBit",
        "PixelRepresentation",
        "PixelPaddingValue",
        "PixelPaddingRangeLimit",
    ),
    *(
        "RescaleSlope",
        "RescaleIntercept",
        "RescaleType",
        "ModalityLUTSequence",
        "WindowCenter",
        "WindowWidth",
        "VOILUTFunction",
    ),
    *("VOILUTSequence", "PresentationLUTShape"),
    *(*PALETTE, *_GROUPS, *_PIXELS),
)


@dataclass(frozen=True)
class Tags:
    """All that goes on beside the pixels. Lengths are in millimetres; None where the file says
    nothing that is allowed.
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
    """Height to width of a pixel; told, never used to resample."""
    slice_thickness: float | None
    burned_in: bool | None
    """Whether the file says that text is burned into its pixels."""

    def as_fields(self) -> dict[str, Any]:
        """By DICOM's keywords, without what is not known: what a record gets."""
        known: dict[str, Any] = {
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
        }
        return {keyword: value for keyword, value in known.items() if value is not None}


@dataclass(frozen=True)
class SeriesPosition:
    """Where a file stands in its series. `series` is a hash, good for comparisons within one run of
    the reader only.
    """

    series: str | None = field(repr=False)
    normal_position: float | None
    """Millimetres along the normal of the slice; None if the file does not say."""
    orientation: tuple[float, ...] | None
    number: int | None


@dataclass(frozen=True)
class Header:
    """A header that was checked: what decoding needs, what may go on, and where the file stands in
    a series.
    """

    tags: Tags
    place: SeriesPosition
    syntax: str
    samples: int
    planar: int
    allocated: int
    signed: bool
    keyword: str
    """PixelData, FloatPixelData or DoubleFloatPixelData."""
    representation: str | None
    pixels: bytes = field(repr=False)
    greys: tuple[Grey, ...]
    """How stored values become grey: one for all frames, or one for each; empty for colour."""
    palette: Palette | None


def read_header(content: bytes, settings: Dicom, max_pixels: int | None = None) -> Header:
    """Read and check the header of a DICOM file; no pixel is decoded.

    max_pixels: of one frame, if it has a limit of its own beside dicom.max_total_pixels. Raises
    ImageError with the reason, which quotes no value of the file but the size of the image and
    words of closed lists.
    """
    syntax, elements = read_elements(content, _KEYWORDS, settings.max_inflated_mb * 2**20)
    if syntax not in DECODERS:
        raise ImageError(
            f"DICOM transfer syntax {syntax_name(syntax)!r} is not supported", Reason.IMAGE_SYNTAX
        )
    rows, columns, frames = _size(elements, settings, max_pixels)
    photometric = _photometric(elements)
    samples = elements.unsigned("SamplesPerPixel") or 1
    if samples != (3 if photometric == "RGB" or photometric.startswith("YBR") else 1):
        raise ImageError(f"SamplesPerPixel {samples} does not go with {photometric}")
    keyword, pixels, representation, undefined = _pixel_element(elements)
    allocated, stored, signed = _bits(elements, keyword)
    tags = _tags(elements, (rows, columns, frames), photometric, stored)
    _check_annotation(elements, tags, settings)
    encapsulated = syntax in ENCAPSULATED
    if undefined != encapsulated:
        raise ImageError(
            "the pixel data are not in the form that the transfer syntax has: wrong length or wrong"
            " syntax"
        )
    if not encapsulated:
        _check_length(len(pixels), rows * columns * samples * allocated, frames, photometric)
    grey = samples == 1 and photometric != "PALETTE COLOR"
    window = settings.ct_window if tags.modality == "CT" else None
    return Header(
        tags=tags,
        place=_place(elements),
        syntax=syntax,
        samples=samples,
        planar=elements.unsigned("PlanarConfiguration") or 0,
        allocated=allocated,
        signed=signed,
        keyword=keyword,
        representation=representation,
        pixels=pixels,
        greys=(
            read_greys(
                elements, Depth(stored, signed), frames, photometric == "MONOCHROME1", window
            )
            if grey
            else ()
        ),
        palette=read_palette(elements, signed=signed) if photometric == "PALETTE COLOR" else None,
    )


def _size(elements: Elements, settings: Dicom, max_pixels: int | None) -> tuple[int, int, int]:
    """(rows, columns, frames), within the limits."""
    rows, columns = elements.unsigned("Rows"), elements.unsigned("Columns")
    if not rows or not columns:
        raise ImageError("a DICOM file without an image: Rows or Columns is missing or 0")
    frames = (elements.integers("NumberOfFrames", 1) or (1,))[0]
    if frames < 1:
        raise ImageError("NumberOfFrames is less than 1")
    if max_pixels is not None and rows * columns > max_pixels:
        limited = f"the limit is {max_pixels} (resize.max_megapixels)"
        raise ImageError(f"too many pixels: {columns} x {rows}, {limited}", Reason.IMAGE_TOO_LARGE)
    if frames > settings.max_frames:
        limited = f"the limit is {settings.max_frames} (dicom.max_frames)"
        raise ImageError(f"too many frames: {_counted(frames)}, {limited}", Reason.IMAGE_TOO_LARGE)
    if rows * columns * frames > settings.max_total_pixels:
        limited = f"the limit is {settings.max_total_pixels} (dicom.max_total_pixels)"
        raise ImageError(
            f"too many pixels: {columns} x {rows} in {frames} frames, {limited}",
            Reason.IMAGE_TOO_LARGE,
        )
    return rows, columns, frames


def _counted(frames: int) -> str:
    """A number of frames, which an IS element does not bound, as far as it is worth telling."""
    return str(frames) if frames < 10**6 else "a million or more"


def _photometric(elements: Elements) -> str:
    found = elements.code("PhotometricInterpretation", PHOTOMETRIC)
    if found is None:
        raise ImageError(
            f"PhotometricInterpretation is missing or none of {', '.join(PHOTOMETRIC)}"
        )
    return found


def _pixel_element(elements: Elements) -> tuple[str, bytes, str | None, bool]:
    """(keyword, bytes, value representation, whether the length was undefined)."""
    found = [
        (keyword, bulk)
        for keyword, allowed in _PIXELS.items()
        if (bulk := elements.bulk(keyword, allowed)) is not None
    ]
    if len(found) != 1:
        raise ImageError(
            "a DICOM file with several kinds of pixel data"
            if found
            else "a DICOM file without pixel data"
        )
    keyword, (pixels, representation, undefined) = found[0]
    return keyword, pixels, representation, undefined


def _bits(elements: Elements, keyword: str) -> tuple[int, int, bool]:
    """(BitsAllocated, BitsStored, signed)."""
    allocated = elements.unsigned("BitsAllocated")
    if keyword != "PixelData":
        wanted = 32 if keyword == "FloatPixelData" else 64
        if allocated != wanted:
            raise ImageError(f"BitsAllocated of {keyword} is not {wanted}")
        return wanted, wanted, True
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


def _check_length(found: int, bits: int, frames: int, photometric: str) -> None:
    """ImageError unless pixel data that are not compressed have the length of their frames, some
    padding aside.
    """
    if photometric == "YBR_FULL_422":
        bits = bits * 2 // 3
    wanted = math.ceil(bits * frames / 8)
    if found < wanted:
        raise ImageError(
            "the pixel data are shorter than the image's size demands: cut short, or a wrong header"
        )
    if found >= wanted + max(bits // 8, 2):
        raise ImageError(
            "the pixel data are longer, by a frame or more, than the image's size demands: a wrong"
            " header"
        )


def _tags(elements: Elements, size: tuple[int, int, int], photometric: str, stored: int) -> Tags:
    measures = _measures(elements)
    flag = elements.code("BurnedInAnnotation", ("YES", "NO"))
    return Tags(
        modality=elements.code("Modality", MODALITIES),
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
    """The data set that holds sizes in millimetres: an enhanced multi-frame file has them in a
    functional group.
    """
    for group in elements.items(_GROUPS[0])[:1]:
        for measures in group.items("PixelMeasuresSequence")[:1]:
            return measures
    return elements


def _lengths(elements: Elements, keyword: str, count: int) -> Any:
    """Lengths that an image can have, to 6 digits: a birth date in the wrong place is none."""
    try:
        found = elements.decimals(keyword, count)
    except ImageError:
        return None
    if not found or not all(1e-6 <= value <= 1000 for value in found):
        return None
    return tuple(float(f"{value:.6g}") for value in found)


def _aspect(elements: Elements) -> tuple[int, int] | None:
    try:
        found = elements.integers("PixelAspectRatio", 2)
    except ImageError:
        return None
    return (found[0], found[1]) if found and all(1 <= value <= 10_000 for value in found) else None


def _check_annotation(elements: Elements, tags: Tags, settings: Dicom) -> None:
    """ImageError if there is text in the pixels, or may well be: burned-in text is beyond what a
    reader of headers can take out.
    """
    if tags.burned_in:
        if not settings.accept_burned_in:
            raise ImageError(
                "text is burned into the image, BurnedInAnnotation says (dicom.accept_burned_in)",
                Reason.IMAGE_ANNOTATION,
            )
    elif (
        tags.burned_in is None and not settings.accept_unflagged and (kind := _risk(elements, tags))
    ):
        why = f"{kind} without BurnedInAnnotation: it may show a name (dicom.accept_unflagged)"
        raise ImageError(why, Reason.IMAGE_UNFLAGGED)


def _risk(elements: Elements, tags: Tags) -> str | None:
    """What makes an image one that often has text burned in; None if nothing does."""
    if (elements.uid("SOPClassUID") or "").startswith(_SECONDARY_CAPTURE) or elements.code(
        "ConversionType", _CAPTURED
    ):
        return "a secondary capture"
    if tags.modality in _OFTEN_ANNOTATED:
        return f"an image of modality {tags.modality}"
    if elements.codes("ImageType")[:2] == ["DERIVED", "SECONDARY"]:
        return "a derived secondary image"
    return None


def _place(elements: Elements) -> SeriesPosition:
    series = elements.uid("SeriesInstanceUID")
    orientation = elements.decimals("ImageOrientationPatient", 6)
    position = elements.decimals("ImagePositionPatient", 3)
    along = None
    if orientation and position:
        (a, b, c), (d, e, f) = orientation[:3], orientation[3:]
        normal = (b * f - c * e, c * d - a * f, a * e - b * d)
        along = (
            sum(part * at for part, at in zip(normal, position, strict=True))
            if any(normal)
            else None
        )
    number = elements.integers("InstanceNumber", 1)
    hashed = hashlib.sha256(series.encode()).hexdigest() if series else None
    return SeriesPosition(hashed, along, orientation, number[0] if number else None)
