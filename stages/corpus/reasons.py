"""The reasons for which an input can be refused: a closed list of codes that do not change when the words of a message do."""

from __future__ import annotations

from enum import StrEnum, unique


@unique
class Reason(StrEnum):
    """Why an input is refused, for machines; a quarantine row says it in words as well. docs/ingest-quality.md says what to do."""

    FILE_UNREADABLE = "file-unreadable"
    """A question file that cannot be parsed; it counts as one record read, however many it held."""
    FILE_FORM = "file-form"
    """A question file that is not a list of records."""
    RECORD_FORM = "record-form"
    """A record that is not an object with fields."""
    FIELD_MISSING = "field-missing"
    FIELD_TYPE = "field-type"
    """A field that is not a string."""
    FIELD_EMPTY = "field-empty"
    FIELD_ENCODING = "field-encoding"
    """A text that is not Unicode."""
    OPTION_COUNT = "option-count"
    """Fewer than two options, more than four, or a gap between them."""
    OPTIONS_EQUAL = "options-equal"
    OPTION_LABEL = "option-label"
    """A text that holds an option label, which the published form cannot tell from the options."""
    ANSWER_NOT_OFFERED = "answer-not-offered"
    """gt_answer is none of the options."""
    UNKNOWN_MODALITY = "unknown-modality"
    UNKNOWN_QUESTION_TYPE = "unknown-question-type"
    DUPLICATE_ID = "duplicate-id"
    """A question_id that stands twice; the first in the order of files is kept."""
    IMAGE_PATH = "image-path"
    """An image_path that leads elsewhere, or that no file system takes."""
    IMAGE_MISSING = "image-missing"
    """No such picture in the corpus."""
    IMAGE_EMPTY = "image-empty"
    """A file of no bytes."""
    IMAGE_FORMAT = "image-format"
    """Not a picture of a known format."""
    IMAGE_TOO_LARGE = "image-too-large"
    """More pixels than are decoded."""
    IMAGE_DAMAGED = "image-damaged"
    """Truncated, or otherwise not decoded to the end."""
    IMAGE_ANNOTATION = "image-annotation"
    """Its header says that text is burned into the pixels, which may name a patient."""
