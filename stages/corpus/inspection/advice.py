"""What to do about each kind of refusal, for those whose data it is. Reasons are those of the readers, matched by their words."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from stages.corpus.quarantine.ledger import Row
from stages.corpus.records.reading import MISSING
from stages.corpus.records.texts import LONGEST
from stages.taxonomy import MODALITIES, QUESTION_TYPES, nearest

UNUSABLE: Final = "the image cannot be used"


class Advice(NamedTuple):
    """A kind of refusal: its name, and what to do about it."""

    kind: str
    remedy: str


_OTHER: Final = Advice("other reasons", "Mend the record as the reason says.")

_SAVE_AS = "Save the file as UTF-8: in Excel 'CSV UTF-8 (Comma delimited)', in pandas the default."
_WORDS = "Write one of ours: {ours}; OmniMedVQA's JSON: {theirs}. A further one cannot be trained without code: see docs/own-data.md."

_ADVICE: Final[tuple[tuple[str, Advice], ...]] = (
    (MISSING, Advice("pictures that are missing", "Add the file, or mend the path: capitals count, and so does the suffix.")),
    (UNUSABLE, Advice("pictures that cannot be decoded", "Export the picture again, as PNG for instance.")),
    ("^the file is empty", Advice("empty files", "Take the file out, or export it again.")),
    (
        "not UTF-8 text|UTF-16 text that is damaged",
        Advice("files in another encoding", _SAVE_AS),
    ),
    (
        "not a JSON file that can be parsed",
        Advice("damaged JSON files", "No record of such a file is used. Export it again; `python -m json.tool FILE` shows the place."),
    ),
    ("not a JSON list", Advice("JSON files that are no list", "A question file is a list of records: [{...}, {...}].")),
    (
        "the first line lacks",
        Advice(
            "CSV files without a column that is needed",
            "The first line names the columns: image, question, options (or option_A, option_B, ...), answer, modality, type.",
        ),
    ),
    ("two columns mean|options stand in one column and", Advice("CSV files with a column twice", "Take one of the two columns out.")),
    ("not an object", Advice("list elements that are no record", "Each element of the list is an object with a record's fields.")),
    ("a field that stands twice", Advice("fields that stand twice in a record", "Nobody knows which is meant: take one out.")),
    (
        "is not JSON:|a number |is nested more than|a record of more than",
        Advice("values that cannot be kept", "Leave the field out, or write it as a short text."),
    ),
    ("quotation marks do not fit|a cell that is too long", Advice("CSV cells with stray quotation marks", "Let a program write the CSV.")),
    (
        "a row of another length",
        Advice("CSV rows of another length than the first line", "Put a cell that holds the separator in quotation marks."),
    ),
    ("a cell under a column without a name", Advice("CSV columns without a name", "Name the column, or save without it.")),
    (
        "is missing$|is empty$|is not a string",
        Advice("fields that are missing, empty or no text", "Fill them in as texts, or take the record out."),
    ),
    ("has \\d+ characters, the limit", Advice("texts that are too long", f"A prompt takes no more than {LONGEST} characters.")),
    (
        "which a model reads as a command",
        Advice("texts with a model's commands", "Take the token or tag out: a model would obey it instead of reading it."),
    ),
    (
        "holds the control character|holds U\\+|is not Unicode text",
        Advice(
            "texts with characters that cannot be seen",
            "Type the text anew, or take the character out; it is often a sign of a wrong encoding.",
        ),
    ),
    ("options beyond option_D", Advice("more than four options", "Leave out wrong ones until there are four.")),
    ("fewer than two options|a gap in the options", Advice("too few options", "Give two to four options, without a gap.")),
    ("two options are the same", Advice("equal options", "Make the options differ, or leave one out.")),
    ("options begin with their letters", Advice("options with their letters", "Write the texts alone: 'Cyst', not 'A) Cyst'.")),
    (
        "options look like|options begin like|options are a JSON",
        Advice("options that cannot be told apart", 'Write "Cyst | Nodule", or the JSON list ["Cyst", "Nodule"], or a column for each.'),
    ),
    ("the answer is the text of one", Advice("answers that mean two options", "Write the text of the option that is meant.")),
    (
        "gt_answer is none of the options",
        Advice("answers that are none of the options", "Write the option's text exactly; in a CSV its letter will do."),
    ),
    (
        "unknown modality_type",
        Advice("unknown modalities", _WORDS.format(ours=", ".join(MODALITIES), theirs="; ".join(MODALITIES.values()))),
    ),
    (
        "unknown question_type",
        Advice("unknown question types", _WORDS.format(ours=", ".join(QUESTION_TYPES), theirs="; ".join(QUESTION_TYPES.values()))),
    ),
    (
        "image_path is |image_path has ",
        Advice(
            "paths that cannot be used", "Give the picture's path from the CSV's folder, with / between folders; in JSON from Images/ on."
        ),
    ),
    ("holds an option label", Advice("texts that look like options", "Reword what looks like ' A)' or ', B)' in a question or an option.")),
    ("question_id stands twice", Advice("questions that stand twice", "Take one out; if they differ, give each an id of its own.")),
)


def advise(why: str) -> Advice:
    """The kind of a refusal, by its reason."""
    return next((advice for pattern, advice in _ADVICE if re.search(pattern, why)), _OTHER)


def is_known(why: str) -> bool:
    """Is there advice of its own for a reason."""
    return advise(why) is not _OTHER


def hint(row: Row) -> str:
    """What the value was probably meant to be; "" where there is nothing to say, or the reason says it."""
    for field, literals in (("modality_type", MODALITIES), ("question_type", QUESTION_TYPES)):
        if row.why == f"unknown {field}" and (slug := nearest(row.what, literals)):
            return f"did you mean {literals[slug]!r} (slug {slug})?"
    return ""
