"""Remedies that the corpus check gives for refusals and oddities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from stages.corpus.quarantine.reasons import Reason


class Advice(NamedTuple):
    """A kind of finding, under which it is counted, and what to do about it."""

    kind: str
    remedy: str


SMALLEST_SPLIT: Final = 2
"""Different images that a modality or a question type needs: one to train on, one to test."""

DUPLICATE_IMAGES: Final = Advice(
    "duplicate images",
    "No harm: copies are kept together in train or test. But check that questions about a copy have"
    " the same answers.",
)
IGNORED_COLUMNS: Final = Advice(
    "ignored columns",
    "They are not read and not copied anywhere. Remove what identifies a patient before you share"
    " the folder.",
)
OTHER_TABLES: Final = Advice(
    "tables that are not read",
    "Questions are read from .csv beside the images, or from .json in QA_information/Open-access:"
    " save the table as CSV UTF-8, or the records as a JSON list.",
)
UNUSED_IMAGES: Final = Advice(
    "images that no question names",
    "They are not used. Name them in a question, or remove them; names are case-sensitive.",
)
MISSING_SPLITS: Final = Advice(
    "splits without data",
    f"A split needs at least {SMALLEST_SPLIT} images that are not copies, hundreds for meaningful"
    " results. Those without are left out with their checkpoints (matrix in params.yaml), which is"
    " fine if the corpus is not about them.",
)
NOT_JOINED: Final = Advice(
    "released questions that do not join",
    "They are left out of train and test. Use the corpus that the split files were made from, or"
    " correct the files (splits.released in params.yaml).",
)


def advise(reason: Reason) -> Advice:
    """The advice for a refusal; there is one for every reason."""
    return _ADVICE[reason]


def remedy_of(reason: Reason) -> str:
    """What to do about a refusal."""
    return _ADVICE[reason].remedy


def _unknown(kind: str, group: str) -> Advice:
    return Advice(
        kind,
        f"Correct the word, or add it to {group} in params.yaml, as a name of an entry or as an"
        " entry of its own: docs/own-data.md.",
    )


_FIELDS = Advice(
    "fields that are missing, empty or not text", "Fill them in as text, or remove the record."
)
_CHARACTERS = Advice(
    "texts with invisible characters",
    "Retype the text, or remove the character; often the encoding is wrong.",
)

_ADVICE: Final[Mapping[Reason, Advice]] = {
    Reason.FILE_UNREADABLE: Advice(
        "corrupt JSON files",
        "No record of such a file is used. Export it again; `python -m json.tool FILE` shows the"
        " position.",
    ),
    Reason.FILE_EMPTY: Advice("empty files", "Remove the file, or export it again."),
    Reason.FILE_DAMAGED: Advice(
        "question files that cannot be read",
        "No record of such a file is used. Copy the folder, or make the archive, again.",
    ),
    Reason.FILE_ENCODING: Advice(
        "files in another encoding",
        "Save the file as UTF-8: in Excel 'CSV UTF-8 (Comma delimited)', in pandas the default.",
    ),
    Reason.FILE_FORM: Advice(
        "JSON files that are not a list", "A question file is a list of records: [{...}, {...}]."
    ),
    Reason.COLUMN_MISSING: Advice(
        "CSV files without a required column",
        "The first line names the columns: image, question, options (or option_A, option_B, ...),"
        " answer, modality, type.",
    ),
    Reason.COLUMN_DUPLICATE: Advice(
        "CSV files with duplicate columns", "Remove one of the two columns."
    ),
    Reason.COLUMN_UNNAMED: Advice(
        "CSV columns without a name", "Name the column, or save without it."
    ),
    Reason.ROW_QUOTING: Advice(
        "CSV cells with stray quotation marks", "Export the CSV again from a program."
    ),
    Reason.CELL_LENGTH: Advice(
        "CSV cells too long for a text",
        "Save images that are written into cells (base64) as files, and name them in the cells.",
    ),
    Reason.ROW_LENGTH: Advice(
        "CSV rows that are longer or shorter than the header",
        "Quote cells that contain the separator.",
    ),
    Reason.RECORD_FORM: Advice(
        "list elements that are not records",
        "Each element of the list is an object with a record's fields.",
    ),
    Reason.RECORD_VALUE: Advice(
        "values that cannot be stored", "Leave the field out, or write it as a short text."
    ),
    Reason.FIELD_DUPLICATE: Advice(
        "duplicate fields in a record", "Remove one: it is ambiguous which is meant."
    ),
    Reason.FIELD_MISSING: _FIELDS,
    Reason.FIELD_TYPE: _FIELDS,
    Reason.FIELD_EMPTY: _FIELDS,
    Reason.FIELD_ENCODING: _CHARACTERS,
    Reason.FIELD_TEXT: _CHARACTERS,
    Reason.FIELD_LENGTH: Advice(
        "texts that are too long", "Shorten them: the reason has the limit."
    ),
    Reason.FIELD_TOKEN: Advice(
        "texts with a model's special tokens",
        "Remove the token or tag: a model would interpret it as a command.",
    ),
    Reason.FIELD_AGE: Advice(
        "ages that cannot be read",
        "Write the years as a number, 54, or a band, 50-59; of infants the unit too, 6 months; from"
        " 90 years on 90+.",
    ),
    Reason.FIELD_SEX: Advice(
        "sexes that cannot be read", "Write female, male, other or unknown, or F, M, O or U."
    ),
    Reason.FIELD_IDENTIFIER: Advice(
        "contexts that may identify a patient",
        "Take out names, dates but for the year, numbers of records, phones and addresses, and"
        " write ages over 89 as 90+. Reword what only looks like one. Then read the other contexts,"
        " too: patterns cannot find everything (docs/own-data.md).",
    ),
    Reason.OPTION_COUNT: Advice("too few options", "Give at least two options, or remove it."),
    Reason.OPTION_GAP: Advice(
        "gaps in the options", "Fill in the missing option, or move the later ones up."
    ),
    Reason.OPTION_EXTRA: Advice(
        "options that cannot be counted", "Name at most 26 options option_A, option_B, and so on."
    ),
    Reason.OPTIONS_EQUAL: Advice("equal options", "Make the options differ, or remove one."),
    Reason.OPTIONS_FORM: Advice(
        "indistinguishable options",
        'Write "Cyst | Nodule", or the JSON list ["Cyst", "Nodule"], or a column for each.',
    ),
    Reason.OPTION_LETTERS: Advice(
        "options with their letters", "Write only the text: 'Cyst', not 'A) Cyst'."
    ),
    Reason.OPTION_LABEL: Advice(
        "texts that look like options",
        "Reword what looks like ' A)' or ', B)' in a question or an option.",
    ),
    Reason.ANSWER_NOT_OFFERED: Advice(
        "answers that are none of the options",
        "Write the option's text exactly; in a CSV, its letter also works.",
    ),
    Reason.ANSWER_AMBIGUOUS: Advice(
        "ambiguous answers", "Write the text of the option that is meant."
    ),
    Reason.UNKNOWN_MODALITY: _unknown("unknown modalities", "modalities"),
    Reason.MODALITY_MISMATCH: Advice(
        "images whose modality differs from their record's",
        "The record and the header of its DICOM file disagree: correct the record's modality, or"
        " name the image that was meant.",
    ),
    Reason.UNKNOWN_QUESTION_TYPE: _unknown("unknown question types", "question_types"),
    Reason.DUPLICATE_ID: Advice(
        "duplicate questions", "Remove one; if they differ, give each its own id."
    ),
    Reason.IMAGE_PATH: Advice(
        "paths that cannot be used",
        "Write the path relative to the CSV's folder, with / between folders; in JSON from"
        " Images/ on.",
    ),
    Reason.IMAGE_LIST: Advice(
        "lists of images that cannot be used",
        "Name each image of the question once, in order, and only those of one patient.",
    ),
    Reason.IMAGE_MISSING: Advice(
        "images that are missing",
        "Add the file, or correct the path, which is case-sensitive and includes the suffix.",
    ),
    Reason.IMAGE_EMPTY: Advice(
        "images that are empty", "Copy or export the file again: it has 0 bytes."
    ),
    Reason.IMAGE_FORMAT: Advice(
        "files in an unknown image format",
        "Export as PNG, JPEG, TIFF, BMP, WebP, GIF, DICOM or NIfTI; renaming the file is not"
        " enough. Of a folder of slices, move all other files out.",
    ),
    Reason.IMAGE_SYNTAX: Advice(
        "DICOM files in an unsupported transfer syntax",
        "Decompress the file with a DICOM tool that keeps the header, such as `gdcmconv --raw IN"
        " OUT`: a PNG would lose the header, which says whether text is burned in.",
    ),
    Reason.IMAGE_FRAMES: Advice(
        "files with several images",
        "Export the one that is meant, or set resize.frames: first in params.yaml.",
    ),
    Reason.IMAGE_SERIES: Advice(
        "folders and stacks that are not one volume",
        "A folder that a record names must hold the files of one series, of one size and kind; the"
        " images of a TIFF or GIF that is a stack must have one size, too.",
    ),
    Reason.IMAGE_VOLUME: Advice(
        "volumes that cannot be shown slice by slice as params.yaml asks",
        "Complete or separate the slices that the reason names, or export the volume with its"
        " positions. With volume.plane: acquired and volume.frames: 1 a question that names no"
        " slices shows one, as it was stored (docs/ingest-dicom.md).",
    ),
    Reason.IMAGE_SLICE: Advice(
        "slices that cannot be used",
        "Write their numbers, counted from 1 in the order of the volume, each once, as 12|14|16,"
        " for a question about one volume.",
    ),
    Reason.IMAGE_TOO_LARGE: Advice(
        "images that are too large or too many",
        "Export the image smaller or show fewer, or raise the limit named in the reason in"
        " params.yaml.",
    ),
    Reason.IMAGE_DAMAGED: Advice(
        "images that cannot be decoded",
        "Copy or export the file again: a PNG or JPEG from its source, a DICOM file as DICOM,"
        " because its header is checked too. Move files that are no slices, such as a DICOMDIR, out"
        " of a folder of slices.",
    ),
    Reason.IMAGE_ANNOTATION: Advice(
        "DICOM images with text burned in",
        "Redact the pixels (a name may be in them), then set BurnedInAnnotation to NO. If no"
        " patient can be identified, dicom.accept_burned_in in params.yaml accepts such images. Do"
        " not export them as PNG: that removes the flag and leaves the name.",
    ),
    Reason.IMAGE_UNFLAGGED: Advice(
        "DICOM images that may have text burned in",
        "Look at every such image for names, dates and numbers, and redact what you find. Then set"
        " BurnedInAnnotation to NO in each reviewed file, or, once all are reviewed, set"
        " dicom.accept_unflagged to true in params.yaml. Do not export them as PNG: that removes"
        " the header that is checked and leaves the name (docs/ingest-dicom.md).",
    ),
}
