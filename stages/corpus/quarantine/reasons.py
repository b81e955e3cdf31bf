"""Closed lists of refusal codes for records and corpora, stable when messages are reworded."""

from __future__ import annotations

from enum import StrEnum, unique
from typing import Final

from stages.core.errors import ExitCode, InputError


@unique
class Reason(StrEnum):
    """Why a record, an image or a question file is refused, for programs to compare.

    A quarantine row also has the reason in words. docs/ingest-quality.md lists all codes with their
    remedies, and stages/corpus/quarantine/advice.py has advice for each.
    """

    FILE_UNREADABLE = "file-unreadable"
    """A question file that cannot be parsed; like every refused file it counts as one record."""
    FILE_EMPTY = "file-empty"
    FILE_DAMAGED = "file-damaged"
    """A question file whose bytes cannot be read from the corpus."""
    FILE_ENCODING = "file-encoding"
    """A question file that is neither UTF-8 nor UTF-16."""
    FILE_FORM = "file-form"
    """A question file that is not a list of records."""
    COLUMN_MISSING = "column-missing"
    """A CSV without a required column."""
    COLUMN_DUPLICATE = "column-duplicate"
    """A CSV with two columns of the same meaning."""
    COLUMN_UNNAMED = "column-unnamed"
    """A CSV row with a value in a column that has no name."""
    ROW_QUOTING = "row-quoting"
    """A CSV row whose quotation marks do not match."""
    CELL_LENGTH = "cell-length"
    """A CSV cell that is too long for a text, such as an image written into it."""
    ROW_LENGTH = "row-length"
    """A CSV row with more or fewer cells than the header."""
    RECORD_FORM = "record-form"
    """A record that is not an object with fields."""
    RECORD_VALUE = "record-value"
    """A value that cannot be stored: too long, too deeply nested, or a number out of range."""
    FIELD_DUPLICATE = "field-duplicate"
    """A record with the same field twice."""
    FIELD_MISSING = "field-missing"
    FIELD_TYPE = "field-type"
    """A field that is not a string."""
    FIELD_EMPTY = "field-empty"
    FIELD_ENCODING = "field-encoding"
    """A text that is not Unicode."""
    FIELD_TEXT = "field-text"
    """A text with a control character or an invisible character."""
    FIELD_LENGTH = "field-length"
    """A text that is too long for a prompt."""
    FIELD_TOKEN = "field-token"  # noqa: S105  (not a secret)
    """A text with a special token or tag, which a model would obey."""
    FIELD_AGE = "field-age"
    """An age that is no number of years, no band of them, and no number with another unit."""
    FIELD_SEX = "field-sex"
    """A sex that is none of the known words."""
    FIELD_IDENTIFIER = "field-identifier"
    """A patient's context with what looks like a name, a date, a number or an address."""
    OPTION_COUNT = "option-count"
    """Fewer than two options."""
    OPTION_GAP = "option-gap"
    """A letter without an option before the last one."""
    OPTION_EXTRA = "option-extra"
    """More than 26 options, or a field that is named like one."""
    OPTIONS_EQUAL = "options-equal"
    OPTIONS_FORM = "options-form"
    """Options in one CSV cell that cannot be separated."""
    OPTION_LETTERS = "option-letters"
    """Options that begin with their letters, which are added later."""
    OPTION_LABEL = "option-label"
    """A text with an option label, which the published form cannot distinguish from the options."""
    ANSWER_NOT_OFFERED = "answer-not-offered"
    """gt_answer is not one of the options."""
    ANSWER_AMBIGUOUS = "answer-ambiguous"
    """An answer that can be read in two ways."""
    UNKNOWN_MODALITY = "unknown-modality"
    MODALITY_MISMATCH = "modality-mismatch"
    """A record whose modality is not that of its DICOM header."""
    UNKNOWN_QUESTION_TYPE = "unknown-question-type"
    DUPLICATE_ID = "duplicate-id"
    """A duplicate question_id; the first record in the order of files is kept."""
    IMAGE_PATH = "image-path"
    """An image_path that leads out of the images, or that no file system accepts."""
    IMAGE_LIST = "image-list"
    """A list of images that is empty, longer than any may be, or not of one patient."""
    IMAGE_MISSING = "image-missing"
    """The image is not in the corpus, or is a folder without a file directly in it."""
    IMAGE_EMPTY = "image-empty"
    """A file of no bytes."""
    IMAGE_FORMAT = "image-format"
    """Not an image of a known format."""
    IMAGE_SYNTAX = "image-syntax"
    """A DICOM file in an unsupported transfer syntax."""
    IMAGE_FRAMES = "image-frames"
    """Several images in one file, with resize.frames set to refuse."""
    IMAGE_SERIES = "image-series"
    """A folder of files that are not one series, or a file of images of several sizes."""
    IMAGE_VOLUME = "image-volume"
    """A volume whose slices cannot be ordered or cut as group volume asks: one is missing or there
    twice, some are not parallel, or where they lie in the patient is not known.
    """
    IMAGE_SLICE = "image-slice"
    """A question about slices that are no numbers, are there twice, or that its volume lacks."""
    IMAGE_TOO_LARGE = "image-too-large"
    """More pixels or frames than the limits allow, or more images of a question."""
    IMAGE_DAMAGED = "image-damaged"
    """Truncated or corrupt."""
    IMAGE_ANNOTATION = "image-annotation"
    """The DICOM header says that text is burned into the pixels, which may name a patient."""
    IMAGE_UNFLAGGED = "image-unflagged"
    """A kind of DICOM image that often has text burned in, without the flag in its header."""


UNKNOWN_NAME: Final = {
    "modality_type": Reason.UNKNOWN_MODALITY,
    "question_type": Reason.UNKNOWN_QUESTION_TYPE,
}
"""Field of a record -> the reason for a name in it that params.yaml does not know."""


@unique
class CorpusFault(StrEnum):
    """Why a corpus as a whole is refused, for programs to compare."""

    DAMAGED = "damaged"
    """Not a complete archive of a known kind."""
    LAYOUT = "layout"
    """No corpus, or several, in the archive or folder."""
    UNSAFE_MEMBER = "unsafe-member"
    """A member with a dangerous name, kind or size."""
    LIMIT = "limit"
    """More or larger members than corpus.limits allow."""
    NO_RECORD = "no-record"
    """No usable record."""
    TOO_MUCH_REFUSED = "too-much-refused"
    """More records were refused than quarantine allows."""
    DATA_TEST = "data-test"
    """A test of the data failed with severity error."""
    EMPTY_SPLIT = "empty-split"
    """A split without training or test questions."""
    RELEASED_SPLITS = "released-splits"
    """More released questions than splits.released allows are not those of the corpus."""


class RefusedDataError(InputError):
    """The corpus itself is at fault, as `fault` says; no other error refuses new data."""

    code = ExitCode.REFUSED_DATA

    def __init__(self, message: str, fault: CorpusFault = CorpusFault.DAMAGED) -> None:
        super().__init__(message)
        self.fault = fault
